//! Opens a model: its files, its attention heads and the weights that these are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::attention::{
    Attention, Component, Geometry, Orientation, Projection, Role, TensorShapes, may_be_attention,
};
use crate::checkpoint::{ByteRange, Checkpoint, Tensor};
use crate::error::{BadWeight, Error, HeadName, Result, quote};
use crate::number_format::Dtype;
use crate::weights::WeightMatrix;
use crate::weights::adapter::{Adapter, AdapterOnBase};
use crate::weights::float_matrix;
use crate::weights::quantised::{Quantisation, Scheme, is_part};

/// The files of a model: a checkpoint, and an adapter that changes it.
#[derive(Clone, Debug)]
pub struct ModelPath {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The folder of an adapter that changes the checkpoint's weights.
    pub adapter: Option<PathBuf>,
}

impl<P: AsRef<Path>> From<P> for ModelPath {
    fn from(checkpoint: P) -> Self {
        Self { checkpoint: checkpoint.as_ref().to_path_buf(), adapter: None }
    }
}

/// A model whose attention heads were found in its files.
#[derive(Debug)]
pub struct OpenedModel {
    checkpoint: Arc<Checkpoint>,
    adapted: Option<AdapterOnBase>,
    attention: Attention,
    /// The weights of the attention's projections, in their order.
    weights: Vec<Box<dyn WeightMatrix>>,
    /// The quantisation schemes of those weights.
    schemes: BTreeSet<Scheme>,
}

impl OpenedModel {
    /// Opens a model and finds the heads of `component`, without reading weights. Without a component these are the
    /// heads of the first of [`Component::ALL`] that the model has.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Checkpoint`] as of [`Checkpoint::open`] and [`Adapter::open`]; [`Error::Model`] if
    /// no layout matches the model, if the layout and the tensors contradict each other, or if the weights are
    /// not of a format that is read.
    pub fn open(path: &ModelPath, component: Option<Component>) -> Result<Self> {
        let ModelPath { checkpoint: path, adapter } = path;
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        refuse_unmerged(&checkpoint)?;
        let config = checkpoint.config()?;
        let quantisation = Quantisation::of(&checkpoint, &config)?;
        // Weights that cannot be read are no error unless attention needs them.
        let mut quantised: BTreeMap<&str, Result<_>> = BTreeMap::new();
        for module in quantisation.modules() {
            if may_be_attention(module)? {
                quantised.extend(quantisation.open(module).transpose().map(|opened| (module, opened)));
            }
        }
        let computed = quantised.iter().filter_map(|(module, opened)| {
            let matrix = &opened.as_ref().ok()?.matrix;
            Some((*module, matrix.features()))
        });
        let shapes = TensorShapes {
            stored: checkpoint.tensors().map(|(name, tensor)| (name, &*tensor.shape)).collect(),
            computed: computed.collect(),
        };
        let attention = match Attention::resolve(path, &config, &shapes, component) {
            Ok(attention) => attention,
            // The missing weights may be those that could not be read, or that no shard has.
            Err(error) => {
                let unread = quantised.into_values().find_map(Result::err);
                return Err(unread.or_else(|| find_missing(&checkpoint, None)).unwrap_or(error));
            }
        };
        drop(shapes);
        check_tensors(&checkpoint, &attention)?;
        let names = || checkpoint.tensors().map(|(name, _)| name);
        let adapted = adapter
            .as_ref()
            .map(|folder| Adapter::open(folder)?.find_modules(path, names(), Some(&attention)))
            .transpose()?;
        let mut schemes = BTreeSet::new();
        let mut open_stored =
            |projection: &Projection| match quantised.remove(&*projection.name).transpose()? {
                Some(quantised) => {
                    schemes.insert(quantised.scheme);
                    Ok(quantised.matrix)
                }
                None => {
                    quantisation.refuse_parts(&projection.name)?;
                    float_matrix::open(&checkpoint, projection)
                }
            };
        let weights = (attention.projections().iter())
            .map(|projection| {
                let Some(adapted) = &adapted else { return open_stored(projection) };
                let base = match adapted.replacement(projection)? {
                    Some((checkpoint, replacement)) => float_matrix::open(checkpoint, &replacement)?,
                    None => open_stored(projection)?,
                };
                adapted.adapt(&projection.name, projection.orientation, base)
            })
            .collect::<Result<_>>()?;
        drop(quantised);
        Ok(Self { checkpoint, adapted, attention, weights, schemes })
    }

