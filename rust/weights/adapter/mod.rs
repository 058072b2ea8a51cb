//! Reads adapters of PEFT, which change some weight matrices of a base checkpoint.
//!
//! # How adapted weights are read
//!
//! No changed matrix is ever held whole. A matrix of the base is wrapped in a [`WeightMatrix`] that changes the rows
//! that are read, as PEFT's `merge_and_unload` would: for LoRA, rows of W + s B A. `scan/opened_model.rs` asks
//! [`AdapterOnBase::adapt`] to wrap each projection.
//!
//! 1. `config` reads the kind of adapter and its parameters, `number_by_module` those that patterns of names give;
//!    `tensors` groups its tensors by module.
//! 2. `base_modules` finds the module of the base that each module of the adapter changes.
//! 3. `fit` checks the tensors against the size of that module.
//! 4. `adapted_matrix` reads rows of the base and changes them, with the tensors that `factors` reads.

mod adapted_matrix;
mod base_modules;
mod config;
mod factors;
mod fit;
mod number_by_module;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use self::adapted_matrix::{AdaptedMatrix, RowChange};
use self::base_modules::{BaseModules, may_hold_attention};
use self::config::{ADVICE, AdapterConfig, RankAndScale};
use self::factors::FactorStore;
use self::fit::ChangedModule;
use self::tensors::{ModuleTensors, tensors_by_module};
use crate::attention::{Attention, Orientation, Projection};
use crate::checkpoint::{Checkpoint, Location, has_weights};
use crate::error::{Error, Result, quote};
use crate::weights::WeightMatrix;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Where an adapter is, and the base that it names.
#[derive(Debug, Clone)]
pub struct AdapterOrigin {
    /// The folder of the adapter.
    pub folder: Location,
    /// Whether the folder holds the weights of a model as well. These are then the base, as for transformers.
    pub is_whole: bool,
    /// The path or hub id of the base where the adapter was trained.
    pub base: Option<String>,
    /// The revision of the base on the hub.
    pub revision: Option<String>,
}

/// Whether there may be an adapter at `location`, told by one look at a folder of this machine. What a store has is not
/// asked for.
pub fn may_be_adapter(location: &Location) -> bool {
    location.store().is_some() || location.file_name() == WEIGHTS || location.join(CONFIG).path().exists()
}

/// Reads the origin of the adapter at `location`, or `None` if there is no adapter.
///
/// An adapter is a folder with `adapter_config.json`, as for transformers, or the file of its weights.
///
/// # Errors
///
/// Those of [`Adapter::open`], for the configuration.
pub fn adapter_origin(location: &Location) -> Result<Option<AdapterOrigin>> {
    let is_file = location.file_name() == WEIGHTS;
    let folder = if is_file { location.parent() } else { location.clone() };
    if !is_file && !folder.join(CONFIG).is_file()? {
        return Ok(None);
    }
    let AdapterConfig { base, revision, .. } = AdapterConfig::read(&folder.join(CONFIG))?;
    let is_whole = !is_file && has_weights(&folder)?;
    Ok(Some(AdapterOrigin { folder, is_whole, base, revision }))
}

/// An adapter with a valid configuration, whose tensors are not yet checked against a base.
#[derive(Debug)]
pub struct Adapter {
    config: AdapterConfig,
    factors: Arc<FactorStore>,
    /// The tensors of each changed module, by its name where the adapter was trained.
    changes: BTreeMap<String, ModuleTensors>,
    /// The names of the modules whose biases change, likewise.
    biased: BTreeSet<String>,
}

impl Adapter {
    /// Opens the adapter in `folder`.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Io`] if a file cannot be read; [`crate::Error::Checkpoint`] if one is not what it should be, or
    /// if the adapter is of a kind that is not read.
    pub fn open(folder: &Location) -> Result<Self> {
        let config = AdapterConfig::read(&folder.join(CONFIG))?;
        let checkpoint = Checkpoint::open_file(folder, WEIGHTS)?;
        checkpoint.check_cancelled()?;
        let (changes, biased) = tensors_by_module(&checkpoint, &config.kind)?;
        Ok(Self { config, factors: Arc::new(FactorStore::new(checkpoint)), changes, biased })
    }

