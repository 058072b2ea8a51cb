//! Reads one tensor of a quantised module, once its format and shape are checked.

use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::{ByteRange, Checkpoint, Tensor};
use crate::error::{Error, Result, quote};
use crate::number_format::CodeFormat;

/// A tensor with the checkpoint that it is in.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    checkpoint: Arc<Checkpoint>,
    name: String,
    tensor: Tensor,
}

impl StoredTensor {
    /// The tensor of that name, if there is one.
    pub(super) fn find(checkpoint: &Arc<Checkpoint>, name: String) -> Option<Self> {
        let tensor = checkpoint.tensor(&name)?.clone();
        Some(Self { checkpoint: Arc::clone(checkpoint), name, tensor })
    }

    pub(super) fn dtype(&self) -> safetensors::Dtype {
        self.tensor.dtype
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    /// The number of bytes of the tensor.
    pub(super) fn length(&self) -> u64 {
        self.tensor.length
    }

    /// The error of a problem with the tensor.
    pub(super) fn refusal(&self, problem: impl AsRef<str>) -> Error {
        let problem = format!("tensor {} {}", quote(&self.name), problem.as_ref());
        Error::checkpoint(self.checkpoint.file_of(&self.tensor), problem)
    }

    /// The rows and columns of a matrix with at least one entry.
    pub(super) fn matrix(&self) -> Result<[usize; 2]> {
        match *self.shape() {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => Err(self.refusal(format!(
                "should be a matrix with at least one entry, but has the shape {:?}",
                self.shape()
            ))),
        }
    }

    /// Refuses the tensor unless it has this format and this shape, which `reason` explains.
    pub(super) fn check(&self, dtype: safetensors::Dtype, shape: &[usize], reason: &str) -> Result<()> {
        self.check_dtype(dtype)?;
        self.check_shape(shape, reason)
    }

    /// Refuses the tensor unless it is stored in this format.
    pub(super) fn check_dtype(&self, expected: safetensors::Dtype) -> Result<()> {
        if self.dtype() == expected {
            return Ok(());
        }
        Err(self.refusal(format!("should be stored as {expected}, but is stored as {}", self.dtype())))
    }

    /// Refuses the tensor unless it has this shape, which `reason` explains.
    pub(super) fn check_shape(&self, expected: &[usize], reason: &str) -> Result<()> {
        if self.shape() == expected {
            return Ok(());
        }
        let found = self.shape();
        Err(self
            .refusal(format!("should have the shape {expected:?} ({reason}), but has the shape {found:?}")))
    }

    /// The format of a tensor of scales.
    pub(super) fn scale_format(&self) -> Result<CodeFormat> {
        CodeFormat::of_scales(self.dtype()).ok_or_else(|| {
            self.refusal(format!(
                "should hold scales, stored as F32, F16, BF16, F8_E4M3, F8_E5M2, F8_E8M0 or U8, but is stored \
                 as {}",
                self.dtype()
            ))
        })
    }

    /// Reads the bytes from `offset` on, as many as `into` holds.
    /// The range of the file that holds all of it.
    pub(super) fn whole(&self) -> Option<ByteRange<'_>> {
        ByteRange::new(&self.checkpoint, &self.tensor, 0, usize::try_from(self.tensor.length).ok()?)
    }

    /// The range of the file that holds some of its bytes, as far as it has them.
    pub(super) fn bytes(&self, bytes: Range<usize>) -> Option<ByteRange<'_>> {
        ByteRange::new(&self.checkpoint, &self.tensor, bytes.start as u64, bytes.len())
    }

    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.checkpoint.read_at(&self.tensor, offset, into)
    }

    /// Reads all bytes of a small tensor.
    pub(super) fn read_small(&self) -> Result<Vec<u8>> {
        const LARGEST: u64 = 64 << 10;
        if self.length() > LARGEST {
            let problem = format!("should have at most {LARGEST} bytes, but has {}", self.length());
            return Err(self.refusal(problem));
        }
        let mut bytes = vec![0; self.length() as usize];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads these scales, all of which have to be finite.
    pub(super) fn read_scales(&self, range: Range<usize>, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        self.read_finite(self.scale_format()?, range, scratch, "scale")
    }

    /// Reads these numbers, all of which have to be finite.
    pub(super) fn read_finite(
        &self,
        format: CodeFormat,
        range: Range<usize>,
        scratch: &mut Vec<u8>,
        what: &str,
    ) -> Result<Vec<f32>> {
        scratch.resize(range.len() * format.size(), 0);
        self.read_at((range.start * format.size()) as u64, scratch)?;
        let mut numbers = vec![0.0; range.len()];
        format.decode(scratch, &mut numbers);
        match numbers.iter().position(|number| !number.is_finite()) {
            None => Ok(numbers),
            Some(place) => Err(self.refusal(format!(
                "holds {} at entry {}; every {what} has to be finite",
                numbers[place],
                range.start + place
            ))),
        }
    }

    /// Reads these 32-bit words and appends them to `into`.
    pub(super) fn read_words(
        &self,
        range: Range<usize>,
        scratch: &mut Vec<u8>,
        into: &mut Vec<u32>,
    ) -> Result<()> {
        scratch.resize(range.len() * 4, 0);
        self.read_at(range.start as u64 * 4, scratch)?;
        let words = scratch.as_chunks::<4>().0;
        into.extend(words.iter().map(|word| u32::from_le_bytes(*word)));
        Ok(())
    }
}