    /// The path that was opened, or that of the adapter's weights.
    pub fn path(&self) -> &Path {
        self.adapted.as_ref().map_or(self.checkpoint.path(), |adapted| adapted.adapter().path())
    }

    /// The checkpoint, which an adapter may change.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The adapter that changes the checkpoint.
    pub(crate) fn adapted(&self) -> Option<&AdapterOnBase> {
        self.adapted.as_ref()
    }

    /// What the weights are read from.
    pub fn provenance(&self) -> Provenance {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let weights = name(self.checkpoint.entry_file());
        let quantisation = self.quantisation();
        let Some(adapted) = &self.adapted else {
            return Provenance { files: weights, adapter: None, quantisation, note: None };
        };
        let adapter = adapted.adapter();
        let moved = self.attention.projections().iter().any(|projection| adapted.changes(&projection.name));
        let note = format!(
            "the adapter changes no query, key or value weights of the {}, but other parts of the model",
            self.geometry().component
        );
        Provenance {
            files: format!("{} over {weights}", name(adapter.path())),
            adapter: Some(adapter.kind()),
            quantisation,
            note: (!moved).then_some(note),
        }
    }

    /// The sizes of the heads, and of the layers that have them.
    pub fn geometry(&self) -> &Geometry {
        self.attention.geometry()
    }

    /// Where the heads are.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// The weights of the attention's projections, in their order.
    pub fn weights(&self) -> impl ExactSizeIterator<Item = &dyn WeightMatrix> {
        self.weights.iter().map(|weights| &**weights)
    }

    /// The quantisation schemes of the weights, if there are any.
    pub fn quantisation(&self) -> Option<String> {
        let schemes: Vec<String> = self.schemes.iter().map(Scheme::to_string).collect();
        (!schemes.is_empty()).then(|| schemes.join("; "))
    }

    /// The bytes of weights that a scan reads of this model.
    pub fn bytes(&self) -> u64 {
        let mut bytes = 0;
        for (row, layer) in self.geometry().layers.iter().enumerate() {
            for role in layer.own_roles() {
                // Summed by head, since heads that begin within a block of scales read more of them.
                let matrices = (0..layer.count(*role)).filter_map(|index| self.matrix(*role, row, index));
                bytes += matrices.map(|matrix| matrix.stored_bytes()).sum::<u64>();
            }
        }
        bytes
    }

    /// The tensor of a projection's weight, with its name.
    pub(crate) fn weight_tensor(&self, projection: &Projection) -> Result<(&str, &Tensor)> {
        let missing = || format!("tensor {} is missing", quote(&projection.name));
        float_matrix::find_tensor(&self.checkpoint, &projection.name)
            .ok_or_else(|| Error::model(self.path(), missing()))
    }

    /// The tensor of a projection's bias, which has `bias` for `weight` in its name, if there is one.
    pub(crate) fn bias_tensor(&self, projection: &Projection) -> Option<(&str, &Tensor)> {
        let (weight, _) = float_matrix::find_tensor(&self.checkpoint, &projection.name)?;
        let (before, after) = weight.rsplit_once("weight")?;
        let found = self.checkpoint.named_tensor(&format!("{before}bias{after}"))?;
        (found.1.shape == [projection.out_features]).then_some(found)
    }

    /// Reads some entries of a projection's bias, if there is one.
    pub(crate) fn bias_entries(
        &self,
        projection: &Projection,
        rows: &Range<usize>,
    ) -> Result<Option<StoredNumbers>> {
        let Some((name, tensor)) = self.bias_tensor(projection) else { return Ok(None) };
        if let Some(adapted) = self.adapted().filter(|adapted| adapted.changes_bias(&projection.name)) {
            let module = quote(&projection.name);
            let problem = format!("the adapter changes the bias of {module}; merge it into its base first");
            return Err(Error::model(adapted.adapter().path(), problem));
        }
        let dtype = Dtype::from_stored(tensor.dtype).ok_or_else(|| {
            let problem = format!("tensor {} is stored as {}; expected numbers", quote(name), tensor.dtype);
            Error::model(self.path(), problem)
        })?;
        let mut bytes = vec![0; rows.len() * dtype.size()];
        self.checkpoint.read_at(tensor, (rows.start * dtype.size()) as u64, &mut bytes)?;
        Ok(Some(StoredNumbers { dtype, bytes }))
    }

