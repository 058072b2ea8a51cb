//! Reads the tensors of an adapter, and products of them, as `f32`.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::{ByteRange, Checkpoint, Tensor};
use crate::error::{Error, Result, quote};
use crate::memory;
use crate::number_format::Dtype;
use crate::simd::{Instructions, LANES};

/// The largest number of bytes of whole tensors that are cached, besides the newest tensor. The cache holds the LoRA
/// matrices A of the layers that are being read: one of rank 64 takes 1 MB where rows are 4096 long.
const CACHED_BYTES: usize = 32 << 20;

/// The tensors of an adapter, with a cache of those that were read whole.
#[derive(Debug)]
pub(super) struct FactorStore {
    pub(super) checkpoint: Arc<Checkpoint>,
    /// The tensors that were read whole last, the newest first.
    cache: Mutex<VecDeque<(String, Arc<[f32]>)>>,
}

impl FactorStore {
    pub(super) fn new(checkpoint: Checkpoint) -> Self {
        Self { checkpoint: Arc::new(checkpoint), cache: Mutex::default() }
    }

    /// Reads a whole tensor, or takes it from the cache.
    fn read_whole(&self, name: &str) -> Result<Arc<[f32]>> {
        // Threads that need the same tensor wait for the lock instead of reading it as well.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = cache.iter().position(|(other, _)| other == name) {
            return Ok(cache[place].1.clone());
        }
        let tensor = self.tensor(name)?;
        let entries = tensor.shape.iter().product();
        let matrix: Arc<[f32]> = self.read(name, tensor, 0..entries)?.into();
        cache.push_front((name.to_owned(), matrix.clone()));
        let mut bytes = 0;
        let enough = cache.iter().position(|(_, matrix)| {
            bytes += matrix.len() * size_of::<f32>();
            bytes > CACHED_BYTES
        });
        cache.truncate(enough.map_or(usize::MAX, |first| first.max(1)));
        Ok(matrix)
    }

    /// Reads these entries of a tensor, all of which have to be finite.
    fn read(&self, name: &str, tensor: &Tensor, entries: Range<usize>) -> Result<Vec<f32>> {
        let dtype = self.dtype(name, tensor)?;
        let refusal = |error| Error::io(self.checkpoint.path(), error);
        let mut bytes = memory::zeros(entries.len().saturating_mul(dtype.size())).map_err(refusal)?;
        self.checkpoint.read_at(tensor, (entries.start * dtype.size()) as u64, &mut bytes)?;
        let mut numbers: Vec<f32> = memory::zeros(entries.len()).map_err(refusal)?;
        dtype.decode(&bytes, &mut numbers);
        match numbers.iter().position(|number| !number.is_finite()) {
            None => Ok(numbers),
            Some(place) => Err(Error::weights(
                self.checkpoint.path(),
                format!(
                    "tensor {} holds {} at its entry {}; every weight has to be finite",
                    quote(name),
                    numbers[place],
                    entries.start + place
                ),
            )),
        }
    }

    pub(super) fn refusal(&self, problem: impl Into<String>) -> Error {
        Error::checkpoint(self.checkpoint.path(), problem)
    }

    /// The range of the file that holds a tensor, if there is one of that name.
    pub(super) fn whole(&self, name: &str) -> Option<ByteRange<'_>> {
        let tensor = self.checkpoint.tensor(name)?;
        ByteRange::new(&self.checkpoint, tensor, 0, usize::try_from(tensor.length).ok()?)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.checkpoint.tensor(name).ok_or_else(|| self.refusal(format!("tensor {} is missing", quote(name))))
    }

    fn dtype(&self, name: &str, tensor: &Tensor) -> Result<Dtype> {
        Dtype::from_stored(tensor.dtype).ok_or_else(|| {
            self.refusal(format!(
                "tensor {} is stored as {}; expected F16, BF16, F32 or F64",
                quote(name),
                tensor.dtype
            ))
        })
    }
}

/// A factor, or the product of two factors.
#[derive(Debug)]
pub(super) enum FactorMatrix {
    Stored(FactorTensor),
    Product(FactorTensor, FactorTensor),
}

