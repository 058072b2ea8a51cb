//! The Wasserstein score: the area between two running sums.

use std::marker::PhantomData;

use super::accumulator::{Accumulator, ClosedForm};
use super::displacement::Extent;
use super::lanes::Lanes;
use super::part::{Block, PAIR, Pairs, Part, SEGMENT};
use super::real::Real;
use super::segments::{OpenSegment, Running};
use super::series::{Terms, terms};
use super::way::{Scratch, Visitor, revisit};
use crate::vector::{Instructions, Kernel, LANES, Vectors};

/// The sum over all entries of |U - ratio C|, where U and C are the running sums of u and c.
///
/// Where the running difference D cannot change its sign within a segment, what is known of the segment
/// says all. The other segments, about an eighth, are gone through entry by entry.
pub(crate) fn area<'a>(parts: impl Iterator<Item = (&'a Part<'a>, &'a Accumulator)>, ratio: f64) -> f64 {
    let (mut running, mut area) = (Running { u: 0.0, c: 0.0, ratio }, 0.0);
    let (mut open, mut scratch) = (Vec::new(), Scratch::default());
    for (part, accumulator) in parts {
        let (segments, scaling) = (accumulator.segments(), accumulator.scaling());
        area += segments.area(running, part.entries(), &mut open, scaling.instructions);
        let instructions = scaling.instructions;
        let mut visitor = OpenSegments { instructions, ratio, segments: &[], area: 0.0 };
        // Open segments come in runs, where the difference is small.
        for in_block in open.chunk_by(|a, b| a.block == b.block) {
            let block = in_block[0].block;
            visitor.segments = in_block;
            revisit(part, block, scaling, accumulator.ways()[block], &mut scratch, &mut visitor);
        }
        area += visitor.area;
        let [u, c] = segments.totals();
        running = Running { u: running.u + u, c: running.c + c, ratio };
    }
    area
}

/// Adds up |D| over the entries of open segments, block after block.
struct OpenSegments<'a> {
    instructions: Instructions,
    ratio: f64,
    /// Those of one block.
    segments: &'a [OpenSegment],
    area: f64,
}

struct AreaByEntries<'a, R, P, const X: usize, const K: usize> {
    pairs: P,
    /// How many entries of the block exist.
    valid: usize,
    ratio: f64,
    segments: &'a [OpenSegment],
    width: PhantomData<R>,
}

impl<R: Real, P: Pairs<R>, const X: usize, const K: usize> Kernel for AreaByEntries<'_, R, P, X, K> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> f64 {
        let Self { pairs, valid, ratio, segments, .. } = self;
        let negative_ratio = R::Lanes::<S>::splat(simd, -ratio);
        let mut areas = R::Lanes::<S>::splat(simd, 0.0);
        for OpenSegment { first, before, .. } in segments {
            let mut before = R::Lanes::<S>::splat(simd, *before);
            for index in first / PAIR..(first + SEGMENT) / PAIR {
                let mut steps = [R::Lanes::<S>::splat(simd, 0.0); 2];
                for (step, entries) in steps.iter_mut().zip(pairs.load(simd, index)) {
                    let Terms { c, u, .. } = terms::<_, X, K>(entries);
                    *step = c.mul_add(negative_ratio, u);
                }
                let [even, odd] = steps;
                let sums = (even + odd).running_sums();
                let after_odd = sums + before;
                let mut differences = [(after_odd - odd).abs(), after_odd.abs()];
                if valid < (index + 1) * PAIR {
                    differences = existing(differences, valid.saturating_sub(index * PAIR));
                }
                areas = areas + (differences[0] + differences[1]);
                before = before + sums.constant(sums.numbers()[LANES - 1].wide());
            }
        }
        areas.sum()
    }
}

/// The even entries and the odd ones with 0 for all but the first `count`.
#[cold]
fn existing<N: Lanes>([even, odd]: [N; 2], count: usize) -> [N; 2] {
    let cut = |half: N, count: usize| {
        let mut numbers = half.numbers();
        numbers[count..].fill(N::Number::default());
        N::load(half.simd(), &numbers)
    };
    [cut(even, count.div_ceil(2)), cut(odd, count / 2)]
}

impl Visitor for OpenSegments<'_> {
    fn series<R: Real, P: Pairs<R>, const X: usize, const K: usize>(
        &mut self,
        pairs: P,
        valid: usize,
    ) -> Extent {
        let Self { ratio, segments, .. } = self;
        let kernel =
            AreaByEntries::<R, P, X, K> { pairs, valid, ratio: *ratio, segments, width: PhantomData };
        self.area += self.instructions.run(kernel);
        Extent { base: 0.0, delta: 0.0 }
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize) {
        for OpenSegment { first, before, .. } in self.segments {
            let entries = *first..valid.min(first + SEGMENT);
            let mut difference = *before;
            for (x, y) in x[entries.clone()].iter().zip(&y[entries]) {
                let ClosedForm { u, c, .. } = ClosedForm::of(*x, *y);
                difference += u - self.ratio * c;
                self.area += difference.abs();
            }
        }
    }

    fn out_of_reach(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::statistics::Stored;
    use crate::statistics::softmax::Scaling;
    use proptest::prelude::*;

    fn bytes(weights: &[f64]) -> Vec<u8> {
        weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
    }

    proptest! {
        /// The segments say what the entries say, whatever the changes: drifts, which leave most blocks
        /// on one side, and noise, which does not; of all entries or of few.
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
            let part = |range: std::ops::Range<usize>| Part::Stored {
                base: Stored { dtype: Dtype::F64, bytes: &base_bytes[range.clone()] },
                tuned: Stored { dtype: Dtype::F64, bytes: &tuned_bytes[range] },
            };
            let parts = [part(0..cut), part(cut..base_bytes.len())];
            let scaling = Scaling { temperature: 1.0, frame: None, instructions: Instructions::best() };
            let accumulators: Vec<_> = parts
                .iter()
                .map(|part| {
                    let mut accumulator = Accumulator::new(scaling);
                    assert!(accumulator.add(part, 0..part.blocks(), &mut Scratch::default()).is_ok());
                    accumulator
                })
                .collect();

            let (mut difference, mut expected) = (0.0, 0.0);
            for (base, tuned) in base.iter().zip(&tuned) {
                difference += tuned.exp() - base.exp() - ratio * 0.5 * (tuned.exp() + base.exp());
                expected += f64::abs(difference);
            }
            let found = area(parts.iter().zip(&accumulators), ratio);
            prop_assert!((found / expected - 1.0).abs() <= 1e-9, "{} {}", found, expected);
        }
    }
}
