//! Weights that are stored as they are: a tensor of [out, in], or of [in, out].

use std::ops::Range;
use std::sync::Arc;

use crate::attention::{Module, Orientation};
use crate::checkpoint::mapping::View;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::number_format::Dtype;
use crate::weights::{WeightMatrix, assert_fits};

/// A tensor that is the matrix, or the matrix transposed.
#[derive(Debug)]
struct Stored {
    checkpoint: Arc<Checkpoint>,
    tensor: Tensor,
    dtype: Dtype,
    orientation: Orientation,
    /// Of the weights: out, in.
    features: [usize; 2],
}

/// The tensor of a module, which is named as the module or has `.weight` after that, with its name.
pub(crate) fn tensor_name<'c>(checkpoint: &'c Checkpoint, module: &str) -> Option<(&'c str, &'c Tensor)> {
    let find = |name: &str| checkpoint.named_tensor(name);
    find(&format!("{module}.weight")).or_else(|| find(module))
}

/// The weights of a module, if they are stored as they are.
///
/// # Errors
///
/// [`Error::Model`] if there is no such tensor, or if its numbers are not of a floating-point format.
pub(crate) fn open(checkpoint: &Arc<Checkpoint>, module: &Module) -> Result<Box<dyn WeightMatrix>> {
    let path = checkpoint.path();
    let (name, tensor) = tensor_name(checkpoint, &module.name)
        .ok_or_else(|| Error::model(path, format!("tensor {} is missing", module.name)))?;
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
    Ok(Box::new(Stored {
        checkpoint: Arc::clone(checkpoint),
        tensor: tensor.clone(),
        dtype,
        orientation: module.orientation,
        features: [module.out_features, module.in_features],
    }))
}

impl Stored {
    /// Reads from the weight of this place in the file on.
    fn read(&self, weight: u64, into: &mut [u8]) -> Result<()> {
        self.checkpoint.read_at(&self.tensor, weight * self.dtype.size() as u64, into)
    }
}

impl WeightMatrix for Stored {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        rows.len() as u64 * self.features[1] as u64 * self.dtype.size() as u64
    }

    fn is_scattered(&self) -> bool {
        self.orientation == Orientation::InOut
    }

    fn view_rows(&self, rows: Range<usize>) -> Option<View<'_>> {
        if self.orientation == Orientation::InOut {
            return None;
        }
        let row = self.features[1] * self.dtype.size();
        self.checkpoint.view(&self.tensor, rows.start as u64 * row as u64, rows.len() * row)
    }

    /// Of a matrix that is stored transposed, reads the piece that these rows have in every stored row, in the order
    /// of the file.
    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let ([out, inputs], size) = (self.features, self.dtype.size());
        assert_fits(self, &rows, into);
        if self.orientation == Orientation::OutIn {
            return self.read(rows.start as u64 * inputs as u64, into);
        }
        scratch.resize(rows.len() * size, 0);
        for column in 0..inputs {
            self.read(column as u64 * out as u64 + rows.start as u64, scratch)?;
            for (row, weight) in scratch.chunks_exact(size).enumerate() {
                let place = (row * inputs + column) * size;
                into[place..place + size].copy_from_slice(weight);
            }
        }
        Ok(())
    }
}