/// A matrix that is a tensor of the adapter.
#[derive(Debug)]
pub(super) struct FactorTensor {
    pub(super) name: String,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl FactorTensor {
    pub(super) fn read_rows(&self, factors: &FactorStore, rows: Range<usize>) -> Result<Vec<f32>> {
        let tensor = factors.tensor(&self.name)?;
        factors.read(&self.name, tensor, rows.start * self.columns..rows.end * self.columns)
    }

    pub(super) fn read(&self, factors: &FactorStore) -> Result<Arc<[f32]>> {
        factors.read_whole(&self.name)
    }
}

impl FactorMatrix {
    /// The tensors that it is made of.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &FactorTensor> {
        let (first, second) = match self {
            Self::Stored(tensor) => (tensor, None),
            Self::Product(left, right) => (left, Some(right)),
        };
        std::iter::once(first).chain(second)
    }

    pub(super) fn rows(&self) -> usize {
        let (Self::Stored(left) | Self::Product(left, _)) = self;
        left.rows
    }

    pub(super) fn columns(&self) -> usize {
        let (Self::Stored(right) | Self::Product(_, right)) = self;
        right.columns
    }

    /// Reads these rows, one after the other.
    pub(super) fn read_rows(&self, factors: &FactorStore, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Self::Stored(matrix) => matrix.read_rows(factors, rows),
            Self::Product(left, right) => {
                let mut product = vec![0.0; rows.len() * right.columns];
                let (left_rows, right_rows) = (left.read_rows(factors, rows)?, right.read(factors)?);
                multiply(&left_rows, &right_rows, left.columns, right.columns, &mut product);
                Ok(product)
            }
        }
    }
}

/// Sets `product` to `left` x `right`, of [rows, inner] and [inner, columns].
///
/// Every entry is summed in the order of `inner`, so no result depends on which rows are read together.
fn multiply(left: &[f32], right: &[f32], inner: usize, columns: usize, product: &mut [f32]) {
    const WIDTH: usize = 4 * LANES;
    // A copy of a few columns of `right`. Their rows are large powers of two apart, so that without the copy they
    // would evict each other from the processor's cache.
    let mut panel = vec![[0.0_f32; WIDTH]; inner];
    Instructions::best().run_loops(
        #[inline(always)]
        || {
            for from in (0..columns).step_by(WIDTH) {
                let to = columns.min(from + WIDTH);
                for (line, row) in panel.iter_mut().zip(right.chunks_exact(columns)) {
                    line[..to - from].copy_from_slice(&row[from..to]);
                }
                for (factors, product) in left.chunks_exact(inner).zip(product.chunks_exact_mut(columns)) {
                    let mut sums = [0.0_f32; WIDTH];
                    for (factor, line) in factors.iter().zip(&panel) {
                        for (sum, weight) in sums.iter_mut().zip(line) {
                            *sum = factor.mul_add(*weight, *sum);
                        }
                    }
                    product[from..to].copy_from_slice(&sums[..to - from]);
                }
            }
        },
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_whole_tensors_are_cached() {
        let entries = CACHED_BYTES / 10; // 40 % of the cache
        let names = ["a", "b", "c", "d"];
        let zeros = vec![0; entries * 4];
        let view =
            || safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![entries], &zeros).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let bytes = safetensors::serialize(names.map(|name| (name, view())), None).unwrap();
        fs::write(folder.path().join("factors.safetensors"), bytes).unwrap();
        let factors =
            FactorStore::new(Checkpoint::open_file(&folder.path().into(), "factors.safetensors").unwrap());
        for name in names.into_iter().chain(["c"]) {
            assert_eq!(factors.read_whole(name).unwrap().len(), entries);
        }
        let kept: Vec<String> = factors.cache.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(kept, ["d", "c"]);
    }

    proptest! {
        #[test]
        fn products_are_those_of_f64(
            (rows, inner, columns) in (1..4_usize, 1..9_usize, 1..200_usize),
            seed in any::<u32>(),
        ) {
            let number = |place: usize| ((place as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 1e7 - 0.8;
            let left: Vec<f32> = (0..rows * inner).map(number).collect();
            let right: Vec<f32> = (0..inner * columns).map(|place| number(place + 1000)).collect();
            let mut product = vec![0.0; rows * columns];
            multiply(&left, &right, inner, columns, &mut product);
            for row in 0..rows {
                for column in 0..columns {
                    let factors = |k: usize| (left[row * inner + k], right[k * columns + column]);
                    let terms = (0..inner).map(factors).map(|(left, right)| f64::from(left) * f64::from(right));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let found = f64::from(product[row * columns + column]);
                    prop_assert!((found - sum).abs() <= size * 1e-6, "{found} {sum}");
                }
            }
        }
    }
}
