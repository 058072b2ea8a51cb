//! One stretch of a head's weight vector, as both checkpoints have it.

use std::ops::Range;

use crate::number_format::Dtype;
use crate::simd::lanes::{Lanes, Narrow};
use crate::simd::real::Real;
use crate::simd::{LANES, Vectors};

/// Entries that are decoded and summed together, in one way, before the sums go on in `f64`. Blocks start
/// with the part, so no result depends on how a file was read.
pub(crate) const BLOCK: usize = 8 * SEGMENT;

/// The grain of [`super::wasserstein`].
pub(crate) const SEGMENT: usize = 16 * LANES;

/// The entries of one block; those past the end of the part are 0.
pub(crate) type Block<R> = [R; BLOCK];

/// Weights as they are stored: little-endian, row after row of the matrix in [out, in] order.
#[derive(Clone, Copy, Debug)]
pub struct StoredWeights<'a> {
    /// The format of one weight.
    pub dtype: Dtype,
    /// The weights.
    pub bytes: &'a [u8],
}

/// One stretch of a head's weight vector theta.
#[derive(Clone, Copy, Debug)]
pub enum WeightVector<'a> {
    /// The weights of both sides.
    Stored {
        /// theta_B.
        base: StoredWeights<'a>,
        /// theta_T.
        tuned: StoredWeights<'a>,
    },
    /// Computed numbers.
    F64 {
        /// theta_B.
        base: &'a [f64],
        /// theta_T - theta_B, known more precisely than the two subtracted.
        delta: &'a [f64],
    },
    /// Numbers computed in `f32`.
    F32 {
        /// theta_B.
        base: &'a [f32],
        /// theta_T - theta_B, known more precisely than the two subtracted.
        delta: &'a [f32],
    },
}

impl StoredWeights<'_> {
    pub(crate) fn entries(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Decodes these entries into `numbers`.
    #[inline(always)]
    pub(crate) fn decode_into<R: Real>(&self, entries: Range<usize>, numbers: &mut [R]) {
        let size = self.dtype.size();
        self.dtype.decode(&self.bytes[entries.start * size..entries.end * size], numbers);
    }

    /// One entry.
    pub fn entry(&self, entry: usize) -> f64 {
        let mut value = [0.0];
        self.decode_into(entry..entry + 1, &mut value);
        value[0]
    }

    fn block(&self, block: usize) -> &[u8] {
        let size = self.dtype.size();
        let start = block * BLOCK * size;
        &self.bytes[start..self.bytes.len().min(start + BLOCK * size)]
    }
}

impl WeightVector<'_> {
    /// How many entries of theta the part has.
    pub fn entries(&self) -> usize {
        match self {
            WeightVector::Stored { base, .. } => base.entries(),
            WeightVector::F64 { base, .. } => base.len(),
            WeightVector::F32 { base, .. } => base.len(),
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

    /// Whether [`WeightVector::load`] into `f32` loses nothing that is stored.
    #[inline(always)]
    pub(crate) fn fits_f32(&self) -> bool {
        match self {
            WeightVector::Stored { base, tuned } => base.dtype != Dtype::F64 && tuned.dtype != Dtype::F64,
            WeightVector::F64 { .. } => false,
            WeightVector::F32 { .. } => true,
        }
    }

    /// A whole block as it is stored, if both sides are `BF16`.
    pub(crate) fn bf16(&self, block: usize) -> Option<Bf16<'_>> {
        match self {
            WeightVector::Stored { base, tuned }
                if base.dtype == Dtype::BF16 && tuned.dtype == Dtype::BF16 =>
            {
                Some(Bf16 {
                    base: base.block(block).as_chunks().0.try_into().ok()?,
                    tuned: tuned.block(block).as_chunks().0.try_into().ok()?,
                })
            }
            _ => None,
        }
    }

    /// A whole block that is there in `f32`.
    pub(crate) fn narrow(&self, block: usize) -> Option<Decoded<'_, f32>> {
        let WeightVector::F32 { base, delta } = self else { return None };
        let block = block * BLOCK..(block + 1) * BLOCK;
        let base = base.get(block.clone())?.try_into().ok()?;
        Some(Decoded { base, delta: delta.get(block)?.try_into().ok()? })
    }

    /// theta_B and theta_T - theta_B of one block.
    #[inline(always)]
    pub(crate) fn load<R: Real>(&self, block: usize, base: &mut Block<R>, delta: &mut Block<R>) {
        let valid = self.entries_of(block);
        match self {
            WeightVector::Stored { base: from, tuned } => {
                from.dtype.decode(from.block(block), base);
                let places = delta.iter_mut().zip(&*base);
                tuned.dtype.decode_with(tuned.block(block), places, |(delta, base), weight: R| {
                    *delta = weight - *base;
                });
            }
            WeightVector::F64 { base: from, delta: delta_from } => {
                for entry in 0..valid {
                    base[entry] = R::of(from[block * BLOCK + entry]);
                    delta[entry] = R::of(delta_from[block * BLOCK + entry]);
                }
            }
            WeightVector::F32 { base: from, delta: delta_from } => {
                for entry in 0..valid {
                    base[entry] = R::of(from[block * BLOCK + entry].into());
                    delta[entry] = R::of(delta_from[block * BLOCK + entry].into());
                }
            }
        }
        if valid < BLOCK {
            base[valid..].fill(R::default());
            delta[valid..].fill(R::default());
        }
    }
}

