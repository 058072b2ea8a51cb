//! The area between two running sums. Scaled by the normalisers, and divided by N - 1 in [`super::table`], it is the
//! Wasserstein score.
//!
//! # How it works
//!
//! The area of a head is the sum of |D| over its entries ([`super::segments`]). It is added in two stages.
//! [`SegmentSums`](super::segments::SegmentSums) adds the segments in which D keeps its sign. This file takes the
//! exponentials of blocks with other segments once more, for all heads together, and adds |D| entry by entry over these
//! undecided segments, about an eighth of all.

use std::hint::black_box;

use super::block::{BLOCK, Block, BlockEntries, DecodedBlock, Entries, SEGMENT, SEGMENTS, STEP, STEPS};
use super::block_operation::{BlockOperation, DecodeBuffers, VectorBlock};
use super::segments::RunningDifference;
use super::series::{ClosedForm, FULL, Terms, exponential, terms_from};
use super::vector_sums::VectorSums;
use super::weight_change::Magnitudes;
use super::weight_vector::WeightVector;
use crate::simd::real::{Lanes, Real};
use crate::simd::{Instructions, Kernel, LANES, MOST_PARTS, Vectors};

/// Passes heads through a weight vector: adds to the area of each the sum of |D| over the entries of the vector.
pub(crate) fn add_areas(
    vector: &WeightVector,
    sums: &VectorSums,
    heads: &mut [RunningDifference],
    buffers: &mut DecodeBuffers,
) {
    let VectorSums { segments, settings, precisions, .. } = sums;
    let instructions = settings.instructions;
    let mut operation = AddUndecided {
        instructions,
        heads,
        f32_terms: SegmentTerms::default(),
        f64_terms: SegmentTerms::default(),
    };
    for (index, precision) in precisions.iter().enumerate() {
        segments.pass_block(index, vector.entries_of(index), operation.heads, instructions);
        if operation.heads.iter().any(RunningDifference::has_undecided) {
            buffers.run(VectorBlock { vector, index, settings }, *precision, &mut operation);
        }
    }
    segments.leave(operation.heads);
}

/// Adds |D| over the entries of undecided segments.
struct AddUndecided<'a> {
    instructions: Instructions,
    heads: &'a mut [RunningDifference],
    f32_terms: SegmentTerms<f32>,
    f64_terms: SegmentTerms<f64>,
}

/// u and c of the even entries of each step of a segment, and of the odd ones. All heads need them. Their memory is kept
/// from block to block, since clearing it takes time.
///
/// No vector of it crosses a line of the cache.
#[derive(Default)]
#[repr(align(64))]
struct SegmentTerms<R>([[[[R; LANES]; 2]; 2]; STEPS]);

struct UndecidedAreas<'a, E: BlockEntries, const DEGREE: usize, const POWERS: usize> {
    entries: E,
    /// The number of entries of the block that exist.
    valid: usize,
    heads: &'a mut [RunningDifference],
    terms: &'a mut SegmentTerms<E::Number>,
}

impl<E: BlockEntries, const DEGREE: usize, const POWERS: usize> Kernel
    for UndecidedAreas<'_, E, DEGREE, POWERS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) {
        let Self { entries, valid, heads, terms: SegmentTerms(all_terms) } = self;
        for segment in 0..SEGMENTS {
            if !heads.iter().any(|head| head.is_undecided(segment)) {
                continue;
            }
            // As in the first pass, two loops are faster than one.
            for (step, terms) in (segment * STEPS..).zip(&mut *all_terms) {
                for part in 0..S::PARTS {
                    let [even, odd] = entries.load_pairs(simd, step, part);
                    for (Entries { delta, sum, .. }, terms) in [even, odd].into_iter().zip(&mut *terms) {
                        let Terms { u, c, .. } =
                            terms_from::<_, POWERS>(exponential::<_, DEGREE>(sum), delta);
                        u.store(&mut terms[0], part);
                        c.store(&mut terms[1], part);
                    }
                }
            }
            for head in heads.iter_mut().filter(|head| head.is_undecided(segment)) {
                let mut difference =
                    DifferenceLanes::<<E::Number as Real>::Lanes<S>>::new(simd, head, segment);
                // Otherwise the compiler reads all of them before the first head, and writes them to memory again.
                for (step, terms) in (segment * STEPS..).zip(black_box(&*all_terms)) {
                    difference.add(terms, valid, step);
                }
                let mut areas = [E::Number::default(); LANES];
                for (part, lanes) in difference.areas.into_iter().enumerate().take(S::PARTS) {
                    lanes.store(&mut areas, part);
                }
                head.add_areas(areas);
            }
        }
    }
}

/// D of one head within a segment, step after step.
struct DifferenceLanes<N> {
    negative_ratio: N,
    before: N,
    /// The sum of |D| so far, lane by lane.
    areas: [N; MOST_PARTS],
}

impl<N: Lanes> DifferenceLanes<N> {
    #[inline(always)]
    fn new(simd: N::Vectors, head: &RunningDifference, segment: usize) -> Self {
        Self {
            negative_ratio: N::splat(simd, -head.ratio),
            before: N::splat(simd, head.before[segment]),
            areas: [N::splat(simd, 0.0); MOST_PARTS],
        }
    }

