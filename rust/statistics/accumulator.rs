//! Sums a part block by block.

use std::ops::Range;

use super::displacement::{DisplacementLanes, Extent};
use super::divergence::{self, TERMS};
use super::exponential::{exp, exp_m1, exp_near_zero};
use super::part::{BLOCK, Block, Part};
use super::real::{Real, add_lanes, horizontal_sum};
use super::softmax::{NotFinite, Scaling, Segment, Sums};
use super::way::{Scratch, Visitor, visit};
use crate::vector::{Instructions, LANES};

/// The sums of one part as they grow, and its segments.
///
/// A kernel sums a block in lanes of its own width; the lanes then join sums in `f64`.
#[derive(Debug)]
pub(crate) struct Accumulator {
    sums: Sums,
    segments: Vec<Segment>,
    displacement: DisplacementLanes,
    vv: [f64; LANES],
    uv: [f64; LANES],
    uu: [f64; LANES],
    moments: [[f64; LANES]; TERMS],
    /// The sum of v over the blocks computed by series.
    near: f64,
    instructions: Instructions,
}

impl Accumulator {
    pub(crate) fn new(instructions: Instructions) -> Self {
        let zero = [0.0; LANES];
        Self {
            sums: Sums::default(),
            segments: Vec::new(),
            displacement: DisplacementLanes::default(),
            vv: zero,
            uv: zero,
            uu: zero,
            moments: [zero; TERMS],
            near: 0.0,
            instructions,
        }
    }

    /// Begins another part, with the memory of the last.
    pub(crate) fn clear(&mut self) {
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        *self = Self { segments, ..Self::new(self.instructions) };
    }

    /// Adds blocks of `part`, which follow those added before.
    pub(crate) fn add(
        &mut self,
        part: &Part,
        blocks: Range<usize>,
        scaling: &Scaling,
    ) -> Result<(), NotFinite> {
        let mut scratch = Scratch::new();
        for block in blocks {
            self.sums.entries += part.entries_of(block);
            visit(part, block, scaling, &mut scratch, self)?;
        }
        Ok(())
    }

    fn push(&mut self, segment: Segment) {
        self.sums.u += segment.u;
        self.sums.v += segment.v;
        self.segments.push(segment);
    }

    /// The segments, one for each block.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The sums over all blocks added.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = self.sums.clone();
        sums.displacement = self.displacement.sum();
        sums.vv += horizontal_sum(&self.vv);
        sums.uv += horizontal_sum(&self.uv);
        sums.uu += horizontal_sum(&self.uu);
        sums.moments[0] += self.near;
        for (moment, lanes) in sums.moments[1..].iter_mut().zip(&self.moments) {
            *moment += horizontal_sum(lanes);
        }
        sums
    }

    #[inline(always)]
    fn add_block<R: Real, const K: usize, const NEAR_ZERO: bool>(
        &mut self,
        x: &Block<R>,
        y: &Block<R>,
        valid: usize,
        center: R,
    ) {
        // Known to the compiler in the width that nearly all blocks have.
        let (valid, center) = if R::IS_NARROW { (BLOCK, R::default()) } else { (valid, center) };
        let zero = [R::default(); LANES];
        let (mut u_sum, mut v_sum, mut u_running, mut v_running) = (zero, zero, zero, zero);
        let (mut variation, mut vv, mut uv, mut uu) = (zero, zero, zero, zero);
        let mut moments = [zero; K];
        for start in (0..BLOCK).step_by(LANES) {
            for lane in 0..LANES {
                let (x, y) = (x[start + lane], y[start + lane]);
                let exists = if start + lane < valid { R::of(1.0) } else { R::default() };
                let v = exponential::<R, NEAR_ZERO>(x) * exists;
                let u = v * exp_m1::<R, K>(y);
                u_sum[lane] += u;
                v_sum[lane] += v;
                u_running[lane] += u_sum[lane];
                v_running[lane] += v_sum[lane];
                variation[lane] += u.abs();
                vv[lane] = v.mul_add(v, vv[lane]);
                uv[lane] = u.mul_add(v, uv[lane]);
                uu[lane] = u.mul_add(u, uu[lane]);
                let mut power = v;
                for moment in &mut moments {
                    power = power * (y - center);
                    moment[lane] += power;
                }
            }
        }
        add_lanes(&mut self.vv, &vv);
        add_lanes(&mut self.uv, &uv);
        add_lanes(&mut self.uu, &uu);
        add_lanes(self.moments.as_flattened_mut(), moments.as_flattened());
        let (u, v) = (horizontal_sum(&u_sum), horizontal_sum(&v_sum));
        let absent = (BLOCK - valid) as f64;
        self.near += v;
        self.push(Segment {
            u,
            v,
            u_area: area(&u_sum, &u_running) - absent * u,
            v_area: area(&v_sum, &v_running) - absent * v,
            u_variation: horizontal_sum(&variation),
        });
    }
}

