//! What one block adds to the sums, by series.

use std::marker::PhantomData;

use super::displacement::{BlockDisplacement, Displacement, Extent};
use super::divergence::TERMS;
use super::lanes::Lanes;
use super::part::{Entries, PAIR, Pairs, SEGMENT};
use super::real::Real;
use super::segments::{BlockSegments, PER_BLOCK};
use super::series::{Terms, terms, weight_of_power};
use crate::vector::{Kernel, LANES, Vectors};

/// The sums over one block.
pub(crate) struct BlockSums {
    pub(crate) extent: Extent,
    /// Of x and y, in units of the temperature; of no meaning in `f64`, where it is not measured by the series.
    pub(crate) displacement: Displacement,
    pub(crate) segments: BlockSegments,
    pub(crate) cc: f64,
    pub(crate) uc: f64,
    /// The sums of w y^k.
    pub(crate) moments: [f64; TERMS + 1],
}

/// Sums one block, by `X` terms of the series in m and `K` powers of y.
pub(crate) struct SumBlock<R, P, const X: usize, const K: usize> {
    pairs: P,
    width: PhantomData<R>,
}

impl<R, P, const X: usize, const K: usize> SumBlock<R, P, X, K> {
    pub(crate) fn of(pairs: P) -> Self {
        Self { pairs, width: PhantomData }
    }
}

impl<R: Real, P: Pairs<R>, const X: usize, const K: usize> Kernel for SumBlock<R, P, X, K> {
    type Output = BlockSums;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> BlockSums {
        let mut block = BlockLanes::<R::Lanes<S>, K>::none(simd);
        // Of each segment those of u and of c, the areas under both, and those of u^2; then those of the block.
        let mut lanes = [[R::Lanes::<S>::splat(simd, 0.0); LANES]; 3];
        let [totals, areas, rest] = &mut lanes;
        for place in 0..PER_BLOCK {
            let first = place * SEGMENT / PAIR;
            let mut segment = SegmentLanes::first(block.add::<X>(self.pairs.load(simd, first)));
            for index in first + 1..first + SEGMENT / PAIR {
                segment.add(block.add::<X>(self.pairs.load(simd, index)));
            }
            (totals[place], totals[PER_BLOCK + place]) = (segment.u, segment.c);
            areas[place] = area(segment.u, segment.u_running, segment.u_odd);
            areas[PER_BLOCK + place] = area(segment.c, segment.c_running, segment.c_odd);
            rest[place] = segment.uu;
        }
        let [base_squares, delta_squares, changed] = block.displacement.lanes();
        let third = if K == 3 { block.last_moment } else { block.moments[3] };
        let of_block = [block.cc, block.uc, base_squares, delta_squares, changed, block.moments[2], third];
        rest[PER_BLOCK..2 * PER_BLOCK - 1].copy_from_slice(&of_block);

        // The lanes of everything are added up together, which keeps the loop above busy.
        let [totals, areas, rest] = lanes;
        let ([u, c], [u_area, c_area]) = (halves(Lanes::sums(totals)), halves(Lanes::sums(areas)));
        let [uu, [cc, uc, base_squares, delta_squares, changed, second, third, _]] =
            halves(Lanes::sums(rest));
        let (displacement, extent) = block.displacement.of_sums([base_squares, delta_squares, changed]);
        let mut moments = [0.0; TERMS + 1];
        #[expect(
            clippy::needless_range_loop,
            reason = "a range is unrolled, which keeps the lanes in registers"
        )]
        for k in 2..=K {
            moments[k] = match k {
                2 => second,
                3 => third,
                k if k == K => block.last_moment.sum(),
                _ => block.moments[k].sum(),
            };
        }
        // c and u have the other powers in them besides w and w y.
        moments[0] = c.iter().sum();
        moments[1] = u.iter().sum();
        for k in (2..K - 1).step_by(2) {
            moments[0] -= weight_of_power(k) * moments[k];
        }
        for k in (3..K).step_by(2) {
            moments[1] -= weight_of_power(k) * moments[k];
        }
        let segments = BlockSegments { u, c, u_area, c_area, uu };
        BlockSums { extent, displacement, segments, cc, uc, moments }
    }
}

