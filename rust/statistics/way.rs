//! Chooses the way in which a block is computed: the narrowest that is right for it.
//!
//! | largest entry of the block | way |
//! |---|---|
//! | theta_B <= 2 (or 1/4, faster), y <= 2^-6 | series of 5 terms in `f32` |
//! | theta_B <= 2 (or 1/4, faster), y <= 1/4 | series of 8 terms in `f32` |
//! | theta_B <= 150, y <= 1/4 | series of 12 terms in `f64` |
//! | theta_B <= 150, y <= 1 | series of 24 terms in `f64` |
//! | anything finite, in a frame | closed forms in `f64`, an entry at a time |
//!
//! The weights of large models take the first way or the second, at any usual temperature. `f32` is for
//! parts of [`MANY`] entries and more, whose rounding errors average out far below the precision of a
//! score; smaller parts cost next to nothing in `f64`. What decides is the part and the block alone, so
//! the result depends neither on threads nor on how a file is read.

use super::displacement::{Extent, extent};
use super::divergence::TERMS;
use super::part::{BLOCK, Block, Part};
use super::real::Real;
use super::softmax::{Frame, NotFinite, Scaling};
use crate::vector::Instructions;

/// What is done with a block, in the way that is right for it. `valid` of its entries exist; the others
/// are to be passed over. `x` and `y` are the arguments of the two exponentials.
pub(crate) trait Visitor {
    /// The block's weights moved this far.
    fn extent<R: Real>(&mut self, extent: &Extent<R>);

    /// `K` terms of the series in `y` are enough; with `NEAR_ZERO` a series is enough for e^x, too.
    fn series<R: Real, const K: usize, const NEAR_ZERO: bool>(
        &mut self,
        x: &Block<R>,
        y: &Block<R>,
        valid: usize,
        center: R,
    );

    /// No series is enough.
    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize, center: f64);

    /// The block needs a frame and there is none.
    fn out_of_reach(&mut self);
}

/// The largest y of the shortest series, and the largest |log(Z_T / Z_B)| for moments in `f32`.
pub(crate) const NARROW_REACH: f64 = 1.0 / 64.0;

/// The largest |log(Z_T / Z_B)|, from the frame's centre, for moments in `f64`.
pub(crate) const WIDE_REACH: f64 = 0.25;

/// The entries of a part from which on rounding errors of `f32` average out.
pub(crate) const MANY: usize = 1 << 16;

/// The smallest extent of a block, but for 0, with squares that are normal numbers in `f32`.
const TINY: f64 = 1.0 / (1u64 << 40) as f64;

/// Exponentials and their squares, summed over any number of entries, stay below overflow in `f64`.
const LARGEST_EXPONENT: f64 = 150.0;

/// An entry that is smaller than the largest by this factor of e adds nothing to any sum.
const NOTHING: f64 = -700.0;

/// Where blocks are decoded to. Kept from block to block, since clearing it costs as much as filling it.
pub(crate) struct Scratch {
    narrow: [Block<f32>; 2],
    wide: [Block<f64>; 2],
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { narrow: [[0.0; BLOCK]; 2], wide: [[0.0; BLOCK]; 2] }
    }
}

/// Loads one block and hands it to the visitor in the narrowest way that is right for it.
#[inline]
pub(crate) fn visit(
    part: &Part,
    block: usize,
    scaling: &Scaling,
    scratch: &mut Scratch,
    visitor: &mut impl Visitor,
) -> Result<(), NotFinite> {
    let valid = part.entries_of(block);
    if may_be_narrow(part, valid) && scaling.frame.is_none() && scaling.temperature == 1.0 && part.fits_f32()
    {
        let [x, y] = &mut scratch.narrow;
        let extent = load(part, block, x, y, scaling.instructions);
        if is_narrow(extent.largest_base, extent.largest_delta) {
            visitor.extent(&extent);
            visit_narrow(x, y, extent.largest_base, extent.largest_delta, visitor);
            return Ok(());
        }
    }
    visit_wide(part, block, valid, scaling, scratch, visitor)
}

