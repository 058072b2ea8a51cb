//! A block of consecutive entries of a weight vector, and how kernels load it.

use crate::simd::lanes::F32Lanes;
use crate::simd::real::{Lanes, Real};
use crate::simd::vectors::{prefetch, read};
use crate::simd::{LANES, Vectors};

/// Entries that a kernel loads at a time, all parts of the lanes together: two for each lane.
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

/// The entries of a whole block, which a kernel loads two to a lane.
pub(crate) trait BlockEntries: Copy {
    type Number: Real;

    /// The place in a step of a lane's first entry, divided by the lane.
    const LANE_STRIDE: usize;
    /// The entries from a lane's first entry to its second.
    const SECOND: usize;

    /// Loads the first and the second entries of a step, for a part of the lanes.
    fn load<S: Vectors>(self, simd: S, step: usize, part: usize) -> [EntryLanes<Self, S>; 2];

    /// Loads the even and the odd entries of a step, for a part of the lanes, which is slower where [`Self::load`]
    /// divides them otherwise.
    fn load_pairs<S: Vectors>(self, simd: S, step: usize, part: usize) -> [EntryLanes<Self, S>; 2];

    /// Prefetches the bytes of a step. It may lie behind the block: the next block mostly follows in memory.
    fn prefetch(self, step: usize);
}

/// Entries that lie side by side in memory, one after the other.
pub(crate) trait ConsecutiveEntries: Copy {
    type Number: Real;

    /// Loads entries from `first` on, one for each lane of a part.
    fn load_from<S: Vectors>(self, simd: S, first: usize) -> Entries<<Self::Number as Real>::Lanes<S>>;

    /// Prefetches the bytes of a step, if the entries are stored weights.
    #[inline(always)]
    fn prefetch_step(self, _step: usize) {}
}

/// The first entries of a step are those of its first half: no entry has to change its place.
impl<E: ConsecutiveEntries> BlockEntries for E {
    type Number = E::Number;

    const LANE_STRIDE: usize = 1;
    const SECOND: usize = LANES;

    #[inline(always)]
    fn load<S: Vectors>(self, simd: S, step: usize, part: usize) -> [EntryLanes<Self, S>; 2] {
        let first = step * STEP + part * S::WIDTH;
        [self.load_from(simd, first), self.load_from(simd, first + LANES)]
    }

    #[inline(always)]
    fn load_pairs<S: Vectors>(self, simd: S, step: usize, part: usize) -> [EntryLanes<Self, S>; 2] {
        let first = step * STEP + 2 * part * S::WIDTH;
        let (low, high) = (self.load_from(simd, first), self.load_from(simd, first + S::WIDTH));
        [
            Entries {
                base: low.base.every_other::<0>(high.base),
                delta: low.delta.every_other::<0>(high.delta),
                sum: low.sum.every_other::<0>(high.sum),
            },
            Entries {
                base: low.base.every_other::<1>(high.base),
                delta: low.delta.every_other::<1>(high.delta),
                sum: low.sum.every_other::<1>(high.sum),
            },
        ]
    }

    #[inline(always)]
    fn prefetch(self, step: usize) {
        self.prefetch_step(step);
    }
}

/// The sum over the first entries of the steps and over the second ones.
#[inline(always)]
pub(crate) fn total<N: Lanes>([first, second]: [N; 2]) -> N {
    first + second
}

/// Adds squares to the sum over the first entries of the steps and to that over the second ones.
#[inline(always)]
pub(crate) fn add_squares<N: Lanes>(sums: &mut [N; 2], numbers: [N; 2]) {
    for (sum, number) in sums.iter_mut().zip(numbers) {
        *sum = number.mul_add(number, *sum);
    }
}

/// Prefetches the bytes of a step of both checkpoints.
#[inline(always)]
fn prefetch_weights<const BYTES: usize, const WEIGHTS: usize>(
    blocks: [&[[u8; BYTES]; WEIGHTS]; 2],
    step: usize,
) {
    const LINE: usize = 64;
    let bytes = BYTES * WEIGHTS / (BLOCK / STEP);
    for block in blocks {
        let start = block.as_ptr().cast::<u8>().wrapping_add(step * bytes);
        for line in 0..bytes / LINE {
            prefetch(start.wrapping_add(line * LINE));
        }
    }
}

/// A block whose entries were decoded before.
#[derive(Clone, Copy)]
pub(crate) struct DecodedBlock<'a, R> {
    pub(crate) base: &'a Block<R>,
    pub(crate) delta: &'a Block<R>,
}

impl<R: Real> ConsecutiveEntries for DecodedBlock<'_, R> {
    type Number = R;

    #[inline(always)]
    fn load_from<S: Vectors>(self, simd: S, first: usize) -> Entries<R::Lanes<S>> {
        let base = R::Lanes::<S>::read(simd, &self.base[first..][..S::WIDTH]);
        let delta = R::Lanes::<S>::read(simd, &self.delta[first..][..S::WIDTH]);
        Entries { base, delta, sum: base.mul_add(base.constant(2.0), delta) }
    }
}

