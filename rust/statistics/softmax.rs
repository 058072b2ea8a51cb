//! Sums over the entries of theta under its softmax, in one pass.
//!
//! With theta scaled by the temperature, v = e^theta_B and u = e^theta_T - e^theta_B = v (e^y - 1) where
//! y = theta_T - theta_B. The difference is never taken between two nearly equal numbers, so a score is
//! as precise as y itself however close the checkpoints are. What the statistics need of the two
//! softmaxes are sums of u, v, their products and v y^k; the normalisers come last, so the sums of a
//! key/value part serve every head that reads it.
//!
//! A block is computed in the narrowest way that is right for it. Series in y make up nearly all work:
//!
//! | largest entry of the block | way |
//! |---|---|
//! | theta_B <= 2, y <= 2^-6 | `f32`, 5 terms |
//! | theta_B <= 2, y <= 1/4 | `f32`, 8 terms |
//! | theta_B <= 150, y <= 1 | `f64`, 24 terms |
//! | anything finite | closed forms in `f64`, an entry at a time |

use super::displacement::{Displacement, Extent, extent, horizontal_sum};
use super::divergence::{self, TERMS};
use super::exponential::{exp, exp_m1};
use super::part::{BLOCK, Block, Part};
use super::real::Real;
use crate::vector::{Instructions, LANES};

/// The largest entries, relative to which exponentials are taken where they could overflow or where
/// the largest entry outweighs all others: `x = theta_B - base_max`, `y = delta - (tuned_max - base_max)`.
/// No statistic depends on them. They are in units of the stored weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) base_max: f64,
    pub(crate) tuned_max: f64,
    /// log(Z_T / Z_B) in this frame as far as it is known: moments are taken about it.
    pub(crate) center: f64,
}

/// What a block adds to the running sums C of P: enough to integrate |C_T - C_B| over it without its
/// entries where the sign does not change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Segment {
    /// The sum of u.
    pub(crate) u: f64,
    /// The sum of v.
    pub(crate) v: f64,
    /// The sum of the running sums of u.
    pub(crate) u_area: f64,
    /// The sum of the running sums of v.
    pub(crate) v_area: f64,
    /// The sum of |u|.
    pub(crate) u_variation: f64,
}

/// The sums over one part of theta, or over several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) entries: usize,
    pub(crate) displacement: Displacement,
    pub(crate) u: f64,
    pub(crate) v: f64,
    pub(crate) vv: f64,
    pub(crate) uv: f64,
    pub(crate) uu: f64,
    /// The sums of v y^k over the blocks computed by series, y from the frame's centre.
    pub(crate) moments: [f64; TERMS + 1],
    /// The divergences of the blocks computed in closed form, times Z_B.
    pub(crate) far: divergence::Divergences,
    /// Whether there are blocks that no series reaches. Without a frame they are left out of the sums
    /// of the softmax, which are then of no use.
    pub(crate) has_far: bool,
}

impl Sums {
    /// Adds the sums of another stretch of theta.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.entries += other.entries;
        self.displacement.merge(&other.displacement);
        self.u += other.u;
        self.v += other.v;
        self.vv += other.vv;
        self.uv += other.uv;
        self.uu += other.uu;
        for (sum, more) in self.moments.iter_mut().zip(&other.moments) {
            *sum += more;
        }
        self.far.kl += other.far.kl;
        self.far.js += other.far.js;
        self.has_far |= other.has_far;
    }
}

/// An entry that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// Its place in the part.
    pub entry: usize,
    /// Whether it is the tuned side's.
    pub tuned: bool,
    /// What stands there.
    pub value: f64,
}

/// How theta becomes the argument of an exponential.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaling {
    pub(crate) temperature: f64,
    pub(crate) frame: Option<Frame>,
    pub(crate) instructions: Instructions,
}

/// What [`visit`] does with a block, in the way that is right for it. `valid` entries exist; the
/// others are to be passed over.
trait Visitor {
    fn extent(&mut self, extent: &Displacement);
    fn series<R: Real, const K: usize>(&mut self, x: &Block<R>, y: &Block<R>, valid: usize, center: R);
    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize, center: f64);
    /// The block needs a frame and there is none.
    fn out_of_reach(&mut self);
}

