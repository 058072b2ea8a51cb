//! The weights of one linear layer, whatever form they are stored in.

pub mod adapter;
pub(crate) mod float_matrix;
pub mod quantised;

use std::fmt::Debug;
use std::ops::Range;

use crate::checkpoint::ByteRange;
use crate::error::Result;
use crate::number_format::Dtype;

/// A weight matrix of [out features, in features], read by rows.
///
/// A scan reads every form of weights through this trait: floating-point, transposed, quantised and adapted ones. No
/// implementation holds a whole weight; an adapter keeps its small factors.
pub trait WeightMatrix: Debug + Send + Sync {
    /// The number of rows and the length of a row.
    fn features(&self) -> [usize; 2];

    /// The number of rows.
    fn out_features(&self) -> usize {
        self.features()[0]
    }

    /// The length of a row.
    fn in_features(&self) -> usize {
        self.features()[1]
    }

    /// The format of the weights that [`WeightMatrix::read_rows`] gives: the stored format of floating-point weights,
    /// `F32` of quantised ones, and of what an adapter changes `F64` if the base is in it, else `F32`.
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    /// The bytes that [`WeightMatrix::read_rows`] reads from disk for these rows.
    fn stored_bytes(&self, rows: Range<usize>) -> u64;

    /// Ranges of files that contain everything which [`WeightMatrix::read_rows`] reads for these rows. What lies between
    /// scattered bytes may be part of them.
    fn covering_ranges(&self, rows: Range<usize>) -> Vec<ByteRange<'_>>;

    /// Whether the weights of a row are scattered in the file, so that reading many rows together takes hardly
    /// longer than reading one.
    fn is_scattered(&self) -> bool {
        false
    }

    /// The range of a file that holds just what [`WeightMatrix::read_rows`] gives, if there is one.
    fn stored_range(&self, _rows: Range<usize>) -> Option<ByteRange<'_>> {
        None
    }

    /// Fills `into` with these rows, row after row, little-endian: rows x in features x the size of
    /// [`WeightMatrix::dtype`] bytes. `scratch` is memory for the call's own use, kept from call to call.
    ///
    /// # Errors
    ///
    /// Those of [`crate::checkpoint::Checkpoint::read_at`]; [`crate::Error::Checkpoint`] if what is stored
    /// makes no weights, such as a scale that is not finite.
    ///
    /// # Panics
    ///
    /// If there are no such rows, or `into` has another length.
    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()>;
}

/// Panics unless there are such rows and `into` has room for exactly these.
pub(crate) fn assert_fits(matrix: &impl WeightMatrix, rows: &Range<usize>, into: &[u8]) {
    let [out, inputs] = matrix.features();
    assert!(rows.start <= rows.end && rows.end <= out, "there are no rows {rows:?}");
    let length = rows.len() * inputs * matrix.dtype().size();
    assert_eq!(into.len(), length, "the memory is of another size than the rows {rows:?}");
}
