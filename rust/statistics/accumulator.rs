//! Sums a part block by block.

use std::ops::Range;

use super::displacement::{BlockDisplacement, DisplacementLanes, Extent};
use super::divergence::{self, TERMS};
use super::exponential::INVERSE_FACTORIALS;
use super::lanes::Lanes;
use super::part::{BLOCK, Block, Pairs, Part, SEGMENT};
use super::real::{Real, add_lanes, sum_of_lanes};
use super::segments::{Segment, Segments};
use super::series::{Terms, terms};
use super::softmax::{NotFinite, Scaling, Sums};
use super::way::{self, Reach, Scratch, Visitor, Way};
use crate::vector::{Kernel, LANES, Vectors};

/// Vectors of one segment.
const VECTORS: usize = SEGMENT / LANES;

/// The sums of one part as they grow, and its segments.
///
/// A kernel sums a block in lanes of its own width; the lanes then join sums in `f64`.
#[derive(Debug)]
pub(crate) struct Accumulator {
    scaling: Scaling,
    sums: Sums,
    segments: Segments,
    /// The way in which each block was computed.
    ways: Vec<Way>,
    displacement: DisplacementLanes,
    vv: [f64; LANES],
    uv: [f64; LANES],
    /// The sums of v y^k from k = 2 on.
    moments: [[f64; LANES]; TERMS - 1],
    /// The sums of u and v over the blocks computed by series.
    near: [f64; 2],
}

impl Accumulator {
    pub(crate) fn new(scaling: Scaling) -> Self {
        let zero = [0.0; LANES];
        Self {
            scaling,
            sums: Sums::default(),
            segments: Segments::default(),
            ways: Vec::new(),
            displacement: DisplacementLanes::default(),
            vv: zero,
            uv: zero,
            moments: [zero; TERMS - 1],
            near: [0.0; 2],
        }
    }

    /// Begins another part, with the memory of the last.
    pub(crate) fn clear(&mut self) {
        let (mut segments, mut ways) = (std::mem::take(&mut self.segments), std::mem::take(&mut self.ways));
        segments.clear();
        ways.clear();
        *self = Self { segments, ways, ..Self::new(self.scaling) };
    }

    /// Adds blocks of `part`, which follow those added before.
    pub(crate) fn add(&mut self, part: &Part, blocks: Range<usize>) -> Result<(), NotFinite> {
        let (scaling, mut scratch) = (self.scaling, Scratch::new());
        for block in blocks {
            self.sums.entries += part.entries_of(block);
            let expected = self.ways.last().copied();
            let way = way::visit(part, block, &scaling, expected, &mut scratch, self)?;
            self.ways.push(way);
        }
        Ok(())
    }

    #[inline(always)]
    fn add_segment(&mut self, segment: &Segment) {
        self.near[0] += segment.u;
        self.near[1] += segment.v;
        self.sums.uu += segment.uu;
        self.segments.push(segment);
    }

    /// How far the weights have moved.
    pub(crate) fn displacement(&mut self) -> &mut DisplacementLanes {
        &mut self.displacement
    }

    /// What turns theta into the arguments of the exponentials.
    pub(crate) fn scaling(&self) -> &Scaling {
        &self.scaling
    }

    /// The segments of all blocks added.
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// The way in which each block was computed.
    pub(crate) fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// The sums over all blocks added.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = self.sums.clone();
        sums.displacement = self.displacement.sum();
        [sums.u, sums.v] = self.segments.totals();
        sums.vv += sum_of_lanes(&self.vv);
        sums.uv += sum_of_lanes(&self.uv);
        let [u, v] = self.near;
        sums.moments[0] = v;
        sums.moments[1] = u;
        for (moment, lanes) in sums.moments[2..].iter_mut().zip(&self.moments) {
            *moment = sum_of_lanes(lanes);
        }
        // u is the sum of v y^k / k!: what the other powers leave of it is the first.
        for (moment, inverse) in sums.moments.into_iter().zip(INVERSE_FACTORIALS).skip(2) {
            sums.moments[1] -= moment * inverse;
        }
        sums
    }
}

/// Adds one block to the sums, if it is in reach of the series.
struct AddBlock<'a, R, P, const X: usize, const K: usize> {
    pairs: P,
    valid: usize,
    accumulator: &'a mut Accumulator,
    width: std::marker::PhantomData<R>,
}

