//! Weights that are stored as they are: a tensor of [out, in], or of [in, out].

use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::model::{Module, Orientation};

/// A tensor whose rows are the matrix's, one after the other.
#[derive(Debug)]
struct Rows(Stored);

/// A tensor whose columns are the matrix's rows.
#[derive(Debug)]
struct Columns(Stored);

#[derive(Debug)]
struct Stored {
    checkpoint: Arc<Checkpoint>,
    tensor: Tensor,
    dtype: Dtype,
    out_features: usize,
    in_features: usize,
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
pub(crate) fn open(checkpoint: &Arc<Checkpoint>, module: &Module) -> Result<Box<dyn Linear>> {
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
    let stored = Stored {
        checkpoint: Arc::clone(checkpoint),
        tensor: tensor.clone(),
        dtype,
        out_features: module.out_features,
        in_features: module.in_features,
    };
    Ok(match module.orientation {
        Orientation::OutIn => Box::new(Rows(stored)),
        Orientation::InOut => Box::new(Columns(stored)),
    })
}

impl Stored {
    /// Reads from the weight of this place in the file on.
    fn read(&self, weight: u64, into: &mut [u8]) -> Result<()> {
        self.checkpoint.read_at(&self.tensor, weight * self.dtype.size() as u64, into)
    }

    fn bytes(&self, rows: &Range<usize>) -> u64 {
        rows.len() as u64 * self.in_features as u64 * self.dtype.size() as u64
    }

    fn assert_fits(&self, rows: &Range<usize>, into: &[u8]) {
        assert!(rows.start <= rows.end && rows.end <= self.out_features, "there are no rows {rows:?}");
        assert_eq!(
            into.len() as u64,
            self.bytes(rows),
            "the memory is of another size than the rows {rows:?}"
        );
    }
}

impl Linear for Rows {
    fn out_features(&self) -> usize {
        self.0.out_features
    }

    fn in_features(&self) -> usize {
        self.0.in_features
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        self.0.bytes(&rows)
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], _scratch: &mut Vec<u8>) -> Result<()> {
        self.0.assert_fits(&rows, into);
        self.0.read(rows.start as u64 * self.0.in_features as u64, into)
    }
}

impl Linear for Columns {
    fn out_features(&self) -> usize {
        self.0.out_features
    }

    fn in_features(&self) -> usize {
        self.0.in_features
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        self.0.bytes(&rows)
    }

    /// Reads, of every stored row, the piece that these columns have in it, in the order of the file.
    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let Stored { dtype, out_features, in_features, .. } = self.0;
        self.0.assert_fits(&rows, into);
        let size = dtype.size();
        scratch.resize(rows.len() * size, 0);
        for column in 0..in_features {
            self.0.read(column as u64 * out_features as u64 + rows.start as u64, scratch)?;
            for (row, weight) in scratch.chunks_exact(size).enumerate() {
                let place = (row * in_features + column) * size;
                into[place..place + size].copy_from_slice(weight);
            }
        }
        Ok(())
    }
}