    /// The matrix of a query head, or the key or value matrix of a key/value group, if the layer has one.
    pub(crate) fn matrix(&self, role: Role, layer: usize, index: usize) -> Option<HeadRows<'_>> {
        let slice = self.attention.projection_rows(role, layer, index)?;
        let weights = &*self.weights[slice.index];
        Some(HeadRows { model: self, projection: slice.projection, rows: slice.rows, weights })
    }
}

/// Parts of the names of tensors that PEFT has beside or around weights until an adapter is merged.
const UNMERGED: [&str; 3] = ["base_layer", "modules_to_save", "original_module"];

/// The beginnings of such parts, by the kinds of adapter.
#[rustfmt::skip]
const UNMERGED_PREFIXES: [&str; 14] = [
    "lora_", "hada_", "lokr_", "ia3_", "alps_", "oft_", "boft_", "vera_", "hra_", "vblora_", "randlora_", "fourierft_",
    "shira_", "road_",
];

/// Refuses a checkpoint with an adapter beside or around the weights of attention, which was never merged into them.
fn refuse_unmerged(checkpoint: &Checkpoint) -> Result<()> {
    for (name, _) in checkpoint.tensors() {
        let is_unmerged = |part: &str| {
            UNMERGED.contains(&part) || UNMERGED_PREFIXES.iter().any(|prefix| part.starts_with(prefix))
        };
        let Some(place) = name.split('.').position(is_unmerged) else { continue };
        let module = name.split('.').take(place).collect::<Vec<_>>().join(".");
        if may_be_attention(&module)? {
            let problem = format!(
                "tensor {} belongs to an adapter that was never merged into the weights of {}; merge it with peft's \
                 `model.merge_and_unload()` and save the result, or save base and adapter apart with \
                 `save_pretrained` and scan the adapter",
                quote(name),
                quote(&module)
            );
            return Err(Error::checkpoint(checkpoint.path(), problem));
        }
    }
    Ok(())
}

/// The ends of the names of tensors that a projection may have beside its weights. They change no weight.
#[rustfmt::skip]
const KNOWN_TENSORS: [&str; 18] = [
    "bias",
    // Activations.
    "input_scale", "input_global_scale", "input_zero_point", "input_scale_ub", "output_scale", "output_zero_point",
    "activation_scale", "qscale_act", "k_scale", "v_scale", "q_scale", "input_max", "input_min", "output_max",
    // What I-BERT computes of its weights.
    "weight_integer", "bias_integer", "fc_scaling_factor",
];

/// Refuses tensors of the projections that are not understood, and layers that the index has and no shard.
fn check_tensors(checkpoint: &Checkpoint, attention: &Attention) -> Result<()> {
    for Projection { name: module, .. } in attention.projections() {
        let inside = format!("{module}.");
        let stored = checkpoint.tensors_from(&inside).map_while(|(name, _)| name.strip_prefix(&*inside));
        for ending in stored {
            if !KNOWN_TENSORS.contains(&ending) && !is_part(ending) {
                let problem = format!(
                    "tensor {} belongs to a projection of attention, and what it does to the weights is not known; \
                     expected {} alone or with what quantised weights have. If it is not needed, remove it from the file",
                    quote(&format!("{inside}{ending}")),
                    quote(&format!("{inside}weight"))
                );
                return Err(Error::checkpoint(checkpoint.path(), problem));
            }
        }
    }
    find_missing(checkpoint, Some(attention)).map_or(Ok(()), Err)
}

