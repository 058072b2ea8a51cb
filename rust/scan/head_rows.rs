//! Reads one matrix of one head of a model, by rows, and makes the error of a NaN or infinite entry.
//!
//! Which rows of which tensor a head has, `attention/layers.rs` explains with the formula; `Attention::projection_rows` in
//! `attention/find.rs` computes them.

use std::ops::Range;
use std::path::Path;

use super::opened_model::OpenedModel;
use crate::attention::{Orientation, Projection};
use crate::checkpoint::ByteRange;
use crate::error::{BadWeight, Error, HeadName, Result};
use crate::memory;
use crate::number_format::Dtype;
use crate::weights::{WeightMatrix, float_matrix};

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
    pub(super) model: &'a OpenedModel,
    pub(super) projection: &'a Projection,
    pub(super) rows: Range<usize>,
    pub(super) weights: &'a dyn WeightMatrix,
}

impl<'a> HeadRows<'a> {
    /// The path of the model.
    pub(crate) fn path(&self) -> &'a Path {
        self.model.path()
    }

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

    /// Ranges of files that contain everything that is read for the rows.
    pub(crate) fn covering_ranges(&self) -> Vec<ByteRange<'a>> {
        self.weights.covering_ranges(self.rows.clone())
    }

    /// Reads these rows of the head into `into`.
    pub(crate) fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let first = self.rows.start;
        self.weights.read_rows(first + rows.start..first + rows.end, into, scratch)
    }

    /// Reads all rows, as they are stored.
    pub(crate) fn stored(&self) -> Result<StoredNumbers> {
        let mut bytes =
            memory::zeros(self.rows() * self.row_bytes()).map_err(|error| Error::io(self.path(), error))?;
        self.read_rows(0..self.rows(), &mut bytes, &mut Vec::new())?;
        Ok(StoredNumbers { dtype: self.dtype(), bytes })
    }

    /// The error of an entry that no score can be made of.
    pub(crate) fn refusal(&self, entry: usize, value: f64, head: HeadName) -> Error {
        let (checkpoint, adapted) = (self.model.checkpoint(), self.model.adapted());
        let name = &*self.projection.name;
        let tensor = float_matrix::find_tensor(checkpoint, name);
        let adapted = adapted.filter(|adapted| adapted.is_changed(name));
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
