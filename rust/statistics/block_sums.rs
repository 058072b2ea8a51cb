//! The sums over one block, whose exponentials are taken by series.
//!
//! # How it works
//!
//! [`SumBlock`] sums c, u, c^2, u c, u^2 and w y^k over the entries ([`super::softmax_sums`] says what for, and
//! [`super`] what the symbols mean). For each segment it also sums the running sums of u and c: entry j of a segment of
//! T entries is part of T - j running sums, so the sum of the running sums of u is the sum of (T - j) u.

use std::hint::black_box;

use super::block::{BlockEntries, Entries, SEGMENTS, STEP, STEPS, add_squares, total};
use super::divergence::DIVERGENCE_DEGREE;
use super::segments::BlockSegments;
use super::series::{Terms, c_is_w, exponential, terms_from, weight_of_power};
use super::weight_change::{self, BlockChange, Magnitudes, PartialSquares, WeightChange};
use crate::simd::real::{Lanes, Real};
use crate::simd::{Kernel, LANES, Vectors};

/// The steps from the one that is loaded to the one whose bytes are prefetched, if one register holds all lanes. The hardware
/// prefetcher stops at the end of a page, which holds one block of 16-bit weights.
const AHEAD: usize = 24;

/// The sums over one block.
#[derive(Debug, Default)]
pub(crate) struct BlockSums {
    /// Of x and y, the exponents; measured in `f32` only.
    pub(crate) magnitudes: Magnitudes,
    /// Of x and y, in units of the temperature; measured in `f32` only.
    pub(crate) change: WeightChange,
    pub(crate) segments: BlockSegments,
    pub(crate) uc: f64,
    /// The sums of w y^k.
    pub(crate) moments: [f64; DIVERGENCE_DEGREE + 1],
}

/// The memory of [`SumBlock`], kept from block to block, since clearing it costs as much as filling it.
///
/// No vector of it crosses a line of the cache.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct SumBuffers<R> {
    /// w and y of the first entries of a segment and of the second ones. The chain of dependent operations from a weight to
    /// its sums is longer than a core's out-of-order window; in several loops, later entries start while earlier ones end.
    /// With 32 registers, two loops keep all their sums in registers; with 16, it takes four: for w and y themselves, for what needs
    /// y alone, w alone, and both. The length of the later loops is hidden from the compiler: it would unroll them, keep
    /// w and y in registers instead of loading them, and spill the sums.
    exponentials: [[Exponential<R>; 2]; STEPS],
    /// The vectors whose lanes are summed together, after the loops over the entries: u and c of each segment, the
    /// sums of their running sums, and u^2 followed by the sums of the whole block.
    totals: [[R; LANES]; LANES],
    areas: [[R; LANES]; LANES],
    rest: [[R; LANES]; LANES],
    /// The sums of w y^k from k = 5 on.
    high_moments: [[[R; LANES]; LANES]; 2],
}

#[derive(Debug, Default)]
struct Exponential<R> {
    w: [R; LANES],
    y: [R; LANES],
}

impl<R: Real> Exponential<R> {
    /// w of the first entries and of the second ones, for a part of the lanes.
    #[inline(always)]
    fn w<S: Vectors>(simd: S, both: &[Self; 2], part: usize) -> [R::Lanes<S>; 2] {
        [Lanes::load(simd, &both[0].w, part), Lanes::load(simd, &both[1].w, part)]
    }

    /// The same of y.
    #[inline(always)]
    fn y<S: Vectors>(simd: S, both: &[Self; 2], part: usize) -> [R::Lanes<S>; 2] {
        [Lanes::load(simd, &both[0].y, part), Lanes::load(simd, &both[1].y, part)]
    }
}

/// Sums one block, by a polynomial of degree `DEGREE` in m and `POWERS` powers of y.
pub(crate) struct SumBlock<'a, E: BlockEntries, const DEGREE: usize, const POWERS: usize> {
    pub(crate) entries: E,
    pub(crate) sums: &'a mut BlockSums,
    pub(crate) buffers: &'a mut SumBuffers<E::Number>,
}

