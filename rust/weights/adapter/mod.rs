//! Adapters of PEFT: what they make of the weights of a base checkpoint.
//!
//! An adapter holds changes to some linear layers. No changed matrix is ever formed whole: a layer of the base
//! is wrapped in a [`WeightMatrix`] that changes the rows that are asked for, as PEFT's `merge_and_unload` would.

mod bands;
mod config;
mod fit;
mod matrix;
mod names;
mod roles;
mod rows;
mod tensors;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::bands::{Bands, Part};
use self::config::{Config, Kind};
use self::fit::Fit;
use self::matrix::Factors;
use self::names::Modules;
use self::rows::{Change, Changed};
use self::tensors::{Parameters, sort};
use crate::attention::{Attention, Module, Orientation};
use crate::checkpoint::{Checkpoint, has_weights};
use crate::error::quote;
use crate::weights::WeightMatrix;
use crate::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What can be said of an adapter without its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The folder of the adapter.
    pub folder: PathBuf,
    /// Whether the folder holds the weights of a model as well. As for transformers, these are then what the
    /// adapter changes.
    pub is_whole: bool,
    /// The path or the hub's name of the base, as it was called where the adapter was trained.
    pub base: Option<String>,
    /// The revision of the base on the hub.
    pub revision: Option<String>,
}

/// What the adapter at `path` says of itself, or `None` if there is something else.
///
/// An adapter is a folder with `adapter_config.json`, as for transformers, or the file of its weights.
///
/// # Errors
///
/// As of [`Adapter::open`], for the configuration.
pub fn origin(path: &Path) -> Result<Option<Origin>> {
    let folder = match path.file_name() {
        Some(name) if name == WEIGHTS => path.parent().unwrap_or(Path::new("")),
        _ if path.join(CONFIG).is_file() => path,
        _ => return Ok(None),
    };
    let config = Config::read(&folder.join(CONFIG))?;
    let is_whole = folder == path && has_weights(folder);
    Ok(Some(Origin { folder: folder.to_path_buf(), is_whole, base: config.base, revision: config.revision }))
}

/// An adapter, its configuration checked and its tensors found, but for their fit to a base.
#[derive(Debug)]
pub struct Adapter {
    config: Config,
    factors: Arc<Factors>,
    /// The tensors of each changed module, by its name where the adapter was trained.
    changes: BTreeMap<String, Parameters>,
}

impl Adapter {
    /// Opens the adapter in `folder`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read; [`Error::Checkpoint`] if one is not what it should be, or if the
    /// adapter is of a kind that is not read.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = Config::read(&folder.join(CONFIG))?;
        let checkpoint = Checkpoint::open_file(folder, WEIGHTS)?;
        let changes = sort(&checkpoint, &config.kind)?;
        Ok(Self { config, factors: Arc::new(Factors::new(checkpoint)), changes })
    }

    /// The kind of adapter, as PEFT calls it.
    pub fn kind(&self) -> &'static str {
        self.config.kind.name()
    }

    /// The file with the adapter's weights.
    pub fn path(&self) -> &Path {
        self.factors.checkpoint.path()
    }

    /// Finds the changed modules among those of a base, which is at `path` and has tensors of these names;
    /// `attention` is where its heads are, for modules that have other names when they run.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if a module that could hold attention is not there, or could be several.
    pub fn over<'n>(
        self,
        path: &Path,
        tensors: impl Iterator<Item = &'n str>,
        attention: Option<&Attention>,
    ) -> Result<Adapted> {
        let modules = Modules::new(tensors);
        let mut places: BTreeMap<String, Vec<Place>> = BTreeMap::new();
        for (module, parameters) in &self.changes {
            let found = modules.find(module).map_err(|candidates| {
                self.refuse(format!(
                    "the adapter changes the module {}, which could be any of {} in {}",
                    quote(module),
                    candidates.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", "),
                    path.display()
                ))
            })?;
            let found = match found {
                Some(name) => Some((name.to_owned(), None)),
                None if parameters.replacement.is_some() => None,
                None => attention.and_then(|attention| {
                    let (found, rows) = roles::find(attention, module)?;
                    Some((found.name.clone(), (rows.len() < found.out_features).then_some(rows)))
                }),
            };
            match found {
                Some((name, rows)) => {
                    let others = places.entry(name.clone()).or_default();
                    let overlaps = |other: &Place| match (&other.rows, &rows) {
                        (Some(other), Some(rows)) => other.start < rows.end && rows.start < other.end,
                        _ => true,
                    };
                    if let Some(other) = others.iter().find(|other| overlaps(other)) {
                        return Err(self.refuse(format!(
                            "the modules {} and {} would both change {} of {}",
                            quote(&other.runtime),
                            quote(module),
                            quote(&name),
                            path.display()
                        )));
                    }
                    others.push(Place { runtime: module.clone(), rows });
                }
                None if names::may_hold_attention(module) => {
                    return Err(self.refuse(format!(
                        "the adapter changes the module {} (by {}), but {} has no such module; is it another \
                         base than the one that the adapter was trained on{}?",
                        quote(module),
                        quote(parameters.any_name()),
                        path.display(),
                        self.config.base.as_ref().map_or_else(String::new, |base| format!(", {base}"))
                    )));
                }
                None => {}
            }
        }
        for places in places.values_mut() {
            places.sort_unstable_by_key(|place| place.rows.as_ref().map_or(0, |rows| rows.start));
        }
        Ok(Adapted { adapter: self, places })
    }

    fn refuse(&self, problem: impl Into<String>) -> Error {
        self.factors.refuse(problem)
    }
}

