//! One stretch of a head's weight vector, as both checkpoints have it.

use std::ops::Range;

use super::real::Real;
use crate::dtype::Dtype;
use crate::vector::LANES;

/// Entries that are summed in the kernel's own width before they join the `f64` sums, and the grain of
/// [`super::transport`]. Blocks start with the part, so no result depends on how a file was read.
pub(crate) const BLOCK: usize = 8 * LANES;

/// The entries of one block in lanes; those past the end of the part are 0.
pub(crate) type Block<R> = [R; BLOCK];

/// Weights as they are stored: little-endian, row after row of the matrix in [out, in] order.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// The format of one weight.
    pub dtype: Dtype,
    /// The weights.
    pub bytes: &'a [u8],
}

/// One stretch of a head's weight vector theta.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// The weights of both sides.
    Stored {
        /// theta_B.
        base: Stored<'a>,
        /// theta_T.
        tuned: Stored<'a>,
    },
    /// Computed numbers.
    Computed {
        /// theta_B.
        base: &'a [f64],
        /// theta_T - theta_B, known more precisely than the two subtracted.
        delta: &'a [f64],
    },
}

impl Stored<'_> {
    pub(crate) fn entries(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Appends the entries `entries`, exactly.
    pub(crate) fn decode_into(&self, entries: Range<usize>, out: &mut Vec<f64>) {
        let size = self.dtype.size();
        let bytes = &self.bytes[entries.start * size..entries.end * size];
        match self.dtype {
            Dtype::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| f16(*b) as f64)),
            Dtype::BF16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16(*b) as f64)),
            Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64)),
            Dtype::F64 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b))),
        }
    }

    /// One entry.
    pub fn entry(&self, entry: usize) -> f64 {
        let mut value = Vec::with_capacity(1);
        self.decode_into(entry..entry + 1, &mut value);
        value[0]
    }

    /// Decodes one block. `F64` is rounded where `R` is `f32`; every other conversion is exact.
    #[inline(always)]
    fn decode<R: Real>(&self, block: usize, out: &mut Block<R>) {
        let size = self.dtype.size();
        let start = block * BLOCK * size;
        let bytes = &self.bytes[start..self.bytes.len().min(start + BLOCK * size)];
        match self.dtype {
            Dtype::F16 => decode_as(bytes, out, |b| R::of(f16(b) as f64)),
            Dtype::BF16 => decode_as(bytes, out, |b| R::of(bf16(b) as f64)),
            Dtype::F32 => decode_as(bytes, out, |b| R::of(f32::from_le_bytes(b) as f64)),
            Dtype::F64 => decode_as(bytes, out, |b| R::of(f64::from_le_bytes(b))),
        }
    }
}

#[inline(always)]
fn decode_as<R: Real, const SIZE: usize>(bytes: &[u8], out: &mut Block<R>, decode: impl Fn([u8; SIZE]) -> R) {
    let (weights, _) = bytes.as_chunks::<SIZE>();
    match <&[[u8; SIZE]; BLOCK]>::try_from(weights) {
        Ok(weights) => {
            for (out, weight) in out.iter_mut().zip(weights) {
                *out = decode(*weight);
            }
        }
        Err(_) => {
            *out = [R::default(); BLOCK];
            for (out, weight) in out.iter_mut().zip(weights) {
                *out = decode(*weight);
            }
        }
    }
}

#[inline(always)]
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Exact, and made of operations that vectorise: the exponent is rebiased by a multiplication, which
/// also normalises the denormals.
#[inline(always)]
fn f16(bytes: [u8; 2]) -> f32 {
    let half = u16::from_le_bytes(bytes);
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23); // 2^(127 - 15)
    let magnitude = u32::from(half & 0x7fff) << 13;
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    let value = f32::from_bits(magnitude) * REBIAS;
    f32::from_bits(value.to_bits() | special | (u32::from(half & 0x8000) << 16))
}

impl Part<'_> {
    /// How many entries of theta the part has.
    pub fn entries(&self) -> usize {
        match self {
            Part::Stored { base, .. } => base.entries(),
            Part::Computed { base, .. } => base.len(),
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.entries().div_ceil(BLOCK)
    }

    /// How many entries of the block exist: [`BLOCK`] but for the last.
    #[inline(always)]
    pub(crate) fn entries_of(&self, block: usize) -> usize {
        (self.entries() - block * BLOCK).min(BLOCK)
    }

    /// Whether [`Part::load_narrow`] would lose nothing.
    #[inline(always)]
    pub(crate) fn fits_f32(&self) -> bool {
        match self {
            Part::Stored { base, tuned } => base.dtype != Dtype::F64 && tuned.dtype != Dtype::F64,
            Part::Computed { .. } => false,
        }
    }

    /// theta_B and theta_T - theta_B of one block.
    #[inline(always)]
    pub(crate) fn load<R: Real>(&self, block: usize, base: &mut Block<R>, delta: &mut Block<R>) {
        match self {
            Part::Stored { base: stored_base, tuned } => {
                stored_base.decode(block, base);
                tuned.decode(block, delta);
                for (delta, base) in delta.iter_mut().zip(base.iter()) {
                    *delta = *delta - *base;
                }
            }
            Part::Computed { base: from, delta: delta_from } => {
                let entries = block * BLOCK..block * BLOCK + self.entries_of(block);
                *base = [R::default(); BLOCK];
                *delta = [R::default(); BLOCK];
                for (out, value) in base.iter_mut().zip(&from[entries.clone()]) {
                    *out = R::of(*value);
                }
                for (out, value) in delta.iter_mut().zip(&delta_from[entries]) {
                    *out = R::of(*value);
                }
            }
        }
    }
}