/// The smallest nonzero extent of a block for `f32`: squares of what matters are normal numbers.
const TINY: f64 = 1.0 / (1u64 << 40) as f64;

#[inline(always)]
fn narrow_terms(base: f64, delta: f64) -> Option<usize> {
    let normal = |largest: f64| largest == 0.0 || largest >= TINY;
    if base <= 2.0 && delta <= 0.25 && normal(base) && normal(delta) {
        Some(if delta <= divergence::SHORT_REACH { 5 } else { 8 })
    } else {
        None
    }
}

#[inline(always)]
fn visit_narrow(
    terms: usize,
    x: &Block<f32>,
    y: &Block<f32>,
    visitor: &mut impl Visitor,
) {
    if terms == 5 {
        visitor.series::<f32, 5>(x, y, BLOCK, 0.0);
    } else {
        visitor.series::<f32, 8>(x, y, BLOCK, 0.0);
    }
}

/// Loads one block and hands it to the visitor in the narrowest way that is right for it.
#[inline(always)]
fn visit(part: &Part, block: usize, scaling: &Scaling, visitor: &mut impl Visitor) -> Result<(), NotFinite> {
    let valid = part.entries_of(block);
    if valid == BLOCK && scaling.frame.is_none() && scaling.temperature == 1.0 && part.fits_f32() {
        let (mut base, mut delta) = ([0f32; BLOCK], [0f32; BLOCK]);
        part.load(block, &mut base, &mut delta);
        let Extent { displacement, largest_base, largest_delta } = extent(&base, &delta);
        if let Some(terms) = narrow_terms(largest_base, largest_delta) {
            visitor.extent(&displacement);
            visit_narrow(terms, &base, &delta, visitor);
            return Ok(());
        }
    }
    visit_wide(part, block, valid, scaling, visitor)
}

/// [`visit`] by way of `f64`. Kept out of line: it is rare, and the common way is better off alone.
#[inline(always)]
fn visit_wide(
    part: &Part,
    block: usize,
    valid: usize,
    scaling: &Scaling,
    visitor: &mut impl Visitor,
) -> Result<(), NotFinite> {
    let (mut x, mut y) = ([0f64; BLOCK], [0f64; BLOCK]);
    part.load(block, &mut x, &mut y);
    let Extent { displacement, largest_base, largest_delta } = extent(&x, &y);
    if !(largest_base.is_finite() && largest_delta.is_finite()) {
        refuse_not_finite(block, &x, &y)?;
    }
    visitor.extent(&displacement);

    let Scaling { temperature, frame } = *scaling;
    if let Some(Frame { base_max, tuned_max, center }) = frame {
        let shift = tuned_max - base_max;
        let mut largest = 0f64;
        for (x, y) in x.iter_mut().zip(&mut y) {
            // An entry as small as e^-700 of the largest is nothing beside it; e^x must stay normal.
            *x = ((*x - base_max) / temperature).max(-700.0);
            *y = (*y - shift) / temperature;
        }
        for (x, y) in x.iter_mut().zip(&mut y).skip(valid) {
            (*x, *y) = (0.0, 0.0);
        }
        for y in &y {
            largest = largest.max(y.abs());
        }
        if largest <= 1.0 && center.abs() <= divergence::LONG_REACH - 1.0 {
            visitor.series::<f64, TERMS>(&x, &y, valid, center);
        } else {
            // In closed form both exponentials are taken, so the clamp above must not tie them together.
            let mut base = [0f64; BLOCK];
            part.load(block, &mut base, &mut [0f64; BLOCK]);
            for (x, base) in x.iter_mut().zip(&base).take(valid) {
                *x = (*base - base_max) / temperature;
            }
            visitor.closed_form(&x, &y, valid, center);
        }
        return Ok(());
    }

    let (base, delta) = (largest_base / temperature, largest_delta / temperature);
    if base <= 150.0 && delta <= 1.0 {
        for (x, y) in x.iter_mut().zip(&mut y) {
            *x /= temperature;
            *y /= temperature;
        }
        match narrow_terms(base, delta) {
            Some(terms) if valid == BLOCK => {
                visit_narrow(terms, &x.map(|x| x as f32), &y.map(|y| y as f32), visitor);
            }
            _ => visitor.series::<f64, TERMS>(&x, &y, valid, 0.0),
        }
    } else {
        visitor.out_of_reach();
    }
    Ok(())
}