/// Where a module of an adapter is in its base.
#[derive(Debug)]
struct Place {
    /// What the adapter calls the module.
    runtime: String,
    /// Its rows in the base's module, if that has others as well.
    rows: Option<Range<usize>>,
}

/// An adapter whose modules have been found in a base.
#[derive(Debug)]
pub struct Adapted {
    adapter: Adapter,
    /// The modules of the adapter, in the order of their rows, by the name of the base's module.
    places: BTreeMap<String, Vec<Place>>,
}

impl Adapted {
    /// The adapter itself.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Whether the adapter changes the weights of this module of the base.
    pub fn changes(&self, module: &str) -> bool {
        !self.places(module).is_empty()
    }

    fn places(&self, module: &str) -> &[Place] {
        // Of torch's multi-head attention the adapter names the module, the base a tensor within.
        let whole = || self.places.get(module.strip_suffix(".in_proj_weight")?);
        self.places.get(module).or_else(whole).map_or(&[], |places| places)
    }

    /// What stands in the place of a module's own weights, with the checkpoint that holds it: the weights of a
    /// module that was trained and saved whole.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if they are of another shape.
    pub(crate) fn replacement(&self, module: &Module) -> Result<Option<(&Arc<Checkpoint>, Module)>> {
        let [Place { runtime, .. }] = self.places(&module.name) else { return Ok(None) };
        let Some(name) = &self.adapter.changes[runtime].replacement else { return Ok(None) };
        let other = Module { name: name.clone(), ..module.clone() };
        let factors = &self.adapter.factors;
        let (expected, found) = (other.stored_shape(), &factors.tensor(name)?.shape);
        if *found != expected {
            return Err(self.adapter.refuse(format!(
                "tensor {} should have the shape {expected:?}, as in the base, but has the shape {found:?}",
                quote(name)
            )));
        }
        Ok(Some((&factors.checkpoint, other)))
    }

    /// The module with its weights as the adapter changes them, given those of the base, or those that stand in
    /// their place. Weights that the adapter does not change stay as they are. `orientation` is how the base
    /// stores the module.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if the adapter's tensors do not fit the module, or contradict its configuration.
    pub fn linear(
        &self,
        module: &str,
        orientation: Orientation,
        base: Box<dyn WeightMatrix>,
    ) -> Result<Box<dyn WeightMatrix>> {
        let places = self.places(module);
        if let [] | [Place { rows: None, .. }] = places {
            return match places.first() {
                Some(place) => self.changed(&place.runtime, orientation, base),
                None => Ok(base),
            };
        }
        let whole: Arc<dyn WeightMatrix> = base.into();
        let part = |rows: Range<usize>| Box::new(Part { whole: whole.clone(), rows });
        let unchanged = |rows| Changed::new(part(rows), Change::None, self.adapter.factors.clone());
        let (mut bands, mut end): (Vec<Box<dyn WeightMatrix>>, usize) = (Vec::new(), 0);
        for Place { runtime, rows } in places {
            let rows = rows.clone().unwrap_or(0..whole.out_features());
            if end < rows.start {
                bands.push(Box::new(unchanged(end..rows.start)));
            }
            end = rows.end;
            bands.push(self.changed(runtime, orientation, part(rows))?);
        }
        if end < whole.out_features() {
            bands.push(Box::new(unchanged(end..whole.out_features())));
        }
        Ok(Box::new(Bands(bands)))
    }

    /// A module of the adapter, given its weights in the base.
    fn changed(
        &self,
        runtime: &str,
        orientation: Orientation,
        base: Box<dyn WeightMatrix>,
    ) -> Result<Box<dyn WeightMatrix>> {
        let parameters = &self.adapter.changes[runtime];
        if parameters.own.is_empty() {
            return Ok(base);
        }
        let fit = Fit { adapter: &self.adapter, module: runtime, parameters, base: &*base };
        let change = match &self.adapter.config.kind {
            Kind::Lora(lora) => fit.low_rank(lora)?,
            Kind::Loha(ranks) => fit.hadamard(ranks)?,
            Kind::Lokr(ranks) => fit.kronecker(ranks)?,
            Kind::Ia3 => fit.scaling()?,
            Kind::Alps => fit.rows(orientation)?,
        };
        Ok(Box::new(Changed::new(base, change, self.adapter.factors.clone())))
    }
}
