//! One side of the comparison: a checkpoint, with where its heads are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::attention::{
    Attention, Component, Contents, Geometry, Layer, Module, Orientation, Role, may_be_attention,
};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::mapping::View;
use crate::error::{Error, Result};
use crate::weights::WeightMatrix;
use crate::weights::adapter::{Adapted, Adapter};
use crate::weights::plain;
use crate::weights::quantised::{Quantisation, Scheme};

/// Where the weights of one side are.
#[derive(Clone, Debug)]
pub struct Location {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The folder of an adapter that changes the checkpoint's weights.
    pub adapter: Option<PathBuf>,
}

impl<P: AsRef<Path>> From<P> for Location {
    fn from(checkpoint: P) -> Self {
        Self { checkpoint: checkpoint.as_ref().to_path_buf(), adapter: None }
    }
}

/// A checkpoint that was found to hold attention heads.
#[derive(Debug)]
pub struct OpenedModel {
    checkpoint: Arc<Checkpoint>,
    adapted: Option<Adapted>,
    attention: Attention,
    /// The weights of the attention's modules, in their order.
    linears: Vec<Box<dyn WeightMatrix>>,
    /// How those of them are stored that are quantised.
    schemes: BTreeSet<Scheme>,
}

/// One matrix of one head: which rows of which weights.
#[derive(Clone, Debug)]
pub(crate) struct Matrix<'a> {
    side: &'a OpenedModel,
    module: &'a Module,
    rows: Range<usize>,
    pub(crate) linear: &'a dyn WeightMatrix,
}

impl OpenedModel {
    /// Opens the checkpoint and finds its heads; of the weights nothing is read. Without a component it is the
    /// text decoder's heads, else the encoder's, else those of the only tower there is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Checkpoint`] as of [`Checkpoint::open`] and [`Adapter::open`]; [`Error::Model`] if
    /// no layout matches the model, if the layout and the tensors contradict each other, or if the weights are
    /// not of a format that is read.
    pub fn open(location: &Location, component: Option<Component>) -> Result<Self> {
        let Location { checkpoint: path, adapter } = location;
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        let config = checkpoint.config()?;
        let quantisation = Quantisation::of(&checkpoint, &config)?;
        // One that cannot be read is no obstacle until it turns out to be needed.
        let mut quantised: BTreeMap<&str, Result<_>> = BTreeMap::new();
        for module in quantisation.modules() {
            if may_be_attention(module)? {
                quantised.extend(quantisation.open(module).transpose().map(|opened| (module, opened)));
            }
        }
        let computed = quantised.iter().filter_map(|(module, opened)| {
            let weights = &opened.as_ref().ok()?.weights;
            Some((*module, weights.features()))
        });
        let contents = Contents {
            tensors: checkpoint.tensors().map(|(name, tensor)| (name, &*tensor.shape)).collect(),
            computed: computed.collect(),
        };
        let attention = match Attention::resolve(path, &config, &contents, component) {
            Ok(attention) => attention,
            // What is missing may be what could not be read.
            Err(error) => return Err(quantised.into_values().find_map(Result::err).unwrap_or(error)),
        };
        drop(contents);
        let names = || checkpoint.tensors().map(|(name, _)| name);
        let adapted = adapter
            .as_ref()
            .map(|folder| Adapter::open(folder)?.over(path, names(), Some(&attention)))
            .transpose()?;
        let mut schemes = BTreeSet::new();
        let mut stored = |module: &Module| match quantised.remove(&*module.name).transpose()? {
            Some(quantised) => {
                schemes.insert(quantised.scheme);
                Ok(quantised.weights)
            }
            None => plain::open(&checkpoint, module),
        };
        let linears = (attention.modules().iter())
            .map(|module| {
                let Some(adapted) = &adapted else { return stored(module) };
                let base = match adapted.replacement(module)? {
                    Some((checkpoint, module)) => plain::open(checkpoint, &module)?,
                    None => stored(module)?,
                };
                adapted.linear(&module.name, module.orientation, base)
            })
            .collect::<Result<_>>()?;
        drop(quantised);
        Ok(Self { checkpoint, adapted, attention, linears, schemes })
    }

    /// The path that was opened: of an adapter, the file of its weights.
    pub fn path(&self) -> &Path {
        self.adapted.as_ref().map_or(self.checkpoint.path(), |adapted| adapted.adapter().path())
    }

