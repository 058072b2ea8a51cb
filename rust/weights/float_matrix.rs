//! Weights stored as floating-point numbers: a tensor of [out, in], or of [in, out].

use std::ops::Range;
use std::sync::Arc;

use crate::attention::{Orientation, Projection};
use crate::checkpoint::{ByteRange, Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::memory;
use crate::number_format::Dtype;
use crate::weights::{WeightMatrix, assert_fits};

/// A tensor that is the weight matrix, or its transpose.
#[derive(Debug)]
struct FloatMatrix {
    checkpoint: Arc<Checkpoint>,
    tensor: Tensor,
    dtype: Dtype,
    orientation: Orientation,
    /// Out features, in features.
    features: [usize; 2],
}

/// The tensor of a module and its name, which is that of the module, with or without `.weight` after it.
pub(crate) fn find_tensor<'c>(checkpoint: &'c Checkpoint, module: &str) -> Option<(&'c str, &'c Tensor)> {
    let find = |name: &str| checkpoint.named_tensor(name);
    find(&format!("{module}.weight")).or_else(|| find(module))
}

/// Opens the weights of a projection.
///
/// # Errors
///
/// [`Error::Model`] if there is no such tensor, or if its numbers are not of a floating-point format.
pub(crate) fn open(checkpoint: &Arc<Checkpoint>, projection: &Projection) -> Result<Box<dyn WeightMatrix>> {
    let path = checkpoint.path();
    let (name, tensor) = find_tensor(checkpoint, &projection.name)
        .ok_or_else(|| Error::model(path, format!("tensor {} is missing", projection.name)))?;
    let Some(dtype) = Dtype::from_stored(tensor.dtype) else {
        return Err(Error::model(
            path,
            format!(
                "tensor {name} is stored as {}; expected F16, BF16, F32 or F64. Quantised weights have to be \
                 dequantised first",
                tensor.dtype
            ),
        ));
    };
    Ok(Box::new(FloatMatrix {
        checkpoint: Arc::clone(checkpoint),
        tensor: tensor.clone(),
        dtype,
        orientation: projection.orientation,
        features: [projection.out_features, projection.in_features],
    }))
}

impl FloatMatrix {
    /// Reads from the weight at `position` of the tensor on.
    fn read(&self, position: u64, into: &mut [u8]) -> Result<()> {
        self.checkpoint.read_at(&self.tensor, position * self.dtype.size() as u64, into)
    }
}

impl WeightMatrix for FloatMatrix {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        rows.len() as u64 * self.features[1] as u64 * self.dtype.size() as u64
    }

    fn covering_ranges(&self, rows: Range<usize>) -> Vec<ByteRange<'_>> {
        let ([out, inputs], size) = (self.features, self.dtype.size());
        let range = match self.orientation {
            Orientation::OutIn => self.stored_range(rows),
            Orientation::InOut => {
                let end = (inputs - 1) * out + rows.end;
                let (first, length) = (rows.start * size, (end - rows.start) * size);
                ByteRange::new(&self.checkpoint, &self.tensor, first as u64, length)
            }
        };
        range.into_iter().collect()
    }

    fn is_scattered(&self) -> bool {
        self.orientation == Orientation::InOut
    }

    fn stored_range(&self, rows: Range<usize>) -> Option<ByteRange<'_>> {
        if self.is_scattered() {
            return None;
        }
        let row = self.features[1] * self.dtype.size();
        ByteRange::new(&self.checkpoint, &self.tensor, rows.start as u64 * row as u64, rows.len() * row)
    }

    /// Reads the piece of every stored row that belongs to these rows, in file order, if the matrix is stored
    /// transposed.
    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let ([out, inputs], size) = (self.features, self.dtype.size());
        assert_fits(self, &rows, into);
        if !self.is_scattered() {
            return self.read(rows.start as u64 * inputs as u64, into);
        }
        let wanted = rows.len() * size;
        memory::reserve(scratch, wanted.saturating_sub(scratch.len()))
            .map_err(|error| Error::io(self.checkpoint.path(), error))?;
        scratch.resize(wanted, 0);
        for column in 0..inputs {
            self.read(column as u64 * out as u64 + rows.start as u64, scratch)?;
            for (row, weight) in scratch.chunks_exact(size).enumerate() {
                let start = (row * inputs + column) * size;
                into[start..start + size].copy_from_slice(weight);
            }
        }
        Ok(())
    }
}