    /// The name of the adapter's kind in PEFT.
    pub fn kind(&self) -> &'static str {
        self.config.kind.name()
    }

    /// The file of the adapter's weights, opened.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.factors.checkpoint
    }

    /// The file with the adapter's weights.
    pub fn path(&self) -> &Path {
        self.factors.checkpoint.path()
    }

    /// Finds the changed modules among those of the base at `path`, which has tensors of these names. `attention` is
    /// needed for modules that the running model names otherwise.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Checkpoint`] if a module that could hold attention is not there, or could be several.
    pub fn find_modules<'n>(
        self,
        path: &Path,
        tensors: impl Iterator<Item = &'n str>,
        attention: Option<&Attention>,
    ) -> Result<AdapterOnBase> {
        let scanned = attention.map(|attention| attention.geometry().component);
        let modules = BaseModules::new(tensors, scanned).map_err(|error| Error::io(path, error))?;
        let find_by_role = |module: &str| modules.find_by_role(attention?, module);
        let mut places: BTreeMap<String, Vec<ModulePlace>> = BTreeMap::new();
        for (module, own_tensors) in &self.changes {
            let found = modules.find(module).map_err(|candidates| {
                self.factors.refusal(format!(
                    "the adapter changes the module {}, which could be any of {} in {}",
                    quote(module),
                    candidates.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", "),
                    path.display()
                ))
            })?;
            let found = match found {
                Some(name) => Some((name, None)),
                None if own_tensors.replacement.is_some() => None,
                None => find_by_role(module)
                    .map(|(found, rows)| (&*found.name, (rows.len() < found.out_features).then_some(rows))),
            };
            let Some((name, rows)) = found else {
                if may_hold_attention(module) {
                    return Err(self.factors.refusal(format!(
                        "the adapter changes the module {} (by {}), but {} has no such module; is it another base \
                         than the one that the adapter was trained on{}?",
                        quote(module),
                        quote(own_tensors.any_name()),
                        path.display(),
                        self.config.base.as_ref().map_or_else(String::new, |base| format!(", {base}"))
                    )));
                }
                continue;
            };
            let others = places.entry(name.to_owned()).or_default();
            let overlaps = |other: &&ModulePlace| match (&other.rows, &rows) {
                (Some(other), Some(rows)) => other.start < rows.end && rows.start < other.end,
                _ => true,
            };
            if let Some(other) = others.iter().find(overlaps) {
                return Err(self.factors.refusal(format!(
                    "the modules {} and {} would both change {} of {}",
                    quote(&other.adapter_name),
                    quote(module),
                    quote(name),
                    path.display()
                )));
            }
            others.push(ModulePlace { adapter_name: module.clone(), rows });
        }
        for places in places.values_mut() {
            places.sort_unstable_by_key(|place| place.rows.as_ref().map_or(0, |rows| rows.start));
        }
        let biased = self.biased.iter().flat_map(|module| match modules.find(module) {
            Ok(Some(name)) => vec![name],
            Ok(None) => find_by_role(module).map(|(found, _)| &*found.name).into_iter().collect(),
            Err(candidates) => candidates,
        });
        let biased = biased.map(str::to_owned).collect();
        let mut on_base = AdapterOnBase { adapter: self, places, biased, ranks: BTreeMap::new() };
        on_base.ranks = on_base.find_ranks(attention)?;
        Ok(on_base)
    }
}

/// The base's module that a module of an adapter changes.
#[derive(Debug)]
struct ModulePlace {
    /// The name of the module in the adapter.
    adapter_name: String,
    /// Its rows in the base's module, if that has others as well.
    rows: Option<Range<usize>>,
}

/// An adapter whose modules have been found in a base.
#[derive(Debug)]
pub struct AdapterOnBase {
    adapter: Adapter,
    /// The modules of the adapter, in the order of their rows, by the name of the base's module.
    places: BTreeMap<String, Vec<ModulePlace>>,
    /// The modules of the base whose biases change.
    biased: BTreeSet<String>,
    /// The ranks and scales of the changes of attention's modules, by their names in the adapter.
    ranks: BTreeMap<String, RankAndScale>,
}

impl AdapterOnBase {
    /// The ranks and scales of the changes of these projections, or else of all modules.
    fn find_ranks(&self, attention: Option<&Attention>) -> Result<BTreeMap<String, RankAndScale>> {
        let Adapter { config, factors, changes, .. } = &self.adapter;
        let Some(ranks) = config.kind.ranks() else { return Ok(BTreeMap::new()) };
        let of_attention = attention.map(|attention| {
            attention.projections().iter().flat_map(|projection| self.places(&projection.name)).collect()
        });
        let places: Vec<_> = of_attention.unwrap_or_else(|| self.places.values().flatten().collect());
        let names: BTreeSet<&str> = (places.into_iter())
            .map(|place| &*place.adapter_name)
            .filter(|name| changes[*name].has_own())
            .collect();
        let names: Vec<&str> = names.into_iter().collect();
        let checkpoint = &factors.checkpoint;
        let found = ranks.of_modules(
            &names,
            || checkpoint.check_cancelled(),
            |problem| factors.refusal(format!("{problem}; {ADVICE}")),
        )?;
        Ok(names.into_iter().map(str::to_owned).zip(found).collect())
    }

    /// The adapter itself.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Whether the adapter changes the weights of this module of the base.
    pub fn is_changed(&self, module: &str) -> bool {
        !self.places(module).is_empty()
    }