/// [`visit`] by way of `f64`.
#[cold]
fn visit_wide(
    part: &Part,
    block: usize,
    valid: usize,
    scaling: &Scaling,
    scratch: &mut Scratch,
    visitor: &mut impl Visitor,
) -> Result<(), NotFinite> {
    let [x, y] = &mut scratch.wide;
    let extent = load(part, block, x, y, scaling.instructions);
    if !(extent.largest_base.is_finite() && extent.largest_delta.is_finite()) {
        return Err(not_finite(block, x, y));
    }
    visitor.extent(&extent);
    if let Some(frame) = &scaling.frame {
        visit_in_frame(x, y, valid, scaling.temperature, frame, visitor);
        return Ok(());
    }

    let factor = 1.0 / scaling.temperature;
    let (largest_x, largest_y) = (extent.largest_base * factor, extent.largest_delta * factor);
    let narrow = may_be_narrow(part, valid) && is_narrow(largest_x, largest_y);
    let [narrow_x, narrow_y] = &mut scratch.narrow;
    scaling.instructions.run(
        #[inline(always)]
        || {
            for entry in 0..BLOCK {
                x[entry] *= factor;
                y[entry] *= factor;
            }
            if narrow {
                for entry in 0..BLOCK {
                    narrow_x[entry] = x[entry] as f32;
                    narrow_y[entry] = y[entry] as f32;
                }
            }
        },
    );
    if narrow {
        visit_narrow(narrow_x, narrow_y, largest_x, largest_y, visitor);
    } else if largest_x <= LARGEST_EXPONENT && largest_y <= 1.0 {
        visit_series(x, y, valid, largest_y, 0.0, visitor);
    } else {
        visitor.out_of_reach();
    }
    Ok(())
}

/// Visits one block relative to the largest entries of its head.
fn visit_in_frame(
    x: &mut Block<f64>,
    y: &mut Block<f64>,
    valid: usize,
    temperature: f64,
    &Frame { base_max, shift, center }: &Frame,
    visitor: &mut impl Visitor,
) {
    let mut largest_y = 0f64;
    for (x, y) in x.iter_mut().zip(y.iter_mut()).take(valid) {
        *x = (*x - base_max) / temperature;
        *y = (*y - shift) / temperature;
        largest_y = largest_y.max(y.abs());
    }
    if largest_y <= 1.0 && center.abs() <= WIDE_REACH {
        x.iter_mut().for_each(|x| *x = x.max(NOTHING));
        visit_series(x, y, valid, largest_y, center, visitor);
    } else {
        visitor.closed_form(x, y, valid, center);
    }
}

fn load<R: Real>(
    part: &Part,
    block: usize,
    base: &mut Block<R>,
    delta: &mut Block<R>,
    instructions: Instructions,
) -> Extent<R> {
    instructions.run(
        #[inline(always)]
        || {
            part.load(block, base, delta);
            extent(base, delta)
        },
    )
}

fn may_be_narrow(part: &Part, valid: usize) -> bool {
    valid == BLOCK && part.entries() >= MANY
}

fn is_narrow(largest_x: f64, largest_y: f64) -> bool {
    let normal = |largest: f64| largest == 0.0 || largest >= TINY;
    largest_x <= 2.0 && largest_y <= 0.25 && normal(largest_x) && normal(largest_y)
}

#[inline]
fn visit_narrow(x: &Block<f32>, y: &Block<f32>, largest_x: f64, largest_y: f64, visitor: &mut impl Visitor) {
    match (largest_y <= NARROW_REACH, largest_x <= 0.25) {
        (true, true) => visitor.series::<f32, 5, true>(x, y, BLOCK, 0.0),
        (true, false) => visitor.series::<f32, 5, false>(x, y, BLOCK, 0.0),
        (false, true) => visitor.series::<f32, 8, true>(x, y, BLOCK, 0.0),
        (false, false) => visitor.series::<f32, 8, false>(x, y, BLOCK, 0.0),
    }
}

fn visit_series(
    x: &Block<f64>,
    y: &Block<f64>,
    valid: usize,
    largest_y: f64,
    center: f64,
    visitor: &mut impl Visitor,
) {
    if largest_y <= 0.25 {
        visitor.series::<f64, 12, false>(x, y, valid, center);
    } else {
        visitor.series::<f64, TERMS, false>(x, y, valid, center);
    }
}

fn not_finite(block: usize, base: &Block<f64>, delta: &Block<f64>) -> NotFinite {
    let index = base.iter().zip(delta).position(|(base, delta)| !(base.is_finite() && delta.is_finite()));
    let index = index.unwrap_or_default();
    NotFinite { entry: block * BLOCK + index, tuned: base[index].is_finite() }
}
