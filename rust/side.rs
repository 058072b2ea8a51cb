//! One side of the comparison: a checkpoint, with where its heads are.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::{Attention, Geometry, Orientation, Role, Slice};

/// A checkpoint that was found to hold attention heads.
#[derive(Debug)]
pub struct Side {
    checkpoint: Checkpoint,
    attention: Attention,
}

/// One matrix of one head: which part of which stored tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    side: &'a Side,
    slice: Slice<'a>,
    tensor: &'a Tensor,
    pub(crate) dtype: Dtype,
}

impl Side {
    /// Opens the checkpoint and finds its heads; of the weights nothing is read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Checkpoint`] as of [`Checkpoint::open`]; [`Error::Model`] if no layout
    /// matches the model, or if the layout and the tensors contradict each other.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.config()?;
        let shapes: BTreeMap<&str, &[usize]> =
            checkpoint.tensors().map(|(name, tensor)| (name, &*tensor.shape)).collect();
        let attention = Attention::resolve(path, &config, &shapes)?;
        Ok(Self { checkpoint, attention })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The sizes of the heads, and of the layers that have them.
    pub fn geometry(&self) -> &Geometry {
        self.attention.geometry()
    }

    /// The matrix of a query head, or the key or value matrix of a key/value group.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if its numbers are not of a floating-point format.
    pub(crate) fn matrix(&self, role: Role, layer: usize, index: usize) -> Result<Matrix<'_>> {
        let slice = self.attention.slice(role, layer, index);
        let missing = || Error::model(self.path(), format!("tensor {} is missing", slice.tensor));
        let tensor = self.checkpoint.tensor(slice.tensor).ok_or_else(missing)?;
        let Some(dtype) = Dtype::from_stored(tensor.dtype) else {
            return Err(Error::model(
                self.path(),
                format!(
                    "tensor {} is stored as {}; expected F16, BF16, F32 or F64. Quantised weights have to be \
                     dequantised first",
                    slice.tensor, tensor.dtype
                ),
            ));
        };
        Ok(Matrix { side: self, slice, tensor, dtype })
    }
}

impl Matrix<'_> {
    pub(crate) fn columns(&self) -> usize {
        self.slice.columns
    }

    pub(crate) fn entries(&self) -> usize {
        self.slice.rows * self.slice.columns
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries() * self.dtype.size()
    }

    /// Whether the rows follow each other in the file.
    pub(crate) fn is_contiguous(&self) -> bool {
        matches!(self.slice.orientation, Orientation::OutIn)
    }

    /// Reads the entries from `first` on, where they follow each other in the file.
    pub(crate) fn read(&self, first: usize, into: &mut [u8]) -> Result<()> {
        let start = self.slice.first as u64 * self.slice.columns as u64 + first as u64;
        self.side.checkpoint.read_at(self.tensor, start * self.dtype.size() as u64, into)
    }

    /// Reads the whole matrix where its rows are columns of the stored tensor, and turns it around.
    pub(crate) fn read_transposed(&self, into: &mut [u8], strip: &mut Vec<u8>) -> Result<()> {
        let Slice { first, rows, columns, stride, .. } = self.slice;
        let size = self.dtype.size();
        strip.resize(rows * size, 0);
        for column in 0..columns {
            let start = (column as u64 * stride as u64 + first as u64) * size as u64;
            self.side.checkpoint.read_at(self.tensor, start, strip)?;
            for (row, weight) in strip.chunks_exact(size).enumerate() {
                let place = (row * columns + column) * size;
                into[place..place + size].copy_from_slice(weight);
            }
        }
        Ok(())
    }

    /// The error of an entry that is not finite.
    pub(crate) fn refuse(&self, entry: usize, value: f64, whose: &str) -> Error {
        let Slice { first, columns, tensor, .. } = self.slice;
        let (out, input) = (first + entry / columns, entry % columns);
        let place = match self.slice.orientation {
            Orientation::OutIn => format!("[{out}, {input}]"),
            Orientation::InOut => format!("[{input}, {out}]"),
        };
        let problem = if value.is_finite() {
            format!(
                "the weight {value:e} of tensor {tensor} at {place} ({whose}) is too far from that of the other checkpoint"
            )
        } else {
            format!("tensor {tensor} holds {value} at {place} ({whose}); every weight has to be finite")
        };
        Error::weights(self.side.checkpoint.file_of(self.tensor), problem)
    }
}