/// A block of `F32` weights.
#[derive(Clone, Copy)]
pub(crate) struct F32Block<'a> {
    base: &'a [[u8; 4]; BLOCK],
    tuned: &'a [[u8; 4]; BLOCK],
}

/// A block of `F16` weights, most machines having an instruction that decodes them.
#[derive(Clone, Copy)]
pub(crate) struct F16Block<'a> {
    base: &'a [[u8; 2]; BLOCK],
    tuned: &'a [[u8; 2]; BLOCK],
}

impl<'a> F32Block<'a> {
    /// The weights of a whole block; `None` if there are fewer, or if they are not the machine's own numbers.
    pub(crate) fn new(base: &'a [u8], tuned: &'a [u8]) -> Option<Self> {
        let [base, tuned] = [base, tuned].map(|bytes| bytes.as_chunks().0.try_into().ok());
        cfg!(target_endian = "little").then_some(Self { base: base?, tuned: tuned? })
    }
}

impl<'a> F16Block<'a> {
    /// The weights of a whole block; `None` if there are fewer.
    pub(crate) fn new(base: &'a [u8], tuned: &'a [u8]) -> Option<Self> {
        let [base, tuned] = [base, tuned].map(|bytes| bytes.as_chunks().0.try_into().ok());
        Some(Self { base: base?, tuned: tuned? })
    }
}

impl ConsecutiveEntries for F32Block<'_> {
    type Number = f32;

    #[inline(always)]
    fn load_from<S: Vectors>(self, simd: S, first: usize) -> Entries<F32Lanes<S>> {
        let base = F32Lanes::of(simd, read(&self.base[first..][..S::WIDTH]));
        let tuned = F32Lanes::of(simd, read(&self.tuned[first..][..S::WIDTH]));
        Entries { base, delta: tuned - base, sum: tuned + base }
    }

    #[inline(always)]
    fn prefetch_step(self, step: usize) {
        prefetch_weights([self.base, self.tuned], step);
    }
}

impl ConsecutiveEntries for F16Block<'_> {
    type Number = f32;

    #[inline(always)]
    fn load_from<S: Vectors>(self, simd: S, first: usize) -> Entries<F32Lanes<S>> {
        let base = F32Lanes::of(simd, simd.widen_f16(&self.base[first..][..S::WIDTH]));
        let tuned = F32Lanes::of(simd, simd.widen_f16(&self.tuned[first..][..S::WIDTH]));
        Entries { base, delta: tuned - base, sum: tuned + base }
    }

    #[inline(always)]
    fn prefetch_step(self, step: usize) {
        prefetch_weights([self.base, self.tuned], step);
    }
}

/// A block of `BF16` weights, which are so cheap to decode that the kernel does it while it loads them.
/// [`Dtype::decode`](crate::number_format::Dtype) gives the same numbers.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Block<'a> {
    base: &'a [[u8; 4]; BLOCK / 2],
    tuned: &'a [[u8; 4]; BLOCK / 2],
}

impl<'a> Bf16Block<'a> {
    /// The weights of a whole block; `None` if there are fewer, or if the machine reads words in the other order.
    pub(crate) fn new(base: &'a [u8], tuned: &'a [u8]) -> Option<Self> {
        let [base, tuned] = [base, tuned].map(|bytes| bytes.as_chunks().0.try_into().ok());
        cfg!(target_endian = "little").then_some(Self { base: base?, tuned: tuned? })
    }
}

/// A word of two weights yields an even entry and an odd one.
impl BlockEntries for Bf16Block<'_> {
    type Number = f32;

    const LANE_STRIDE: usize = 2;
    const SECOND: usize = 1;

    #[inline(always)]
    fn load<S: Vectors>(self, simd: S, step: usize, part: usize) -> [Entries<F32Lanes<S>>; 2] {
        let first = step * LANES + part * S::WIDTH;
        let [base_even, base_odd] = simd.widen_bf16(read(&self.base[first..][..S::WIDTH]));
        let [tuned_even, tuned_odd] = simd.widen_bf16(read(&self.tuned[first..][..S::WIDTH]));
        let (base, tuned) = (F32Lanes::of(simd, base_even), F32Lanes::of(simd, tuned_even));
        let even = Entries { base, delta: tuned - base, sum: tuned + base };
        let (base, tuned) = (F32Lanes::of(simd, base_odd), F32Lanes::of(simd, tuned_odd));
        [even, Entries { base, delta: tuned - base, sum: tuned + base }]
    }

    #[inline(always)]
    fn load_pairs<S: Vectors>(self, simd: S, step: usize, part: usize) -> [Entries<F32Lanes<S>>; 2] {
        self.load(simd, step, part)
    }

    #[inline(always)]
    fn prefetch(self, step: usize) {
        prefetch_weights([self.base, self.tuned], step);
    }
}