/// The error of a tensor that the index names, that no shard has and that may be one of those of this attention, or of
/// any if it was not found.
fn find_missing(checkpoint: &Checkpoint, attention: Option<&Attention>) -> Option<Error> {
    let pattern = |name: &str| -> String {
        let part = |part: &str| if part.parse::<usize>().is_ok() { "#" } else { part }.to_owned();
        name.split('.').map(part).collect::<Vec<_>>().join(".")
    };
    let read: Option<BTreeSet<String>> =
        attention.map(|attention| attention.projections().iter().map(|it| pattern(&it.name)).collect());
    let is_needed = |name: &&str| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        match &read {
            Some(read) => read.contains(&pattern(module)),
            None => may_be_attention(module).unwrap_or(true),
        }
    };
    checkpoint.missing().find(is_needed).map(|name| checkpoint.refuse_missing(name))
}

/// What the weights of a model are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provenance {
    /// The file of weights, or the index of several; with an adapter, its file and that of the weights it changes.
    pub files: String,
    /// The kind of the adapter, as PEFT calls it.
    pub adapter: Option<&'static str>,
    /// How the weights are quantised, if they are.
    pub quantisation: Option<String>,
    /// What a reader of the scores has to know.
    pub note: Option<String>,
}

/// Numbers as they are stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredNumbers {
    pub(crate) dtype: Dtype,
    /// Little-endian.
    pub(crate) bytes: Vec<u8>,
}

impl StoredNumbers {
    pub(crate) fn decode(&self) -> Vec<f64> {
        let mut numbers = vec![0.0; self.bytes.len() / self.dtype.size()];
        self.dtype.decode(&self.bytes, &mut numbers);
        numbers
    }
}

/// One matrix of one head: some rows of a weight matrix.
#[derive(Clone, Debug)]
pub(crate) struct HeadRows<'a> {
    model: &'a OpenedModel,
    projection: &'a Projection,
    rows: Range<usize>,
    weights: &'a dyn WeightMatrix,
}

impl<'a> HeadRows<'a> {
    pub(crate) fn dtype(&self) -> Dtype {
        self.weights.dtype()
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn columns(&self) -> usize {
        self.weights.in_features()
    }

    /// The bytes of a row once it is read.
    pub(crate) fn row_bytes(&self) -> usize {
        self.columns() * self.dtype().size()
    }

    pub(crate) fn is_scattered(&self) -> bool {
        self.weights.is_scattered()
    }

    /// The bytes that have to be read for the weights.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.weights.stored_bytes(self.rows.clone())
    }

    /// The range of a file that holds just the bytes of the rows, if there is one.
    pub(crate) fn stored_range(&self) -> Option<ByteRange<'a>> {
        self.weights.stored_range(self.rows.clone())
    }

    /// Reads these rows of the head into `into`.
    pub(crate) fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let first = self.rows.start;
        self.weights.read_rows(first + rows.start..first + rows.end, into, scratch)
    }

    /// Reads all rows, as they are stored.
    pub(crate) fn stored(&self) -> Result<StoredNumbers> {
        let mut bytes = vec![0; self.rows() * self.row_bytes()];
        self.read_rows(0..self.rows(), &mut bytes, &mut Vec::new())?;
        Ok(StoredNumbers { dtype: self.dtype(), bytes })
    }

    /// The error of an entry that no score can be made of.
    pub(crate) fn refuse(&self, entry: usize, value: f64, head: HeadName) -> Error {
        let OpenedModel { checkpoint, adapted, .. } = self.model;
        let name = &*self.projection.name;
        let tensor = float_matrix::find_tensor(checkpoint, name);
        let adapted = adapted.as_ref().filter(|adapted| adapted.changes(name));
        let file = match (adapted, tensor) {
            (Some(adapted), _) => adapted.adapter().path(),
            (None, Some((_, tensor))) => checkpoint.file_of(tensor),
            (None, None) => checkpoint.path(),
        };
        let (out, input) = (self.rows.start + entry / self.columns(), entry % self.columns());
        let weight = BadWeight {
            tensor: tensor.map_or(name, |(name, _)| name).to_owned(),
            is_adapted: adapted.is_some(),
            position: match self.projection.orientation {
                Orientation::OutIn => [out, input],
                Orientation::InOut => [input, out],
            },
            head,
            value,
        };
        Error::Weight { path: file.to_path_buf(), weight }
    }
}