impl Visitor for Accumulator {
    fn extent<R: Real>(&mut self, extent: &Extent<R>) {
        self.instructions.run(
            #[inline(always)]
            || self.displacement.add(extent),
        );
    }

    fn series<R: Real, const K: usize, const NEAR_ZERO: bool>(
        &mut self,
        x: &Block<R>,
        y: &Block<R>,
        valid: usize,
        center: R,
    ) {
        self.sums.has_narrow |= R::IS_NARROW;
        self.instructions.run(
            #[inline(always)]
            || self.add_block::<R, K, NEAR_ZERO>(x, y, valid, center),
        );
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize, center: f64) {
        let mut segment = Segment::default();
        for (x, y) in x.iter().zip(y).take(valid) {
            let (u, v) = closed_form_entry(*x, *y);
            segment.u += u;
            segment.v += v;
            segment.u_area += segment.u;
            segment.v_area += segment.v;
            segment.u_variation += u.abs();
            self.sums.vv += v * v;
            self.sums.uv += u * v;
            self.sums.uu += u * u;
            let divergences = divergence::of_entry(v, (u + v) * (-center).exp(), y - center);
            self.sums.far.kl += divergences.kl;
            self.sums.far.js += divergences.js;
        }
        self.sums.has_far = true;
        self.push(segment);
    }

    fn out_of_reach(&mut self) {
        self.sums.has_far = true;
        self.push(Segment::default());
    }
}

#[inline(always)]
fn exponential<R: Real, const NEAR_ZERO: bool>(x: R) -> R {
    if NEAR_ZERO { exp_near_zero(x) } else { exp(x) }
}

/// The sum over a block of the running sums, from those in each lane: entry j = LANES i + lane is part of
/// BLOCK - j running sums.
#[inline(always)]
fn area<R: Real>(sums: &[R; LANES], running: &[R; LANES]) -> f64 {
    let mut area = [0.0; LANES];
    for lane in 0..LANES {
        area[lane] = LANES as f64 * running[lane].wide() - lane as f64 * sums[lane].wide();
    }
    horizontal_sum(&area)
}

/// u and v where neither is bounded.
fn closed_form_entry(x: f64, y: f64) -> (f64, f64) {
    let v = x.exp();
    let u = if y.abs() < 1.0 { v * y.exp_m1() } else { (x + y).exp() - v };
    (u, v)
}

/// u and v of every entry of one block, for where a [`Segment`] is not enough.
pub(crate) struct Entries {
    pub(crate) u: Block<f64>,
    pub(crate) v: Block<f64>,
    instructions: Instructions,
}

impl Entries {
    pub(crate) fn new(instructions: Instructions) -> Self {
        Self { u: [0.0; BLOCK], v: [0.0; BLOCK], instructions }
    }

    /// Computes them as [`Accumulator::add`] did. Those past the end of the part are of no meaning.
    pub(crate) fn load(&mut self, part: &Part, block: usize, scaling: &Scaling, scratch: &mut Scratch) {
        // What is not finite was refused when the block was added.
        let _ = visit(part, block, scaling, scratch, self);
    }
}

impl Visitor for Entries {
    fn extent<R: Real>(&mut self, _: &Extent<R>) {}

    fn series<R: Real, const K: usize, const NEAR_ZERO: bool>(
        &mut self,
        x: &Block<R>,
        y: &Block<R>,
        _: usize,
        _: R,
    ) {
        self.instructions.run(
            #[inline(always)]
            || {
                for entry in 0..BLOCK {
                    let v = exponential::<R, NEAR_ZERO>(x[entry]);
                    self.v[entry] = v.wide();
                    self.u[entry] = (v * exp_m1::<R, K>(y[entry])).wide();
                }
            },
        );
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize, _: f64) {
        for entry in 0..valid {
            (self.u[entry], self.v[entry]) = closed_form_entry(x[entry], y[entry]);
        }
    }

    fn out_of_reach(&mut self) {}
}
