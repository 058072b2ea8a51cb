//! Opens a model: its files, its attention heads and the weights that these are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::head_rows::{HeadRows, StoredNumbers};
use super::tensor_names::{check_merged, check_tensors, find_missing};
use crate::attention::{
    Attention, Component, Geometry, Projection, Role, StoredShapes, TensorShapes, may_be_attention,
};
pub use crate::checkpoint::StoredFile;
use crate::checkpoint::{Checkpoint, Location, Tensor};
use crate::error::{Error, Result, quote};
use crate::memory;
use crate::number_format::Dtype;
use crate::weights::WeightMatrix;
use crate::weights::adapter::{Adapter, AdapterOnBase};
use crate::weights::float_matrix;
use crate::weights::quantised::{Quantisation, Scheme};

/// The most quantised modules of attention: eight for each of as many layers as a model may have.
const MOST_QUANTISED: usize = 32_768;

/// The files of a model: a checkpoint, and an adapter that changes it.
#[derive(Clone, Debug)]
pub struct ModelPath {
    /// The checkpoint.
    pub checkpoint: Location,
    /// The folder of an adapter that changes the checkpoint's weights.
    pub adapter: Option<Location>,
}

impl<P: AsRef<Path>> From<P> for ModelPath {
    fn from(checkpoint: P) -> Self {
        Self { checkpoint: checkpoint.into(), adapter: None }
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
        let ModelPath { checkpoint: location, adapter } = path;
        let path = location.path();
        memory::check(memory::SMALL_PIECES).map_err(|error| Error::io(path, error))?;
        let checkpoint = Arc::new(Checkpoint::open(location.clone())?);
        checkpoint.check_cancelled()?;
        check_merged(&checkpoint)?;
        let config = checkpoint.config()?;
        let quantisation = Quantisation::of(&checkpoint, &config)?;
        // Weights that cannot be read are no error unless attention needs them.
        let mut quantised: BTreeMap<&str, Result<_>> = BTreeMap::new();
        for module in quantisation.modules() {
            if !quantised.contains_key(module) && may_be_attention(module)? {
                checkpoint.check_cancelled()?;
                if quantised.len() == MOST_QUANTISED {
                    let problem = format!(
                        "expected at most {MOST_QUANTISED} quantised modules of attention, found more"
                    );
                    return Err(Error::model(path, problem));
                }
                quantised.extend(quantisation.open(module).transpose().map(|opened| (module, opened)));
            }
        }
        let computed = quantised.iter().filter_map(|(module, opened)| {
            let matrix = &opened.as_ref().ok()?.matrix;
            Some((*module, matrix.features()))
        });
        let shapes = TensorShapes {
            stored: StoredShapes::new(checkpoint.tensors().map(|(name, tensor)| (name, &*tensor.shape)))
                .map_err(|error| Error::io(path, error))?,
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
        checkpoint.check_cancelled()?;
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
                    quantisation.check_unquantised(&projection.name)?;
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

    /// Fails if a file of the model was replaced or written to since it was opened.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] names the file; [`Error::Io`] if it is no longer there.
    pub fn check_unchanged(&self) -> Result<()> {
        self.checkpoint.check_unchanged()?;
        self.adapted.as_ref().map_or(Ok(()), |adapted| adapted.adapter().checkpoint().check_unchanged())
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
        let moved =
            self.attention.projections().iter().any(|projection| adapted.is_changed(&projection.name));
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
        (0..self.geometry().layers.len()).map(|layer_index| self.layer_bytes(layer_index)).sum()
    }

    /// The bytes of weights that a scan reads of one layer.
    pub(crate) fn layer_bytes(&self, layer_index: usize) -> u64 {
        let layer = &self.geometry().layers[layer_index];
        let mut bytes = 0;
        for role in layer.own_roles() {
            // Summed by head, since heads that begin within a block of scales read more of them.
            let matrices = (0..layer.count(*role)).filter_map(|index| self.matrix(*role, layer_index, index));
            bytes += matrices.map(|matrix| matrix.stored_bytes()).sum::<u64>();
        }
        bytes
    }

    /// The files of weights, those of an adapter as well, with what tells them from other states of themselves.
    pub fn files(&self) -> Vec<StoredFile> {
        let adapter = self.adapted.as_ref().map(|adapted| adapted.adapter().checkpoint());
        iter::once(&*self.checkpoint).chain(adapter).flat_map(Checkpoint::stored_files).collect()
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
        (*found.1.shape == [projection.out_features]).then_some(found)
    }

    /// Reads some entries of a projection's bias, if there is one.
    pub(crate) fn bias_entries(
        &self,
        projection: &Projection,
        rows: &Range<usize>,
    ) -> Result<Option<StoredNumbers>> {
        let Some((name, tensor)) = self.bias_tensor(projection) else { return Ok(None) };
        if let Some(adapted) = self.adapted().filter(|adapted| adapted.is_bias_changed(&projection.name)) {
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
    pub(crate) fn matrix(&self, role: Role, layer_index: usize, index: usize) -> Option<HeadRows<'_>> {
        let slice = self.attention.projection_rows(role, layer_index, index)?;
        let weights = &*self.weights[slice.index];
        Some(HeadRows { model: self, projection: slice.projection, rows: slice.rows, weights })
    }
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