impl<E: BlockEntries, const DEGREE: usize, const POWERS: usize> Kernel for SumBlock<'_, E, DEGREE, POWERS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) {
        let Self { entries, sums, buffers } = self;
        let mut largest = [0.0_f64; 2];
        for part in 0..S::PARTS {
            let of_part = sum_part::<E, S, DEGREE, POWERS>(simd, entries, part, buffers);
            for (largest, of_part) in largest.iter_mut().zip(of_part) {
                *largest = largest.max(of_part);
            }
        }
        let SumBuffers { totals, areas, rest, high_moments, .. } = buffers;
        let BlockSegments { u, c, u_area, c_area, uu, cc } = &mut sums.segments;
        split(<E::Number as Real>::Lanes::<S>::sums(simd, totals), u, c);
        split(<E::Number as Real>::Lanes::<S>::sums(simd, areas), u_area, c_area);
        let mut others = [0.0; SEGMENTS];
        split(<E::Number as Real>::Lanes::<S>::sums(simd, rest), uu, &mut others);
        let [c_squares, uc, base_squares, delta_squares, unchanged, low_moments @ ..] = others;
        (*cc, sums.uc) = (c_squares, uc);
        (sums.change, sums.magnitudes) =
            weight_change::finish([base_squares, delta_squares, unchanged], largest);
        let moments = &mut sums.moments;
        moments[2..5].copy_from_slice(&low_moments);
        if POWERS > 4 {
            for (moments, vectors) in moments[5..].chunks_mut(LANES).zip(&*high_moments) {
                let sums = <E::Number as Real>::Lanes::<S>::sums(simd, vectors);
                moments.copy_from_slice(&sums[..moments.len()]);
            }
        }
        // c also contains the even powers above w, and u the odd ones above w y.
        moments[0] = c.iter().sum();
        moments[1] = u.iter().sum();
        for k in (2..POWERS - 1).step_by(2) {
            moments[0] -= weight_of_power(k) * moments[k];
        }
        for k in (3..POWERS).step_by(2) {
            moments[1] -= weight_of_power(k) * moments[k];
        }
    }
}

/// Sums one part of the lanes over a block, into the buffers. Returns the largest of [`BlockChange::largest`].
#[inline(always)]
fn sum_part<E: BlockEntries, S: Vectors, const DEGREE: usize, const POWERS: usize>(
    simd: S,
    entries: E,
    part: usize,
    buffers: &mut SumBuffers<E::Number>,
) -> [f64; 2] {
    let SumBuffers { exponentials, totals, areas, rest, high_moments } = buffers;
    let mut block = BlockLanes::<<E::Number as Real>::Lanes<S>, POWERS>::zero(simd);
    let two_loops = S::REGISTER_COUNT >= 32;
    let c_is_apart = c_is_w(POWERS) && !two_loops;
    for place in 0..SEGMENTS {
        // Of several passes through a block only the first asks for memory, so all of them prefetch a part of the next block.
        if S::PARTS > 1 {
            let first = SEGMENTS * STEPS + (part * SEGMENTS + place) * STEPS / S::PARTS;
            for step in first..first + STEPS / S::PARTS {
                entries.prefetch(step);
            }
        }
        let mut squares = PartialSquares::zero(simd);
        for (step, both) in (place * STEPS..).zip(&mut *exponentials) {
            if S::PARTS == 1 {
                entries.prefetch(step + AHEAD);
            }
            let loaded = entries.load(simd, step, part);
            if E::Number::IS_F32 {
                squares.add_base([loaded[0].base, loaded[1].base]);
                if two_loops {
                    block.change.add([loaded[0].delta, loaded[1].delta], &mut squares);
                }
            }
            for (Entries { delta: y, sum, .. }, stored) in loaded.into_iter().zip(both) {
                exponential::<_, DEGREE>(sum).store(&mut stored.w, part);
                y.store(&mut stored.y, part);
            }
        }
        let mut segment = SegmentLanes::zero(simd);
        if !two_loops && E::Number::IS_F32 {
            for both in black_box(&exponentials[..]) {
                block.change.add(Exponential::y(simd, both, part), &mut squares);
            }
        }
        if c_is_apart {
            for both in black_box(&exponentials[..]) {
                block.add_c(Exponential::w(simd, both, part), &mut segment);
            }
        }
        for both in black_box(&exponentials[..]) {
            let [u, c] = block.add(Exponential::w(simd, both, part), Exponential::y(simd, both, part));
            segment.add_u(u);
            if !c_is_apart {
                block.add_c(c, &mut segment);
            }
        }
        block.change.add_squares(squares);
        let SegmentLanes { u, c, uu } = segment;
        total(u.sums).store(&mut totals[place], part);
        total(c.sums).store(&mut totals[SEGMENTS + place], part);
        u.area::<E>(simd, part).store(&mut areas[place], part);
        c.area::<E>(simd, part).store(&mut areas[SEGMENTS + place], part);
        total(uu).store(&mut rest[place], part);
    }
    let [base_squares, delta_squares, unchanged] = block.change.lanes();
    let of_block = [total(block.cc), total(block.uc), base_squares, delta_squares, unchanged];
    for (vector, into) in of_block.into_iter().zip(&mut rest[SEGMENTS..]) {
        vector.store(into, part);
    }
    let high_moments = high_moments.as_flattened_mut();
    let into = rest[SEGMENTS + of_block.len()..].iter_mut().chain(high_moments);
    for (k, into) in (2..=POWERS).zip(into) {
        if k == POWERS { total(block.last_moment) } else { block.moments[k] }.store(into, part);
    }
    block.change.largest()
}