    /// Adds |D| over the entries of a step. Those from entry `valid` of the block on do not exist.
    #[inline(always)]
    fn add(&mut self, [even, odd]: &[[[N::Number; LANES]; 2]; 2], valid: usize, step: usize) {
        let (parts, simd) = (N::Vectors::PARTS, self.before.simd());
        let (mut sums, mut odds) = (self.areas, self.areas);
        for part in 0..parts {
            let (u, c) = (N::load(simd, &even[0], part), N::load(simd, &even[1], part));
            let (u_odd, c_odd) = (N::load(simd, &odd[0], part), N::load(simd, &odd[1], part));
            odds[part] = c_odd.mul_add(self.negative_ratio, u_odd);
            sums[part] = c.mul_add(self.negative_ratio, u) + odds[part];
        }
        N::prefix_sums(&mut sums);
        for part in 0..parts {
            let after_odd = sums[part] + self.before;
            let mut sizes = [(after_odd - odds[part]).abs(), after_odd.abs()];
            // All blocks in `f32` are whole.
            if !N::Number::IS_F32 && valid < (step + 1) * STEP {
                let lanes_before = 2 * part * N::Vectors::WIDTH;
                sizes = keep_first(sizes, valid.saturating_sub(step * STEP + lanes_before));
            }
            self.areas[part] = self.areas[part] + (sizes[0] + sizes[1]);
        }
        self.before = self.before + sums[parts - 1].last();
    }
}

/// Replaces all but the first `count` entries, even and odd, by 0.
#[cold]
fn keep_first<N: Lanes>([even, odd]: [N; 2], count: usize) -> [N; 2] {
    let cut = |half: N, count: usize| {
        let numbers = half.to_array();
        N::from_lanes(half.simd(), |lane| if lane < count { numbers[lane] } else { N::Number::default() })
    };
    [cut(even, count.div_ceil(2)), cut(odd, count / 2)]
}

impl BlockOperation for AddUndecided<'_> {
    fn f32_series<E: BlockEntries<Number = f32>, const DEGREE: usize, const POWERS: usize>(
        &mut self,
        entries: E,
    ) -> Magnitudes {
        let Self { instructions, heads, f32_terms: terms, .. } = self;
        instructions.run(UndecidedAreas::<E, DEGREE, POWERS> { entries, valid: BLOCK, heads, terms });
        // The first pass has measured the block.
        Magnitudes::default()
    }

    fn f64_series<const POWERS: usize>(&mut self, entries: DecodedBlock<f64>, valid: usize) {
        let Self { instructions, heads, f64_terms: terms, .. } = self;
        instructions.run(UndecidedAreas::<_, FULL, POWERS> { entries, valid, heads, terms });
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize) {
        for (segment, (x, y)) in x[..valid].chunks(SEGMENT).zip(y[..valid].chunks(SEGMENT)).enumerate() {
            for head in self.heads.iter_mut().filter(|head| head.is_undecided(segment)) {
                let (mut difference, mut area) = (head.before[segment], 0.0);
                for (x, y) in x.iter().zip(y) {
                    let ClosedForm { u, c, .. } = ClosedForm::of(*x, *y);
                    difference += u - head.ratio * c;
                    area += f64::abs(difference);
                }
                head.add_areas([area]);
            }
        }
    }

    fn out_of_range(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number_format::Dtype;
    use crate::statistics::StoredWeights;
    use proptest::prelude::*;

    fn bytes(weights: &[f64]) -> Vec<u8> {
        weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
    }

    proptest! {
        /// The changes are drifts, in which D keeps its sign over most blocks, and noise, in which it does not, of all
        /// entries or of few.
        #[test]
        fn the_area_is_that_of_the_entries(
            deltas in prop::collection::vec((-0.2f64..0.2, 0f64..1.0), 1..6000),
            changed in prop::sample::select(vec![0.002, 0.1, 1.0]),
            drift in prop::sample::select(vec![-0.05, -1e-4, 0.0, 1e-3, 0.05]),
            ratio in -0.05f64..0.05,
            cut in 0.0f64..1.0,
        ) {
            let base: Vec<f64> = (0..deltas.len()).map(|entry| (entry as f64 * 0.7).sin() * 0.1).collect();
            let delta = |(delta, chance): &(f64, f64)| if *chance < changed { delta + drift } else { 0.0 };
            let tuned: Vec<f64> = base.iter().zip(&deltas).map(|(base, entry)| base + delta(entry)).collect();
            let cut = 8 * (cut * base.len() as f64) as usize;
            let (base_bytes, tuned_bytes) = (bytes(&base), bytes(&tuned));
            let vector = |range: std::ops::Range<usize>| WeightVector::Stored {
                base: StoredWeights { dtype: Dtype::F64, bytes: &base_bytes[range.clone()] },
                tuned: StoredWeights { dtype: Dtype::F64, bytes: &tuned_bytes[range] },
            };
            let vectors = [vector(0..cut), vector(cut..base_bytes.len())];
            let all_sums = vectors.map(|vector| {
                let mut sums = VectorSums::new(1.0, Instructions::best());
                assert!(sums.add_up_to(vector.entries(), &vector).is_ok());
                sums
            });

            let (mut difference, mut expected) = (0.0, 0.0);
            for (base, tuned) in base.iter().zip(&tuned) {
                difference += tuned.exp() - base.exp() - ratio * 0.5 * (tuned.exp() + base.exp());
                expected += f64::abs(difference);
            }
            let areas = |ratios: &[f64]| -> Vec<f64> {
                let mut heads: Vec<_> = ratios.iter().copied().map(RunningDifference::new).collect();
                for (vector, sums) in vectors.iter().zip(&all_sums) {
                    add_areas(vector, sums, &mut heads, &mut DecodeBuffers::default());
                }
                heads.iter().map(RunningDifference::area).collect()
            };
            let found = areas(&[ratio])[0];
            prop_assert!((found / expected - 1.0).abs() <= 1e-9, "{} {}", found, expected);
            // The area of a head does not depend on the heads beside it.
            let together = areas(&[0.9 * ratio, ratio, -ratio, ratio]);
            prop_assert_eq!([together[1], together[3]].map(f64::to_bits), [found.to_bits(); 2]);
        }
    }
}
