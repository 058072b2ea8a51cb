//! A block of consecutive entries of a weight vector, and how kernels load it.

use crate::simd::lanes::F32Lanes;
use crate::simd::real::{Lanes, Real};
use crate::simd::{LANES, Vectors};

/// Entries that a kernel loads at a time: one vector of even entries and one of odd entries, since a
/// 32-bit word of two 16-bit weights yields one of each.
pub(crate) const STEP: usize = 2 * LANES;

/// Steps of a segment.
pub(crate) const STEPS: usize = 8;

/// Entries that [`super::wasserstein`] integrates at a time.
pub(crate) const SEGMENT: usize = STEPS * STEP;

/// Segments of a block.
pub(crate) const SEGMENTS: usize = 8;

/// Entries that are decoded and summed in one precision, before their sums are added in `f64`. Blocks are
/// counted from the start of a weight vector, so no result depends on how a file was read.
pub(crate) const BLOCK: usize = SEGMENTS * SEGMENT;

/// One number for each entry of a block; those past the end of the weight vector are 0.
pub(crate) type Block<R> = [R; BLOCK];

/// A vector of entries.
#[derive(Clone, Copy)]
pub(crate) struct Entries<N> {
    /// theta_B.
    pub(crate) base: N,
    /// theta_T - theta_B.
    pub(crate) delta: N,
    /// theta_B + theta_T.
    pub(crate) sum: N,
}

/// A vector of entries of type `E`.
pub(crate) type EntryLanes<E, S> = Entries<<<E as BlockEntries>::Number as Real>::Lanes<S>>;

/// The entries of a whole block.
pub(crate) trait BlockEntries: Copy {
    type Number: Real;

    /// Loads the even and the odd entries of a step.
    fn load<S: Vectors>(self, simd: S, step: usize) -> [EntryLanes<Self, S>; 2];
}

/// A block whose entries were decoded before.
#[derive(Clone, Copy)]
pub(crate) struct DecodedBlock<'a, R> {
    pub(crate) base: &'a Block<R>,
    pub(crate) delta: &'a Block<R>,
}

impl<R: Real> BlockEntries for DecodedBlock<'_, R> {
    type Number = R;

    #[inline(always)]
    fn load<S: Vectors>(self, simd: S, step: usize) -> [Entries<R::Lanes<S>>; 2] {
        let (base, delta) = (&self.base.as_chunks::<STEP>().0[step], &self.delta.as_chunks::<STEP>().0[step]);
        [entries(simd, base, delta, 0), entries(simd, base, delta, 1)]
    }
}

#[inline(always)]
fn entries<N: Lanes>(
    simd: N::Vectors,
    base: &[N::Number; STEP],
    delta: &[N::Number; STEP],
    first: usize,
) -> Entries<N> {
    let (base, delta) = (every_other(simd, base, first), every_other(simd, delta, first));
    Entries { base, delta, sum: base.mul_add(base.constant(2.0), delta) }
}

#[inline(always)]
fn every_other<N: Lanes>(simd: N::Vectors, numbers: &[N::Number; STEP], first: usize) -> N {
    let mut lanes = [N::Number::default(); LANES];
    for (lane, number) in lanes.iter_mut().enumerate() {
        *number = numbers[2 * lane + first];
    }
    N::load(simd, &lanes)
}

/// A block of `BF16` weights, which are so cheap to decode that the kernel does it while it loads them.
/// [`Dtype::decode`](crate::number_format::Dtype) gives the same numbers.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Block<'a> {
    base: &'a [[u8; 4]; BLOCK / 2],
    tuned: &'a [[u8; 4]; BLOCK / 2],
}

impl<'a> Bf16Block<'a> {
    /// The weights of a whole block; `None` if there are fewer.
    pub(crate) fn new(base: &'a [u8], tuned: &'a [u8]) -> Option<Self> {
        let [base, tuned] = [base, tuned].map(|bytes| bytes.as_chunks().0.try_into().ok());
        Some(Self { base: base?, tuned: tuned? })
    }
}

impl BlockEntries for Bf16Block<'_> {
    type Number = f32;

    #[inline(always)]
    fn load<S: Vectors>(self, simd: S, step: usize) -> [Entries<F32Lanes<S>>; 2] {
        let [base_even, base_odd] = widen(simd, self.base, step);
        let [tuned_even, tuned_odd] = widen(simd, self.tuned, step);
        [
            Entries { base: base_even, delta: tuned_even - base_even, sum: tuned_even + base_even },
            Entries { base: base_odd, delta: tuned_odd - base_odd, sum: tuned_odd + base_odd },
        ]
    }
}

/// Decodes words of two weights. The first weight of a word is the lower half of its bits; a `BF16` is the
/// upper half of an `f32`.
#[inline(always)]
fn widen<S: Vectors>(simd: S, words: &[[u8; 4]; BLOCK / 2], step: usize) -> [F32Lanes<S>; 2] {
    let words = &words.as_chunks::<LANES>().0[step];
    let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let word = u32::from_le_bytes(words[lane]);
        even[lane] = f32::from_bits(word << 16);
        odd[lane] = f32::from_bits(word & 0xffff_0000);
    }
    [F32Lanes::load(simd, &even), F32Lanes::load(simd, &odd)]
}