#[cold]
fn refuse_not_finite(block: usize, base: &Block<f64>, delta: &Block<f64>) -> Result<(), NotFinite> {
    for (index, (base, delta)) in base.iter().zip(delta).enumerate() {
        let entry = block * BLOCK + index;
        if !base.is_finite() {
            return Err(NotFinite { entry, tuned: false, value: *base });
        }
        if !delta.is_finite() {
            return Err(NotFinite { entry, tuned: true, value: *base + *delta });
        }
    }
    Ok(())
}

/// The sums of one part as they grow, and its segments.
#[derive(Debug)]
pub(crate) struct Accumulator {
    sums: Sums,
    segments: Vec<Segment>,
    vv: [f64; LANES],
    uv: [f64; LANES],
    uu: [f64; LANES],
    moments: [[f64; LANES]; TERMS],
    /// The sum of v over the blocks computed by series.
    near: f64,
}

impl Default for Accumulator {
    fn default() -> Self {
        let zero = [0.0; LANES];
        Self {
            sums: Sums::default(),
            segments: Vec::new(),
            vv: zero,
            uv: zero,
            uu: zero,
            moments: [zero; TERMS],
            near: 0.0,
        }
    }
}

impl Accumulator {
    /// Begins another part, with the memory of the last.
    pub(crate) fn clear(&mut self) {
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        *self = Self { segments, ..Self::default() };
    }

    /// Adds the blocks `blocks` of `part`, which follow those added before. To be called within
    /// [`crate::vector::Instructions::run`].
    #[inline(always)]
    pub(crate) fn add(
        &mut self,
        part: &Part,
        blocks: std::ops::Range<usize>,
        scaling: &Scaling,
    ) -> Result<(), NotFinite> {
        for block in blocks {
            self.sums.entries += part.entries_of(block);
            visit(part, block, scaling, self)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn add_products<R: Real>(&mut self, u: &Block<R>, v: &Block<R>) {
        let zero = [R::default(); LANES];
        let (mut vv, mut uv, mut uu) = (zero, zero, zero);
        for (u, v) in u.as_chunks::<LANES>().0.iter().zip(v.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                vv[lane] = v[lane].mul_add(v[lane], vv[lane]);
                uv[lane] = u[lane].mul_add(v[lane], uv[lane]);
                uu[lane] = u[lane].mul_add(u[lane], uu[lane]);
            }
        }
        add_lanes(&mut self.vv, &vv);
        add_lanes(&mut self.uv, &uv);
        add_lanes(&mut self.uu, &uu);
    }

    #[inline(always)]
    fn add_moments<R: Real, const K: usize>(&mut self, v: &Block<R>, y: &Block<R>, center: R) {
        let mut moments = [[R::default(); LANES]; K];
        for (v, y) in v.as_chunks::<LANES>().0.iter().zip(y.as_chunks::<LANES>().0) {
            let mut power = *v;
            for moment in &mut moments {
                for lane in 0..LANES {
                    power[lane] = power[lane] * (y[lane] - center);
                    moment[lane] += power[lane];
                }
            }
        }
        for (sum, moment) in self.moments.iter_mut().zip(&moments) {
            add_lanes(sum, moment);
        }
    }

    /// The segments, one for each block.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The sums over all blocks added.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = self.sums.clone();
        for segment in &self.segments {
            sums.u += segment.u;
            sums.v += segment.v;
        }
        sums.vv += horizontal_sum(&self.vv);
        sums.uv += horizontal_sum(&self.uv);
        sums.uu += horizontal_sum(&self.uu);
        sums.moments[0] += self.near;
        for (moment, lanes) in sums.moments[1..].iter_mut().zip(&self.moments) {
            *moment += horizontal_sum(lanes);
        }
        sums
    }
}

impl Visitor for Accumulator {
    #[inline(always)]
    fn extent(&mut self, displacement: &Displacement) {
        self.sums.displacement.merge(displacement);
    }