    /// Whether the adapter changes the bias of this module of the base.
    pub(crate) fn is_bias_changed(&self, module: &str) -> bool {
        self.biased.contains(module)
            || without_in_proj(module).is_some_and(|whole| self.biased.contains(whole))
    }

    fn places(&self, module: &str) -> &[ModulePlace] {
        let whole = || self.places.get(without_in_proj(module)?);
        self.places.get(module).or_else(whole).map_or(&[], |places| places)
    }

    /// The weights that replace those of a projection, with the checkpoint that holds them, if the adapter's training
    /// saved the module as a whole.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Checkpoint`] if they are of another shape.
    pub(crate) fn replacement(
        &self,
        projection: &Projection,
    ) -> Result<Option<(&Arc<Checkpoint>, Projection)>> {
        let [ModulePlace { adapter_name, .. }] = self.places(&projection.name) else { return Ok(None) };
        let Some(name) = &self.adapter.changes[adapter_name].replacement else { return Ok(None) };
        let replacement = Projection { name: name.clone(), ..projection.clone() };
        let factors = &self.adapter.factors;
        let (expected, found) = (replacement.stored_shape(), &factors.tensor(name)?.shape);
        if **found != expected {
            return Err(factors.refusal(format!(
                "tensor {} should have the shape {expected:?}, as in the base, but has the shape {found:?}",
                quote(name)
            )));
        }
        Ok(Some((&factors.checkpoint, replacement)))
    }

    /// The weights of a module as the adapter changes them, given those of the base or their replacement.
    /// `orientation` is how the base stores the module.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Checkpoint`] if the adapter's tensors do not fit the module, or contradict its configuration.
    pub fn adapt(
        &self,
        module: &str,
        orientation: Orientation,
        base: Box<dyn WeightMatrix>,
    ) -> Result<Box<dyn WeightMatrix>> {
        let (adapter, out, places) = (&self.adapter, base.out_features(), self.places(module));
        if places.iter().all(|place| !adapter.changes[&place.adapter_name].has_own()) {
            return Ok(base);
        }
        let (mut changes, mut end) = (Vec::new(), 0);
        for ModulePlace { adapter_name, rows } in places {
            let rows = rows.clone().unwrap_or(0..out);
            if end < rows.start {
                changes.push((end..rows.start, RowChange::Unchanged));
            }
            end = rows.end;
            let (tensors, features) = (&adapter.changes[adapter_name], [rows.len(), base.in_features()]);
            let ranks = &self.ranks;
            let module = ChangedModule { adapter, name: adapter_name, tensors, features, ranks, orientation };
            changes.push((rows, module.change()?));
        }
        if end < out {
            changes.push((end..out, RowChange::Unchanged));
        }
        Ok(Box::new(AdaptedMatrix { base, changes, factors: adapter.factors.clone() }))
    }
}

/// The name of torch's multi-head attention, which an adapter names where the base names a tensor within it.
fn without_in_proj(module: &str) -> Option<&str> {
    module.strip_suffix(".in_proj_weight")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn changed_biases_are_found_by_the_module_of_the_base() {
        let attention = "base_model.model.model.layers.0.self_attn";
        let names = [
            "q_proj.lora_A.weight",
            "q_proj.lora_B.weight",
            "k_proj.lora_A.weight",
            "k_proj.lora_B.weight",
            "k_proj.lora_B.bias",
            "v_proj.base_layer.bias",
        ]
        .map(|name| format!("{attention}.{name}"));
        let others = ["base_model.model.vision.attn.in_proj_bias", "base_model.model.lm_head.bias"];
        let zeros = [0; 4];
        let view =
            || safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 1], &zeros).unwrap();
        let tensors = names.iter().map(|name| &**name).chain(others).map(|name| (name, view()));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(WEIGHTS), safetensors::serialize(tensors, None).unwrap()).unwrap();
        fs::write(folder.path().join(CONFIG), r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1}"#).unwrap();
        let modules = ["q_proj", "k_proj", "v_proj"].map(|name| format!("layers.0.self_attn.{name}"));
        let stored: Vec<String> = (modules.iter())
            .flat_map(|module| ["weight", "bias"].map(|end| format!("{module}.{end}")))
            .chain(["in_proj_weight", "in_proj_bias"].map(|end| format!("vision.attn.{end}")))
            .collect();
        let adapter = Adapter::open(&folder.path().into()).unwrap();
        let adapted =
            adapter.find_modules(Path::new("base"), stored.iter().map(|name| &**name), None).unwrap();
        assert_eq!(modules.each_ref().map(|module| adapted.is_changed(module)), [true, true, false]);
        assert_eq!(modules.each_ref().map(|module| adapted.is_bias_changed(module)), [false, true, true]);
        assert!(adapted.is_bias_changed("vision.attn.in_proj_weight"));
        assert!(!adapted.is_bias_changed("lm_head"));
    }
}