/// Entries that a kernel takes at a time: two vectors, of the even and of the odd ones, since that is how a
/// word of two 16-bit weights comes apart.
pub(crate) const PAIR: usize = 2 * LANES;

/// The pairs of vectors in a segment.
pub(crate) const PAIRS: usize = SEGMENT / PAIR;

/// Entries of both sides.
#[derive(Clone, Copy)]
pub(crate) struct Entries<N> {
    /// theta_B.
    pub(crate) base: N,
    /// theta_T - theta_B.
    pub(crate) delta: N,
    /// theta_B + theta_T.
    pub(crate) sum: N,
}

/// Both sides of a whole block, [`PAIR`] entries at a time.
pub(crate) trait Pairs<R: Real>: Copy {
    /// The even and the odd entries from `PAIR * index` on.
    fn load<S: Vectors>(self, simd: S, index: usize) -> [Entries<R::Lanes<S>>; 2];
}

/// Numbers that were decoded before.
#[derive(Clone, Copy)]
pub(crate) struct Decoded<'a, R> {
    pub(crate) base: &'a Block<R>,
    pub(crate) delta: &'a Block<R>,
}

impl<R: Real> Pairs<R> for Decoded<'_, R> {
    #[inline(always)]
    fn load<S: Vectors>(self, simd: S, index: usize) -> [Entries<R::Lanes<S>>; 2] {
        let (base, delta) =
            (&self.base.as_chunks::<PAIR>().0[index], &self.delta.as_chunks::<PAIR>().0[index]);
        [entries(simd, base, delta, 0), entries(simd, base, delta, 1)]
    }
}

#[inline(always)]
fn entries<N: Lanes>(
    simd: N::Vectors,
    base: &[N::Number; PAIR],
    delta: &[N::Number; PAIR],
    odd: usize,
) -> Entries<N> {
    let (base, delta) = (every_other(simd, base, odd), every_other(simd, delta, odd));
    Entries { base, delta, sum: base.mul_add(base.constant(2.0), delta) }
}

#[inline(always)]
fn every_other<N: Lanes>(simd: N::Vectors, numbers: &[N::Number; PAIR], odd: usize) -> N {
    let mut lanes = [N::Number::default(); LANES];
    for (lane, number) in lanes.iter_mut().enumerate() {
        *number = numbers[2 * lane + odd];
    }
    N::load(simd, &lanes)
}

/// Weights that are both stored as `BF16`, which takes so little to decode that it is done on the way.
#[derive(Clone, Copy)]
pub(crate) struct Bf16<'a> {
    base: &'a [[u8; 4]; BLOCK / 2],
    tuned: &'a [[u8; 4]; BLOCK / 2],
}

impl Pairs<f32> for Bf16<'_> {
    #[inline(always)]
    fn load<S: Vectors>(self, simd: S, index: usize) -> [Entries<Narrow<S>>; 2] {
        let [base_even, base_odd] = widen(simd, self.base, index);
        let [tuned_even, tuned_odd] = widen(simd, self.tuned, index);
        [
            Entries { base: base_even, delta: tuned_even - base_even, sum: tuned_even + base_even },
            Entries { base: base_odd, delta: tuned_odd - base_odd, sum: tuned_odd + base_odd },
        ]
    }
}

/// The first weight of a word is the lower half of its bits; a `BF16` is the upper half of an `f32`.
#[inline(always)]
fn widen<S: Vectors>(simd: S, words: &[[u8; 4]; BLOCK / 2], index: usize) -> [Narrow<S>; 2] {
    let words = &words.as_chunks::<LANES>().0[index];
    let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let word = u32::from_le_bytes(words[lane]);
        even[lane] = f32::from_bits(word << 16);
        odd[lane] = f32::from_bits(word & 0xffff_0000);
    }
    [Narrow::load(simd, &even), Narrow::load(simd, &odd)]
}

/// Calls `visit(theta_B, theta_T - theta_B)` for every entry.
pub(crate) fn for_each_entry(parts: &[WeightVector], mut visit: impl FnMut(f64, f64)) {
    let (mut base, mut delta): (Block<f64>, Block<f64>) = ([0.0; BLOCK], [0.0; BLOCK]);
    for part in parts {
        for block in 0..part.blocks() {
            part.load(block, &mut base, &mut delta);
            for (base, delta) in base.iter().zip(&delta).take(part.entries_of(block)) {
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
        let part = WeightVector::Stored { base: stored, tuned: stored };
        let (mut base, mut delta) = ([f64::NAN; BLOCK], [f64::NAN; BLOCK]);
        part.load(1, &mut base, &mut delta);
        assert_eq!(part.entries_of(1), 3);
        let first = BLOCK as f64 + 1.0;
        assert_eq!(base[..4], [first, first + 1.0, first + 2.0, 0.0]);
        assert!(base[3..].iter().chain(&delta).all(|value| *value == 0.0));
    }
}
