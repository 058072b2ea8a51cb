//! What one block adds to the sums, by series.

use super::displacement::{BlockDisplacement, Displacement, Extent, Stretch};
use super::divergence::TERMS;
use super::series::{Terms, exponential, terms_from, weight_of_power};
use super::sign_bounds::{BlockSegments, PER_BLOCK};
use super::weight_vector::{Entries, PAIR, PAIRS, Pairs};
use crate::simd::lanes::Lanes;
use crate::simd::real::Real;
use crate::simd::{Kernel, LANES, Vectors};

/// The sums over one block.
#[derive(Debug, Default)]
pub(crate) struct BlockSums {
    pub(crate) extent: Extent,
    /// Of x and y, in units of the temperature; of no meaning in `f64`, where it is not measured by the series.
    pub(crate) displacement: Displacement,
    pub(crate) segments: BlockSegments,
    pub(crate) uc: f64,
    /// The sums of w y^k.
    pub(crate) moments: [f64; TERMS + 1],
}

/// Vectors that wait in memory, which is kept from block to block, since clearing it costs as much as filling it.
#[derive(Debug, Default)]
pub(crate) struct Waiting<R> {
    /// The even entries of a segment and the odd ones, on their way. From a weight to its sums it is farther than a core
    /// looks ahead; in two loops, it works on later entries while earlier ones are under way.
    halfway: [[Halfway<R>; 2]; PAIRS],
    /// What is added up lane by lane together, which keeps the loops over the entries busy: of each segment u and c, the
    /// areas under both, and u^2; then what there is once in a block.
    totals: [[R; LANES]; LANES],
    areas: [[R; LANES]; LANES],
    rest: [[R; LANES]; LANES],
}

/// What one vector of entries has become.
#[derive(Debug, Default)]
struct Halfway<R> {
    /// The exponential of the mean of the exponents.
    w: [R; LANES],
    /// Their difference.
    y: [R; LANES],
}

/// Where they wait.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) narrow: Waiting<f32>,
    pub(crate) wide: Waiting<f64>,
}

/// Sums one block, by `X` terms of the series in m and `K` powers of y.
pub(crate) struct SumBlock<'a, R, P, const X: usize, const K: usize> {
    pub(crate) pairs: P,
    pub(crate) sums: &'a mut BlockSums,
    pub(crate) waiting: &'a mut Waiting<R>,
}

impl<R: Real, P: Pairs<R>, const X: usize, const K: usize> Kernel for SumBlock<'_, R, P, X, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) {
        let Self { pairs, sums, waiting: Waiting { halfway, totals, areas, rest } } = self;
        let mut block = BlockLanes::<R::Lanes<S>, K>::none(simd);
        for place in 0..PER_BLOCK {
            let mut stretch = Stretch::none(simd);
            for (index, pair) in (place * PAIRS..).zip(&mut *halfway) {
                for (entries, half) in pairs.load(simd, index).into_iter().zip(pair) {
                    let Entries { base, delta: y, sum } = entries;
                    if R::IS_NARROW {
                        block.displacement.add(base, y, &mut stretch);
                    }
                    *half = Halfway { w: exponential::<_, X>(sum).numbers(), y: y.numbers() };
                }
            }
            let mut segment = SegmentLanes::none(simd);
            for pair in &*halfway {
                segment.add(block.add(simd, pair));
            }
            block.displacement.end(stretch);
            totals[place] = segment.u.numbers();
            totals[PER_BLOCK + place] = segment.c.numbers();
            areas[place] = area(segment.u, segment.u_running, segment.u_odd).numbers();
            areas[PER_BLOCK + place] = area(segment.c, segment.c_running, segment.c_odd).numbers();
            rest[place] = segment.uu.numbers();
        }
        let [base_squares, delta_squares, changed] = block.displacement.lanes();
        let third = if K == 3 { block.last_moment } else { block.moments[3] };
        let of_block = [block.cc, block.uc, base_squares, delta_squares, changed, block.moments[2], third];
        for (vector, place) in of_block.into_iter().zip(PER_BLOCK..) {
            rest[place] = vector.numbers();
        }

        let BlockSegments { u, c, u_area, c_area, uu, cc } = &mut sums.segments;
        split(R::Lanes::<S>::sums(simd, totals), u, c);
        split(R::Lanes::<S>::sums(simd, areas), u_area, c_area);
        let mut others = [0.0; PER_BLOCK];
        split(R::Lanes::<S>::sums(simd, rest), uu, &mut others);
        let [c_squares, uc, base_squares, delta_squares, changed, second, third, _] = others;
        (*cc, sums.uc) = (c_squares, uc);
        (sums.displacement, sums.extent) = block.displacement.of_sums([base_squares, delta_squares, changed]);
        let moments = &mut sums.moments;
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
    fn add(&mut self, simd: N::Vectors, pair: &[Halfway<N::Number>; 2]) -> [(N, N); 2] {
        let mut halves = [(self.cc, self.cc); 2];
        for (Halfway { w, y }, half) in pair.iter().zip(&mut halves) {
            let (w, y) = (N::load(simd, w), N::load(simd, y));
            let Terms { c, u, powers } = terms_from::<N, K>(w, y);
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

#[inline(always)]
fn split(numbers: [f64; LANES], low: &mut [f64; PER_BLOCK], high: &mut [f64; PER_BLOCK]) {
    low.copy_from_slice(&numbers[..PER_BLOCK]);
    high.copy_from_slice(&numbers[PER_BLOCK..2 * PER_BLOCK]);
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
    #[inline(always)]
    fn none(simd: N::Vectors) -> Self {
        let u = N::splat(simd, 0.0);
        Self { u, c: u, u_running: u, c_running: u, u_odd: u, c_odd: u, uu: u }
    }

    /// Adds u and c of the even entries and of the odd ones.
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