/// The sums of one block as they grow, but for those of its segments.
struct BlockLanes<N, const K: usize> {
    displacement: BlockDisplacement<N>,
    cc: N,
    uc: N,
    /// The sums of w y^k from k = 2 to K - 1; those before follow from the sums of c and u.
    moments: [N; K],
    /// The sum of w y^K.
    last_moment: N,
}

impl<N: Lanes, const K: usize> BlockLanes<N, K> {
    #[inline(always)]
    fn none(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self {
            displacement: BlockDisplacement::none(simd),
            cc: zero,
            uc: zero,
            moments: [zero; K],
            last_moment: zero,
        }
    }

    /// Adds the even entries and the odd ones, and gives their u and c.
    #[inline(always)]
    fn add<const X: usize>(&mut self, pair: [Entries<N>; 2]) -> [(N, N); 2] {
        let mut halves = [(self.cc, self.cc); 2];
        for (odd, (entries, half)) in pair.into_iter().zip(&mut halves).enumerate() {
            let y = entries.delta;
            if N::Number::IS_NARROW {
                self.displacement.add(odd, entries.base, y);
            }
            let Terms { c, u, powers } = terms::<N, X, K>(entries);
            self.cc = c.mul_add(c, self.cc);
            self.uc = u.mul_add(c, self.uc);
            #[expect(
                clippy::needless_range_loop,
                reason = "a range is unrolled, which keeps the sums in registers"
            )]
            for k in 2..K {
                self.moments[k] = self.moments[k] + powers[k];
            }
            self.last_moment = powers[K - 1].mul_add(y, self.last_moment);
            *half = (u, c);
        }
        halves
    }
}

fn halves(numbers: [f64; LANES]) -> [[f64; PER_BLOCK]; 2] {
    [0, PER_BLOCK].map(|start| std::array::from_fn(|place| numbers[start + place]))
}

/// The sums of one segment as they grow.
#[derive(Clone, Copy)]
struct SegmentLanes<N> {
    u: N,
    c: N,
    /// The sums, over the pairs of vectors, of what u and c have come to.
    u_running: N,
    c_running: N,
    /// The sums over the odd entries.
    u_odd: N,
    c_odd: N,
    uu: N,
}

impl<N: Lanes> SegmentLanes<N> {
    /// The first pair of vectors: u and c of the even entries and of the odd ones.
    #[inline(always)]
    fn first([(u, c), (u_odd, c_odd)]: [(N, N); 2]) -> Self {
        let (u_both, c_both) = (u + u_odd, c + c_odd);
        let uu = u_odd.mul_add(u_odd, u * u);
        Self { u: u_both, c: c_both, u_running: u_both, c_running: c_both, u_odd, c_odd, uu }
    }

    /// The next.
    #[inline(always)]
    fn add(&mut self, [(u, c), (u_odd, c_odd)]: [(N, N); 2]) {
        self.u = self.u + (u + u_odd);
        self.c = self.c + (c + c_odd);
        self.u_running = self.u_running + self.u;
        self.c_running = self.c_running + self.c;
        self.u_odd = self.u_odd + u_odd;
        self.c_odd = self.c_odd + c_odd;
        self.uu = u_odd.mul_add(u_odd, u.mul_add(u, self.uu));
    }
}

/// The sum over a segment of the running sums, lane by lane: entry j = PAIR i + 2 lane, or one more if it is odd,
/// is part of SEGMENT - j running sums.
#[inline(always)]
fn area<N: Lanes>(sums: N, running: N, odd: N) -> N {
    let mut place = [N::Number::default(); LANES];
    for (lane, place) in place.iter_mut().enumerate() {
        *place = N::Number::of(-2.0 * lane as f64);
    }
    let place = N::load(sums.simd(), &place);
    running.mul_add(sums.constant(PAIR as f64), sums * place) - odd
}
