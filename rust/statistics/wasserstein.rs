//! The Wasserstein score: the area between two running sums.

use std::array;
use std::marker::PhantomData;

use super::accumulate::{Accumulator, ClosedForm};
use super::displacement::Extent;
use super::precision::{Scratch, Visitor, revisit};
use super::series::terms;
use super::sign_bounds::{PER_BLOCK, Running};
use super::weight_vector::{Block, PAIR, PAIRS, Pairs, SEGMENT, WeightVector};
use crate::simd::lanes::Lanes;
use crate::simd::real::Real;
use crate::simd::{Instructions, Kernel, LANES, Vectors};

/// Takes heads through a part, and adds to the area of each the sum over its entries of |U - ratio C|, where U and C are
/// the running sums of u and c.
///
/// Where the running difference D cannot change its sign within a segment, what is known of the segment
/// says all. The other segments, about an eighth, are gone through entry by entry, once for all heads.
pub(crate) fn go_through(
    part: &WeightVector,
    accumulator: &Accumulator,
    heads: &mut [Running],
    scratch: &mut Scratch,
) {
    let (segments, scaling) = (accumulator.segments(), accumulator.scaling());
    for (block, way) in accumulator.ways().iter().enumerate() {
        segments.pass(block, part.entries_of(block), heads, scaling.instructions);
        if heads.iter().any(Running::is_open) {
            let mut visitor = OpenSegments { instructions: scaling.instructions, heads };
            revisit(part, block, scaling, *way, scratch, &mut visitor);
        }
    }
    segments.leave(heads);
}

/// Adds up |D| over the entries of open segments.
struct OpenSegments<'a> {
    instructions: Instructions,
    heads: &'a mut [Running],
}

struct AreasByEntries<'a, R, P, const X: usize, const K: usize> {
    pairs: P,
    /// How many entries of the block exist.
    valid: usize,
    heads: &'a mut [Running],
    width: PhantomData<R>,
}

impl<R: Real, P: Pairs<R>, const X: usize, const K: usize> Kernel for AreasByEntries<'_, R, P, X, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) {
        let Self { pairs, valid, heads, .. } = self;
        for segment in 0..PER_BLOCK {
            if !heads.iter().any(|head| head.is_open_in(segment)) {
                continue;
            }
            let place = segment * PAIRS..(segment + 1) * PAIRS;
            // What every head needs; and as when they are summed, two loops are faster than one.
            let kept: [_; PAIRS] = array::from_fn(
                #[inline(always)]
                |index| both::<_, _, _, X, K>(simd, pairs, segment * PAIRS + index),
            );
            for head in heads.iter_mut().filter(|head| head.is_open_in(segment)) {
                let mut path = Path::of(simd, head, segment);
                for (index, kept) in place.clone().zip(&kept) {
                    path.add(*kept, valid, index);
                }
                head.add(path.areas.numbers());
            }
        }
    }
}

/// u and c of the even entries and of the odd ones.
#[inline(always)]
fn both<R: Real, P: Pairs<R>, S: Vectors, const X: usize, const K: usize>(
    simd: S,
    pairs: P,
    index: usize,
) -> [(R::Lanes<S>, R::Lanes<S>); 2] {
    let [even, odd] = pairs.load(simd, index);
    let (even, odd) = (terms::<_, X, K>(even), terms::<_, X, K>(odd));
    [(even.u, even.c), (odd.u, odd.c)]
}

/// D as it goes through a segment, pair of vectors after pair.
struct Path<N> {
    negative_ratio: N,
    before: N,
    /// The sum of |D| so far, lane by lane.
    areas: N,
}

impl<N: Lanes> Path<N> {
    #[inline(always)]
    fn of(simd: N::Vectors, head: &Running, segment: usize) -> Self {
        Self {
            negative_ratio: N::splat(simd, -head.ratio),
            before: N::splat(simd, head.before(segment)),
            areas: N::splat(simd, 0.0),
        }
    }

    /// Goes on by a pair, of which the entries exist that come before the first `valid` of the block.
    #[inline(always)]
    fn add(&mut self, [(u, c), (u_odd, c_odd)]: [(N, N); 2], valid: usize, index: usize) {
        let odd = c_odd.mul_add(self.negative_ratio, u_odd);
        let sums = (c.mul_add(self.negative_ratio, u) + odd).running_sums();
        let after_odd = sums + self.before;
        let mut sizes = [(after_odd - odd).abs(), after_odd.abs()];
        // Blocks in `f32` are whole.
        if !N::Number::IS_NARROW && valid < (index + 1) * PAIR {
            sizes = existing(sizes, valid.saturating_sub(index * PAIR));
        }
        self.areas = self.areas + (sizes[0] + sizes[1]);
        self.before = self.before + sums.constant(sums.numbers()[LANES - 1].wide());
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
        let heads = &mut *self.heads;
        self.instructions.run(AreasByEntries::<R, P, X, K> { pairs, valid, heads, width: PhantomData });
        Extent { base: 0.0, delta: 0.0 }
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize) {
        for (segment, (x, y)) in x[..valid].chunks(SEGMENT).zip(y[..valid].chunks(SEGMENT)).enumerate() {
            for head in self.heads.iter_mut().filter(|head| head.is_open_in(segment)) {
                let (mut difference, mut area) = (head.before(segment), 0.0);
                for (x, y) in x.iter().zip(y) {
                    let ClosedForm { u, c, .. } = ClosedForm::of(*x, *y);
                    difference += u - head.ratio * c;
                    area += f64::abs(difference);
                }
                head.add([area]);
            }
        }
    }

    fn out_of_reach(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number_format::Dtype;
    use crate::statistics::StoredWeights;
    use crate::statistics::softmax_sums::Scaling;
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
            let part = |range: std::ops::Range<usize>| WeightVector::Stored {
                base: StoredWeights { dtype: Dtype::F64, bytes: &base_bytes[range.clone()] },
                tuned: StoredWeights { dtype: Dtype::F64, bytes: &tuned_bytes[range] },
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
            let areas = |ratios: &[f64]| -> Vec<f64> {
                let mut heads: Vec<_> = ratios.iter().copied().map(Running::new).collect();
                for (part, accumulator) in parts.iter().zip(&accumulators) {
                    go_through(part, accumulator, &mut heads, &mut Scratch::default());
                }
                heads.iter().map(Running::area).collect()
            };
            let found = areas(&[ratio])[0];
            prop_assert!((found / expected - 1.0).abs() <= 1e-9, "{} {}", found, expected);
            // Whoever goes along.
            let together = areas(&[0.9 * ratio, ratio, -ratio, ratio]);
            prop_assert_eq!([together[1], together[3]].map(f64::to_bits), [found.to_bits(); 2]);
        }
    }
}