/// The sums of one block, lane by lane.
///
/// Here and in a segment, a sum of products is two sums, one over the first entries of the steps and one over the second: a loop of
/// eight steps takes as long as its longest chain of dependent multiply-adds.
struct BlockLanes<N, const POWERS: usize> {
    change: BlockChange<N>,
    cc: [N; 2],
    uc: [N; 2],
    /// The sums of w y^k from k = 2 to POWERS - 1. Those of w and w y follow from the sums of c and u.
    moments: [N; POWERS],
    /// The sum of w y^POWERS.
    last_moment: [N; 2],
}

impl<N: Lanes, const POWERS: usize> BlockLanes<N, POWERS> {
    #[inline(always)]
    fn zero(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        let change = BlockChange::zero(simd);
        Self { change, cc: [zero; 2], uc: [zero; 2], moments: [zero; POWERS], last_moment: [zero; 2] }
    }

    /// Adds the first entries of a step and the second ones, and returns their u and c.
    #[inline(always)]
    fn add(&mut self, w: [N; 2], y: [N; 2]) -> [[N; 2]; 2] {
        let terms = [terms_from::<N, POWERS>(w[0], y[0]), terms_from(w[1], y[1])];
        for place in 0..2 {
            let Terms { c, u, powers } = &terms[place];
            self.uc[place] = u.mul_add(*c, self.uc[place]);
            self.last_moment[place] = powers[POWERS - 1].mul_add(y[place], self.last_moment[place]);
        }
        let [first, second] = terms;
        for k in 2..POWERS {
            self.moments[k] = self.moments[k] + (first.powers[k] + second.powers[k]);
        }
        [[first.u, second.u], [first.c, second.c]]
    }

    /// Adds c of the first entries of a step and of the second ones, to the sums of their segment too.
    #[inline(always)]
    fn add_c(&mut self, c: [N; 2], segment: &mut SegmentLanes<N>) {
        add_squares(&mut self.cc, c);
        segment.c.add(c);
    }
}

#[inline(always)]
fn split(numbers: [f64; LANES], low: &mut [f64; SEGMENTS], high: &mut [f64; SEGMENTS]) {
    low.copy_from_slice(&numbers[..SEGMENTS]);
    high.copy_from_slice(&numbers[SEGMENTS..2 * SEGMENTS]);
}

/// The sums of one segment, lane by lane.
struct SegmentLanes<N> {
    u: RunningLanes<N>,
    c: RunningLanes<N>,
    uu: [N; 2],
}

impl<N: Lanes> SegmentLanes<N> {
    #[inline(always)]
    fn zero(simd: N::Vectors) -> Self {
        Self { u: RunningLanes::zero(simd), c: RunningLanes::zero(simd), uu: [N::splat(simd, 0.0); 2] }
    }

    /// Adds u of the first entries of a step and of the second ones.
    #[inline(always)]
    fn add_u(&mut self, u: [N; 2]) {
        self.u.add(u);
        add_squares(&mut self.uu, u);
    }
}

/// Numbers of one segment that are summed lane by lane, and so are their running sums.
struct RunningLanes<N> {
    /// Over the first entries of the steps, and over the second ones.
    sums: [N; 2],
    /// The sum, over the steps, of the running sums.
    running: N,
}

impl<N: Lanes> RunningLanes<N> {
    #[inline(always)]
    fn zero(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self { sums: [zero; 2], running: zero }
    }

    /// Adds the numbers of the first entries of a step and of the second ones.
    #[inline(always)]
    fn add(&mut self, numbers: [N; 2]) {
        for (sum, number) in self.sums.iter_mut().zip(numbers) {
            *sum = *sum + number;
        }
        self.running = self.running + total(self.sums);
    }

    /// The sum of the running sums over the segment. The first entry of a lane in step i is entry j = STEP i +
    /// LANE_STRIDE lane; the second one follows it at the distance SECOND.
    #[inline(always)]
    fn area<E: BlockEntries>(&self, simd: N::Vectors, part: usize) -> N {
        let place = N::from_lanes(
            simd,
            #[inline(always)]
            |lane| N::Number::from_f64(-((E::LANE_STRIDE * lane) as f64)),
        );
        let place = place - N::splat(simd, (E::LANE_STRIDE * part * N::Vectors::WIDTH) as f64);
        let of_first = self.running.mul_add(place.constant(STEP as f64), total(self.sums) * place);
        self.sums[1].mul_add(place.constant(-(E::SECOND as f64)), of_first)
    }
}