    /// What was opened, for whoever asks where the scores come from.
    pub fn reading(&self) -> Provenance {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let weights = name(self.checkpoint.start());
        let Some(adapted) = &self.adapted else {
            return Provenance {
                files: weights,
                adapter: None,
                quantisation: self.quantisation(),
                note: None,
            };
        };
        let moved = self.attention.modules().iter().any(|module| adapted.changes(&module.name));
        Provenance {
            files: format!("{} over {weights}", name(adapted.adapter().path())),
            adapter: Some(adapted.adapter().kind()),
            quantisation: self.quantisation(),
            note: (!moved).then(|| {
                format!(
                    "the adapter changes no query, key or value weights of the {}, but other parts of the model",
                    self.geometry().component
                )
            }),
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

    /// The weights of the attention's modules, in their order.
    pub fn linears(&self) -> impl ExactSizeIterator<Item = &dyn WeightMatrix> {
        self.linears.iter().map(|linear| &**linear)
    }

    /// How the weights are quantised, all ways there are; nothing if they are plain.
    pub fn quantisation(&self) -> Option<String> {
        let schemes: Vec<String> = self.schemes.iter().map(Scheme::to_string).collect();
        (!schemes.is_empty()).then(|| schemes.join("; "))
    }

    /// How many bytes of weights a scan reads from this side.
    pub fn bytes(&self) -> u64 {
        let layers = &self.geometry().layers;
        let of_layer = |(row, layer): (usize, &Layer)| -> u64 {
            let of_role = |role: &Role| {
                let matrices = (0..layer.count(*role)).filter_map(|index| self.matrix(*role, row, index));
                // Heads that begin within a block of scales read more of them.
                matrices.map(|matrix| matrix.stored_bytes()).sum::<u64>()
            };
            layer.own_roles().iter().map(of_role).sum()
        };
        layers.iter().enumerate().map(of_layer).sum()
    }

    /// The matrix of a query head, or the key or value matrix of a key/value group, if the layer has one.
    pub(crate) fn matrix(&self, role: Role, layer: usize, index: usize) -> Option<Matrix<'_>> {
        let slice = self.attention.slice(role, layer, index)?;
        let linear = &*self.linears[slice.index];
        Some(Matrix { side: self, module: slice.module, rows: slice.rows, linear })
    }
}

/// What one side was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provenance {
    /// The file of weights, or the index of several; of an adapter its own, and those that it changes.
    pub files: String,
    /// The kind of the adapter, as PEFT calls it.
    pub adapter: Option<&'static str>,
    /// How the weights are quantised, if they are.
    pub quantisation: Option<String>,
    /// What is to be known about the scores.
    pub note: Option<String>,
}

impl<'a> Matrix<'a> {
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn columns(&self) -> usize {
        self.linear.in_features()
    }

    /// How many bytes the weights take once they are read.
    pub(crate) fn bytes(&self) -> usize {
        self.rows() * self.row_bytes()
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.columns() * self.linear.dtype().size()
    }

    /// How many bytes have to be read for the weights.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.linear.stored_bytes(self.rows.clone())
    }

    /// All rows as [`Matrix::read`] gives them, if they lie so in memory.
    pub(crate) fn view(&self) -> Option<View<'a>> {
        self.linear.view_rows(self.rows.clone())
    }

    /// Reads the rows from `first` on, as many as fit into `into`.
    pub(crate) fn read(&self, first: usize, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let start = self.rows.start + first;
        self.linear.read_rows(start..start + into.len() / self.row_bytes(), into, scratch)
    }

    /// The error of an entry that is not finite.
    pub(crate) fn refuse(&self, entry: usize, value: f64, whose: &str) -> Error {
        let OpenedModel { checkpoint, adapted, .. } = self.side;
        let tensor = plain::tensor_name(checkpoint, &self.module.name);
        let (out, input) = (self.rows.start + entry / self.columns(), entry % self.columns());
        let place = match self.module.orientation {
            Orientation::OutIn => format!("[{out}, {input}]"),
            Orientation::InOut => format!("[{input}, {out}]"),
        };
        let mut name = tensor.map_or(&*self.module.name, |(name, _)| name).to_owned();
        let mut file = tensor.map_or(checkpoint.path(), |(_, tensor)| checkpoint.file_of(tensor));
        if let Some(adapted) = adapted.as_ref().filter(|adapted| adapted.changes(&self.module.name)) {
            name += ", as the adapter changes it,";
            file = adapted.adapter().path();
        }
        let problem = if value.is_finite() {
            format!(
                "the weight {value:e} of tensor {name} at {place} ({whose}) is too far from that of the other \
                 checkpoint"
            )
        } else {
            format!("tensor {name} holds {value} at {place} ({whose}); every weight has to be finite")
        };
        Error::weights(file, problem)
    }
}