impl<R: Real, P: Pairs<R>, const X: usize, const K: usize> Kernel for AddBlock<'_, R, P, X, K> {
    type Output = Extent;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> Extent {
        let Self { pairs, valid, accumulator, .. } = self;
        let zero = R::Lanes::<S>::splat(simd, 0.0);
        let mut displacement = BlockDisplacement::none(simd);
        let (mut vv, mut uv, mut moments) = (zero, zero, [zero; K]);
        let mut segments = [SegmentLanes::none(simd); BLOCK / SEGMENT];
        for (place, segment) in segments.iter_mut().enumerate() {
            let mut sums = SegmentLanes::none(simd);
            for index in 0..VECTORS {
                let (x, y) = pairs.load(simd, place * VECTORS + index);
                let square = x * x;
                if R::IS_NARROW {
                    displacement.add(x, square, y);
                }
                let Terms { v, u, powers } = terms::<_, X, K>(x, square, y);
                sums.add(u, v);
                vv = v.mul_add(v, vv);
                uv = u.mul_add(v, uv);
                for k in 1..K {
                    moments[k - 1] = moments[k - 1] + powers[k];
                }
                moments[K - 1] = powers[K - 1].mul_add(y, moments[K - 1]);
            }
            *segment = sums;
        }
        let extent = displacement.extent();
        if R::IS_NARROW {
            if !Reach::of_terms::<X, K>().covers(&extent) {
                return extent;
            }
            accumulator.displacement.add(&displacement, &extent, accumulator.scaling.temperature);
        }
        add_lanes(&mut accumulator.vv, vv, 1.0);
        add_lanes(&mut accumulator.uv, uv, 1.0);
        for (sum, moment) in accumulator.moments.iter_mut().zip(moments) {
            add_lanes(sum, moment, 1.0);
        }
        // The lanes are added up for all segments together, which keeps the loop above busy.
        let mut left = valid;
        for lanes in &segments[..valid.div_ceil(SEGMENT)] {
            let segment = lanes.sum();
            let absent = SEGMENT.saturating_sub(left) as f64;
            left = left.saturating_sub(SEGMENT);
            accumulator.add_segment(&Segment {
                u_area: segment.u_area - absent * segment.u,
                v_area: segment.v_area - absent * segment.v,
                ..segment
            });
        }
        extent
    }
}

/// The sums of one segment as they grow.
#[derive(Clone, Copy)]
struct SegmentLanes<N> {
    u: N,
    v: N,
    u_running: N,
    v_running: N,
    uu: N,
}

impl<N: Lanes> SegmentLanes<N> {
    #[inline(always)]
    fn none(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self { u: zero, v: zero, u_running: zero, v_running: zero, uu: zero }
    }

    #[inline(always)]
    fn add(&mut self, u: N, v: N) {
        self.u = self.u + u;
        self.v = self.v + v;
        self.u_running = self.u_running + self.u;
        self.v_running = self.v_running + self.v;
        self.uu = u.mul_add(u, self.uu);
    }

    #[inline(always)]
    fn sum(&self) -> Segment {
        Segment {
            u: self.u.sum(),
            v: self.v.sum(),
            u_area: area(self.u, self.u_running),
            v_area: area(self.v, self.v_running),
            uu: self.uu.sum(),
        }
    }
}

/// The sum over a segment of the running sums, from those in each lane: entry j = LANES i + lane is part
/// of SEGMENT - j running sums.
#[inline(always)]
fn area<N: Lanes>(sums: N, running: N) -> f64 {
    let mut lane = [N::Number::default(); LANES];
    for (index, lane) in lane.iter_mut().enumerate() {
        *lane = N::Number::of(-(index as f64));
    }
    let lane = N::load(sums.simd(), &lane);
    running.mul_add(sums.constant(LANES as f64), sums * lane).sum()
}

impl Visitor for Accumulator {
    fn series<R: Real, P: Pairs<R>, const X: usize, const K: usize>(
        &mut self,
        pairs: P,
        valid: usize,
    ) -> Extent {
        self.sums.has_narrow |= R::IS_NARROW;
        let instructions = self.scaling.instructions;
        instructions.run(AddBlock::<R, P, X, K> {
            pairs,
            valid,
            accumulator: self,
            width: std::marker::PhantomData,
        })
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize) {
        for (x, y) in x[..valid].chunks(SEGMENT).zip(y[..valid].chunks(SEGMENT)) {
            let mut segment = Segment::default();
            for (x, y) in x.iter().zip(y) {
                let (u, v) = closed_form_entry(*x, *y);
                segment.u += u;
                segment.v += v;
                segment.u_area += segment.u;
                segment.v_area += segment.v;
                segment.uu += u * u;
                self.sums.vv += v * v;
                self.sums.uv += u * v;
                let divergences = divergence::of_entry(v, u + v, *y);
                self.sums.far.kl += divergences.kl;
                self.sums.far.js += divergences.js;
            }
            self.sums.uu += segment.uu;
            self.segments.push(&segment);
        }
        self.sums.has_far = true;
    }

    fn out_of_reach(&mut self, valid: usize) {
        self.sums.has_far = true;
        for _ in 0..valid.div_ceil(SEGMENT) {
            self.segments.push(&Segment::default());
        }
    }
}

/// u and v where neither is bounded.
pub(crate) fn closed_form_entry(x: f64, y: f64) -> (f64, f64) {
    let v = x.exp();
    let u = if y.abs() < 1.0 { v * y.exp_m1() } else { (x + y).exp() - v };
    (u, v)
}