    #[inline(always)]
    fn series<R: Real, const K: usize>(&mut self, x: &Block<R>, y: &Block<R>, valid: usize, center: R) {
        let Exponentials { u, v } = exponentials::<R, K>(x, y, valid);
        self.add_products(&u, &v);
        self.add_moments::<R, K>(&v, y, center);
        let segment = segment(&u, &v, BLOCK - valid);
        self.near += segment.v;
        self.segments.push(segment);
    }

    #[cold]
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
        self.segments.push(segment);
    }

    #[cold]
    fn out_of_reach(&mut self) {
        self.sums.has_far = true;
        self.segments.push(Segment::default());
    }
}

#[inline(always)]
fn add_lanes<R: Real>(sums: &mut [f64; LANES], lanes: &[R; LANES]) {
    for lane in 0..LANES {
        sums[lane] += lanes[lane].wide();
    }
}

struct Exponentials<R> {
    u: Block<R>,
    v: Block<R>,
}

#[inline(always)]
fn exponentials<R: Real, const K: usize>(x: &Block<R>, y: &Block<R>, valid: usize) -> Exponentials<R> {
    let mut out = Exponentials { u: [R::default(); BLOCK], v: [R::default(); BLOCK] };
    for entry in 0..BLOCK {
        let v = exp(x[entry]);
        out.v[entry] = v;
        out.u[entry] = v * exp_m1::<R, K>(y[entry]);
    }
    if valid < BLOCK {
        out.u[valid..].fill(R::default());
        out.v[valid..].fill(R::default());
    }
    out
}

/// The segment of a block whose last `absent` entries do not exist.
#[inline(always)]
fn segment<R: Real>(u: &Block<R>, v: &Block<R>, absent: usize) -> Segment {
    let zero = [R::default(); LANES];
    let (mut u_sum, mut v_sum, mut u_running, mut v_running, mut variation) = (zero, zero, zero, zero, zero);
    for (u, v) in u.as_chunks::<LANES>().0.iter().zip(v.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            u_sum[lane] += u[lane];
            v_sum[lane] += v[lane];
            u_running[lane] += u_sum[lane];
            v_running[lane] += v_sum[lane];
            variation[lane] += u[lane].abs();
        }
    }
    let (u, v) = (horizontal_sum(&u_sum), horizontal_sum(&v_sum));
    Segment {
        u,
        v,
        u_area: area(&u_sum, &u_running) - absent as f64 * u,
        v_area: area(&v_sum, &v_running) - absent as f64 * v,
        u_variation: horizontal_sum(&variation),
    }
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
}

impl Entries {
    /// Computes them as [`Accumulator::add`] did. To be called within
    /// [`crate::vector::Instructions::run`].
    #[inline(always)]
    pub(crate) fn of(part: &Part, block: usize, scaling: &Scaling) -> Self {
        let mut entries = Self { u: [0.0; BLOCK], v: [0.0; BLOCK] };
        // What is not finite was refused when the block was added.
        let _ = visit(part, block, scaling, &mut entries);
        entries
    }
}

impl Visitor for Entries {
    #[inline(always)]
    fn extent(&mut self, _: &Displacement) {}

    #[inline(always)]
    fn series<R: Real, const K: usize>(&mut self, x: &Block<R>, y: &Block<R>, valid: usize, _: R) {
        let Exponentials { u, v } = exponentials::<R, K>(x, y, valid);
        self.u = u.map(R::wide);
        self.v = v.map(R::wide);
    }

    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize, _: f64) {
        for index in 0..valid {
            (self.u[index], self.v[index]) = closed_form_entry(x[index], y[index]);
        }
    }

    fn out_of_reach(&mut self) {}
}

/// The largest entries of both sides over all parts of theta.
pub(crate) fn frame(parts: &[Part]) -> Frame {
    let mut frame = Frame { base_max: f64::NEG_INFINITY, tuned_max: f64::NEG_INFINITY, center: 0.0 };
    let (mut base, mut delta) = ([0f64; BLOCK], [0f64; BLOCK]);
    for part in parts {
        for block in 0..part.blocks() {
            part.load(block, &mut base, &mut delta);
            for (base, delta) in base.iter().zip(&delta).take(part.entries_of(block)) {
                frame.base_max = frame.base_max.max(*base);
                frame.tuned_max = frame.tuned_max.max(*base + *delta);
            }
        }
    }
    frame
}
