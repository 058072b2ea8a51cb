//! The weight vector theta of a head, or of one matrix of a head, in both checkpoints.

use std::ops::Range;

use super::block::{BLOCK, Block, DecodedBlock};
use crate::number_format::Dtype;
use crate::simd::real::Real;

/// Weights as a checkpoint stores them: little-endian, row after row of a matrix in [out, in] order.
#[derive(Clone, Copy, Debug)]
pub struct StoredWeights<'a> {
    /// The format of one weight.
    pub dtype: Dtype,
    /// The encoded weights.
    pub bytes: &'a [u8],
}

/// theta_B and theta_T.
#[derive(Clone, Copy, Debug)]
pub enum WeightVector<'a> {
    /// Weights that both checkpoints store.
    Stored {
        /// theta_B.
        base: StoredWeights<'a>,
        /// theta_T.
        tuned: StoredWeights<'a>,
    },
    /// Numbers computed in `f64`.
    F64 {
        /// theta_B.
        base: &'a [f64],
        /// theta_T - theta_B, known more precisely than by subtraction.
        delta: &'a [f64],
    },
    /// Numbers computed in `f32`.
    F32 {
        /// theta_B.
        base: &'a [f32],
        /// theta_T - theta_B, known more precisely than by subtraction.
        delta: &'a [f32],
    },
}

impl StoredWeights<'_> {
    pub(crate) fn entries(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Decodes these entries into `numbers`.
    #[inline(always)]
    pub(crate) fn decode<R: Real>(&self, entries: Range<usize>, numbers: &mut [R]) {
        let size = self.dtype.size();
        self.dtype.decode(&self.bytes[entries.start * size..entries.end * size], numbers);
    }

    /// Decodes one entry.
    pub fn entry(&self, entry: usize) -> f64 {
        let mut value = [0.0];
        self.decode(entry..entry + 1, &mut value);
        value[0]
    }

    fn block(&self, block: usize) -> &[u8] {
        let size = self.dtype.size();
        let start = block * BLOCK * size;
        &self.bytes[start..self.bytes.len().min(start + BLOCK * size)]
    }
}

impl WeightVector<'_> {
    /// The number of entries.
    pub fn entries(&self) -> usize {
        match self {
            Self::Stored { base, .. } => base.entries(),
            Self::F64 { base, .. } => base.len(),
            Self::F32 { base, .. } => base.len(),
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.entries().div_ceil(BLOCK)
    }

    /// The entries of a block that exist: [`BLOCK`] in all blocks but the last.
    #[inline(always)]
    pub(crate) fn entries_of(&self, block: usize) -> usize {
        (self.entries() - block * BLOCK).min(BLOCK)
    }

    /// Whether `f32` holds every stored weight exactly.
    #[inline(always)]
    pub(crate) fn fits_f32(&self) -> bool {
        match self {
            Self::Stored { base, tuned } => base.dtype != Dtype::F64 && tuned.dtype != Dtype::F64,
            Self::F64 { .. } => false,
            Self::F32 { .. } => true,
        }
    }

    /// The bytes of a block, if both checkpoints store this format.
    #[inline]
    pub(crate) fn stored_block(&self, block: usize, dtype: Dtype) -> Option<[&[u8]; 2]> {
        match self {
            Self::Stored { base, tuned } if base.dtype == dtype && tuned.dtype == dtype => {
                Some([base.block(block), tuned.block(block)])
            }
            _ => None,
        }
    }

    /// A whole block that was computed in `f32`.
    pub(crate) fn f32_block(&self, block: usize) -> Option<DecodedBlock<'_, f32>> {
        let Self::F32 { base, delta } = self else { return None };
        let block = block * BLOCK..(block + 1) * BLOCK;
        let base = base.get(block.clone())?.try_into().ok()?;
        Some(DecodedBlock { base, delta: delta.get(block)?.try_into().ok()? })
    }

    /// Decodes theta_B and theta_T - theta_B of one block.
    #[inline(always)]
    pub(crate) fn decode_block<R: Real>(&self, block: usize, base: &mut Block<R>, delta: &mut Block<R>) {
        let valid = self.entries_of(block);
        let entries = block * BLOCK..block * BLOCK + valid;
        match self {
            Self::Stored { base: stored, tuned } => {
                let keep_base = |number: &mut R, weight| *number = weight;
                stored.dtype.decode_with::<R, _, BLOCK>(stored.block(block), base.iter_mut(), keep_base);
                let keep_delta = |(delta, base): (&mut R, &R), weight| *delta = weight - *base;
                let places = delta.iter_mut().zip(&*base);
                tuned.dtype.decode_with::<R, _, BLOCK>(tuned.block(block), places, keep_delta);
            }
            Self::F64 { base: numbers, delta: deltas } => {
                convert(&numbers[entries.clone()], base);
                convert(&deltas[entries], delta);
            }
            Self::F32 { base: numbers, delta: deltas } => {
                convert(&numbers[entries.clone()], base);
                convert(&deltas[entries], delta);
            }
        }
        if valid < BLOCK {
            base[valid..].fill(R::default());
            delta[valid..].fill(R::default());
        }
    }
}

#[inline(always)]
fn convert<From: Real, To: Real>(numbers: &[From], converted: &mut [To]) {
    for (number, converted) in numbers.iter().zip(converted) {
        *converted = To::from_f64(number.to_f64());
    }
}

/// Calls `visit(theta_B, theta_T - theta_B)` for every entry.
pub(crate) fn for_each_entry(vectors: &[WeightVector], mut visit: impl FnMut(f64, f64)) {
    let (mut base, mut delta): (Block<f64>, Block<f64>) = ([0.0; BLOCK], [0.0; BLOCK]);
    for vector in vectors {
        for block in 0..vector.blocks() {
            vector.decode_block(block, &mut base, &mut delta);
            for (base, delta) in base.iter().zip(&delta).take(vector.entries_of(block)) {
                visit(*base, *delta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_is_filled_with_zeros() {
        let weights: Vec<f32> = (0..BLOCK + 3).map(|entry| entry as f32 + 1.0).collect();
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let stored = StoredWeights { dtype: Dtype::F32, bytes: &bytes };
        let vector = WeightVector::Stored { base: stored, tuned: stored };
        let (mut base, mut delta) = ([f64::NAN; BLOCK], [f64::NAN; BLOCK]);
        vector.decode_block(1, &mut base, &mut delta);
        assert_eq!(vector.entries_of(1), 3);
        let first = BLOCK as f64 + 1.0;
        assert_eq!(base[..4], [first, first + 1.0, first + 2.0, 0.0]);
        assert!(base[3..].iter().chain(&delta).all(|value| *value == 0.0));
    }
}
