//! One matrix of a head in both models: its rows, its bytes and the sums over them.
//!
//! The sums tell of the first entry that is NaN or infinite; [`LoadedMatrix::refusal`] makes the error of it, which names the
//! tensor and the position (`HeadRows::refusal`).

use std::ops::Range;

use super::head_rows::HeadRows;
use super::options::Options;
use crate::checkpoint::{RangeBuffer, RangeMapper};
use crate::error::{Error, HeadName, Result};
use crate::statistics::{HeadMatrix, NonFiniteEntry, StoredWeights, VectorSums, WeightVector};

/// The rows of one matrix in the base and in the tuned model.
#[derive(Clone, Debug)]
pub(crate) struct PairedMatrix<'a> {
    pub(crate) base: HeadRows<'a>,
    pub(crate) tuned: HeadRows<'a>,
    pub(crate) name: HeadName,
}

impl PairedMatrix<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.base.rows()
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.base.stored_bytes() + self.tuned.stored_bytes()
    }

    /// The bytes that a key or value matrix takes in the form `product`: the copies from both models, and one of the two
    /// matrices of `f32` that make theta, each about as large as a value matrix.
    pub(crate) fn bytes_in_product(&self) -> usize {
        let row_bytes =
            self.base.row_bytes() + self.tuned.row_bytes() + size_of::<f32>() * self.base.columns();
        self.rows() * row_bytes
    }

    /// As many rows as fit into `bytes`, or all if they are scattered in a file.
    pub(crate) fn rows_within(&self, bytes: usize) -> usize {
        if self.base.is_scattered() || self.tuned.is_scattered() {
            return self.rows();
        }
        (bytes / self.base.row_bytes().max(self.tuned.row_bytes())).max(1)
    }

    fn weights<'b>(&self, base: &'b RangeBuffer, tuned: &'b RangeBuffer) -> HeadMatrix<'b> {
        HeadMatrix {
            base: StoredWeights { dtype: self.base.dtype(), bytes: base.bytes() },
            tuned: StoredWeights { dtype: self.tuned.dtype(), bytes: tuned.bytes() },
            columns: self.base.columns(),
        }
    }
}

/// What loading a matrix takes, kept from one matrix to the next.
#[derive(Debug)]
pub(crate) struct MatrixMemory<'a> {
    base: RangeBuffer<'a>,
    tuned: RangeBuffer<'a>,
    sums: VectorSums,
}

impl MatrixMemory<'_> {
    pub(crate) fn new(options: &Options) -> Self {
        let sums = VectorSums::new(options.temperature, options.instructions);
        Self { base: RangeBuffer::default(), tuned: RangeBuffer::default(), sums }
    }
}

/// A matrix whose rows are being read.
#[derive(Debug)]
pub(crate) struct LoadedMatrix<'a> {
    pub(crate) matrix: PairedMatrix<'a>,
    memory: MatrixMemory<'a>,
}

impl<'a> LoadedMatrix<'a> {
    /// Maps the matrix, or makes room for a copy of it.
    pub(crate) fn new(
        matrix: PairedMatrix<'a>,
        mut memory: MatrixMemory<'a>,
        mapper: &RangeMapper<'a>,
    ) -> Result<Self> {
        for (buffer, matrix) in [(&mut memory.base, &matrix.base), (&mut memory.tuned, &matrix.tuned)] {
            buffer
                .start(mapper, matrix.stored_range(), matrix.rows() * matrix.row_bytes())
                .map_err(|error| Error::io(matrix.path(), error))?;
        }
        memory.sums.clear();
        Ok(Self { matrix, memory })
    }

    /// Reads these rows. `scratch` is memory that is kept from call to call.
    pub(crate) fn read(&mut self, rows: Range<usize>, scratch: &mut Vec<u8>) -> Result<()> {
        let Self { matrix: PairedMatrix { base, tuned, .. }, memory } = self;
        for (buffer, matrix) in [(&mut memory.base, base), (&mut memory.tuned, tuned)] {
            let bytes = rows.start * matrix.row_bytes()..rows.end * matrix.row_bytes();
            buffer.fill(bytes, |into| matrix.read_rows(rows.clone(), into, scratch))?;
        }
        Ok(())
    }

    /// Adds the rows before `end` to the sums, apart from those added before.
    pub(crate) fn sum_rows(&mut self, end: usize) -> Result<()> {
        let Self { matrix, memory: MatrixMemory { base, tuned, sums } } = self;
        let vector = matrix.weights(base, tuned).weight_vector();
        let summed = sums.add_up_to(end * matrix.base.columns(), &vector);
        summed.map_err(|entry| self.refusal(entry))
    }

    pub(crate) fn sums(&self) -> &VectorSums {
        &self.memory.sums
    }

    /// The weights as a vector.
    pub(crate) fn weight_vector(&self) -> WeightVector<'_> {
        self.weights().weight_vector()
    }

    /// The weights as a matrix.
    pub(crate) fn weights(&self) -> HeadMatrix<'_> {
        self.matrix.weights(&self.memory.base, &self.memory.tuned)
    }

    /// The error of an entry that no score can be made of, or of a file that lost the entry while it was read.
    pub(crate) fn refusal(&self, NonFiniteEntry { entry, is_tuned }: NonFiniteEntry) -> Error {
        if let Err(error) = self.memory.base.check().and_then(|()| self.memory.tuned.check()) {
            return error;
        }
        let weights = self.weights();
        let (matrix, stored) =
            if is_tuned { (&self.matrix.tuned, weights.tuned) } else { (&self.matrix.base, weights.base) };
        matrix.refusal(entry, stored.entry(entry), self.matrix.name)
    }

    /// Ends the use of the bytes. No result made of them may be kept if this fails.
    pub(crate) fn finish(self, mapper: &RangeMapper<'a>) -> Result<MatrixMemory<'a>> {
        let Self { mut memory, .. } = self;
        memory.base.finish(mapper)?;
        memory.tuned.finish(mapper)?;
        Ok(memory)
    }
}
