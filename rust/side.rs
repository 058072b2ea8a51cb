//! One side of the comparison: a checkpoint, with where its heads are.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::model::{Attention, Component, Contents, Geometry, Layer, Module, Orientation, Role};
use crate::plain;

/// A checkpoint that was found to hold attention heads.
#[derive(Debug)]
pub struct Side {
    checkpoint: Arc<Checkpoint>,
    attention: Attention,
    /// The weights of the attention's modules, in their order.
    linears: Vec<Box<dyn Linear>>,
}

/// One matrix of one head: which rows of which weights.
#[derive(Clone, Debug)]
pub(crate) struct Matrix<'a> {
    side: &'a Side,
    module: &'a Module,
    rows: Range<usize>,
    pub(crate) linear: &'a dyn Linear,
}

impl Side {
    /// Opens the checkpoint and finds its heads; of the weights nothing is read. Without a component it is the
    /// text decoder's heads, else the encoder's, else those of the only tower there is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Checkpoint`] as of [`Checkpoint::open`]; [`Error::Model`] if no layout
    /// matches the model, if the layout and the tensors contradict each other, or if the weights are not of
    /// a format that is read.
    pub fn open(path: &Path, component: Option<Component>) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(path)?);
        let config = checkpoint.config()?;
        let contents = Contents {
            tensors: checkpoint.tensors().map(|(name, tensor)| (name, &*tensor.shape)).collect(),
            ..Contents::default()
        };
        let attention = Attention::resolve(path, &config, &contents, component)?;
        drop(contents);
        let linears =
            attention.modules().iter().map(|module| linear(&checkpoint, module)).collect::<Result<_>>()?;
        Ok(Self { checkpoint, attention, linears })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
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
    pub fn linears(&self) -> impl ExactSizeIterator<Item = &dyn Linear> {
        self.linears.iter().map(|linear| &**linear)
    }

    /// How many bytes of weights a scan reads from this side.
    pub fn bytes(&self) -> u64 {
        let layers = &self.geometry().layers;
        let of_layer = |(row, layer): (usize, &Layer)| -> u64 {
            let of_role = |role: &Role| {
                let matrix = self.matrix(*role, row, 0);
                matrix.map_or(0, |matrix| matrix.stored_bytes() * layer.count(*role) as u64)
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

/// The weights of a module, in whatever form the checkpoint has them.
fn linear(checkpoint: &Arc<Checkpoint>, module: &Module) -> Result<Box<dyn Linear>> {
    plain::open(checkpoint, module)
}

impl Matrix<'_> {
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

    /// Reads the rows from `first` on, as many as fit into `into`.
    pub(crate) fn read(&self, first: usize, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let start = self.rows.start + first;
        self.linear.read_rows(start..start + into.len() / self.row_bytes(), into, scratch)
    }

    /// The error of an entry that is not finite.
    pub(crate) fn refuse(&self, entry: usize, value: f64, whose: &str) -> Error {
        let tensor = plain::tensor_name(&self.side.checkpoint, &self.module.name);
        let (out, input) = (self.rows.start + entry / self.columns(), entry % self.columns());
        let place = match self.module.orientation {
            Orientation::OutIn => format!("[{out}, {input}]"),
            Orientation::InOut => format!("[{input}, {out}]"),
        };
        let name = tensor.map_or(&*self.module.name, |(name, _)| name);
        let file = tensor.map_or(self.side.path(), |(_, tensor)| self.side.checkpoint.file_of(tensor));
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
