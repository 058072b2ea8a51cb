//! Chooses the way in which a block is computed: the narrowest that is right for it.
//!
//! | largest m | largest y | way |
//! |---|---|---|
//! | 3/16 or 1/2 | 2^-9 | series of 4 or 6 terms in m and 3 in y, in `f32` |
//! | 1/2 | 2^-7 | series of 6 terms in m and 4 in y, in `f32` |
//! | 1/2 or 4 | 1/4 | series of 6 or all terms in m and 6 in y, in `f32` |
//! | 150 | 1/4 or 1 | series of all terms in m and 11 or 23 in y, in `f64` |
//! | anything finite | anything finite | closed forms in `f64`, an entry at a time, in a frame |
//!
//! where m and y are the mean and the difference of the two exponents, theta_B and theta_T over the temperature. The weights of large models take the first way or the second, at any usual temperature.
//! `f32` is for parts of [`MANY`] entries and more, whose rounding errors average out far below the
//! precision of a score, but for [delicate](super::HeadMeasurements::needs_f64) ones; smaller parts cost next to nothing
//! in `f64`. What decides is the part alone, so
//! the result depends neither on threads nor on how a file is read.

use super::accumulate::Accumulator;
use super::displacement::{Extent, Measure};
use super::series::{FULL, exponent_reach};
use super::softmax_sums::{Frame, NonFiniteEntry, Scaling};
use super::weight_vector::{BLOCK, Block, Decoded, Pairs, WeightVector};
use crate::simd::real::Real;

/// What is done with a block, in the way that is right for it. `valid` of its entries exist; the others
/// add nothing.
pub(crate) trait Visitor {
    /// `X` terms of the series in m and `K` powers of y are enough, if the extent returned is in their
    /// reach; if not, nothing is done.
    fn series<R: Real, P: Pairs<R>, const X: usize, const K: usize>(
        &mut self,
        pairs: P,
        valid: usize,
    ) -> Extent;

    /// No series is enough.
    fn closed_form(&mut self, x: &Block<f64>, y: &Block<f64>, valid: usize);

    /// The block needs a frame and there is none.
    fn out_of_reach(&mut self);
}

/// The way in which a block was computed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// In `f32`.
    Narrow(Reach),
    /// In `f64`.
    Wide(WideWay),
}

/// The ways in `f64`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WideWay {
    /// By a series in y up to 1/4.
    Quarter,
    /// By a series in y up to 1.
    One,
    /// By no series, in a frame.
    ClosedForm,
    /// Not at all: the block needs a frame.
    OutOfReach,
}

/// What a series in `f32` can be used for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reach {
    terms: u8,
    powers: u8,
}

/// The largest |log(Z_T / Z_B)| for blocks in `f32`. Where c and u are cut off after their first terms, the
/// difference of the softmaxes comes out too small by an eighth of its square.
pub(crate) const NARROW_REACH: f64 = 1.0 / 1024.0;

/// The largest |log(Z_T / Z_B)| for moments in `f64`.
pub(crate) const WIDE_REACH: f64 = 0.25;

/// The entries of a part from which on rounding errors of `f32` average out.
pub(crate) const MANY: usize = 1 << 16;

/// The smallest extent of a block, but for 0, with squares that are normal numbers in `f32`.
const TINY: f64 = 1.0 / (1u64 << 40) as f64;

/// Exponentials and their squares, summed over any number of entries, stay below overflow in `f64`.
const LARGEST_EXPONENT: f64 = 150.0;

/// An entry that is smaller than the largest by this factor of e adds nothing to any sum.
const NOTHING: f64 = -700.0;

impl Reach {
    /// The narrowest first.
    const ALL: [Self; 5] =
        [Self::new(4, 3), Self::new(6, 3), Self::new(6, 4), Self::new(6, 6), Self::new(FULL, 6)];

    #[inline(always)]
    pub(crate) const fn new(terms: usize, powers: usize) -> Self {
        Self { terms: terms as u8, powers: powers as u8 }
    }

    /// The narrowest for a block of this extent.
    fn of(extent: &Extent) -> Option<Self> {
        Self::ALL.into_iter().find(|reach| reach.covers(extent))
    }

    /// Whether the series are right for a block of this extent.
    #[inline(always)]
    pub(crate) fn covers(&self, extent: &Extent) -> bool {
        let largest_y = match self.powers {
            3 => 1.0 / 512.0,
            4 => 1.0 / 128.0,
            _ => 0.25,
        };
        let is_held = |largest: f64| largest == 0.0 || largest >= TINY;
        extent.base + 0.5 * extent.delta <= exponent_reach(self.terms as usize)
            && extent.delta <= largest_y
            && is_held(extent.base)
            && is_held(extent.delta)
    }
}

/// Where blocks are decoded to, once one has to be. Kept from block to block, since clearing it costs as much as
/// filling it.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<Box<Decoding>>);

#[derive(Debug)]
struct Decoding {
    narrow: [Block<f32>; 2],
    wide: [Block<f64>; 2],
}

impl Scratch {
    fn decoding(&mut self) -> &mut Decoding {
        self.0
            .get_or_insert_with(|| Box::new(Decoding { narrow: [[0.0; BLOCK]; 2], wide: [[0.0; BLOCK]; 2] }))
    }
}

/// Adds one block in the narrowest way that is right for it. `expected` is a guess, the way of the block
/// before: to look at the entries first would take a third of the time that it takes to sum them.
#[inline]
pub(crate) fn visit(
    part: &WeightVector,
    block: usize,
    scaling: &Scaling,
    expected: Option<Way>,
    scratch: &mut Scratch,
    sums: &mut Accumulator,
) -> Result<Way, NonFiniteEntry> {
    let valid = part.entries_of(block);
    if valid == BLOCK && part.entries() >= MANY && scaling.frame.is_none() {
        let mut reach = match expected {
            Some(Way::Narrow(reach)) => reach,
            _ => Reach::ALL[0],
        };
        loop {
            let extent = visit_narrow(part, block, scaling, reach, scratch, sums);
            match Reach::of(&extent) {
                Some(next) if reach.covers(&extent) => return Ok(Way::Narrow(next)),
                Some(needed) => reach = needed,
                None => break,
            }
        }
    }
    visit_wide(part, block, scaling, scratch, sums)
}

/// Goes through one block in the way in which it was computed before.
#[inline]
pub(crate) fn revisit(
    part: &WeightVector,
    block: usize,
    scaling: &Scaling,
    way: Way,
    scratch: &mut Scratch,
    visitor: &mut impl Visitor,
) {
    match way {
        Way::Narrow(reach) => {
            visit_narrow(part, block, scaling, reach, scratch, visitor);
        }
        Way::Wide(way) => {
            let valid = part.entries_of(block);
            let [x, y] = &mut scratch.decoding().wide;
            decode(part, block, scaling, x, y);
            arguments(x, y, valid, scaling);
            visit_by(way, x, y, valid, visitor);
        }
    }
}

fn visit_narrow(
    part: &WeightVector,
    block: usize,
    scaling: &Scaling,
    reach: Reach,
    scratch: &mut Scratch,
    visitor: &mut impl Visitor,
) -> Extent {
    let is_plain = scaling.temperature == 1.0;
    if let Some(stored) = part.bf16(block).filter(|_| is_plain) {
        return visit_series(stored, reach, visitor);
    }
    if let Some(computed) = part.narrow(block).filter(|_| is_plain) {
        return visit_series(computed, reach, visitor);
    }
    let Decoding { narrow: [x, y], wide: [wide_x, wide_y] } = scratch.decoding();
    if is_plain && part.fits_f32() {
        decode(part, block, scaling, x, y);
    } else {
        decode(part, block, scaling, wide_x, wide_y);
        arguments(wide_x, wide_y, BLOCK, scaling);
        for (narrow, wide) in [(&mut *x, wide_x), (&mut *y, wide_y)] {
            for (narrow, wide) in narrow.iter_mut().zip(wide.iter()) {
                *narrow = *wide as f32;
            }
        }
    }
    visit_series(Decoded { base: x, delta: y }, reach, visitor)
}

#[inline]
fn visit_series<P: Pairs<f32>>(pairs: P, reach: Reach, visitor: &mut impl Visitor) -> Extent {
    match (reach.terms, reach.powers) {
        (4, _) => visitor.series::<f32, P, 4, 3>(pairs, BLOCK),
        (_, 3) => visitor.series::<f32, P, 6, 3>(pairs, BLOCK),
        (_, 4) => visitor.series::<f32, P, 6, 4>(pairs, BLOCK),
        (6, _) => visitor.series::<f32, P, 6, 6>(pairs, BLOCK),
        _ => visitor.series::<f32, P, FULL, 6>(pairs, BLOCK),
    }
}

/// [`visit`] in `f64`.
#[cold]
fn visit_wide(
    part: &WeightVector,
    block: usize,
    scaling: &Scaling,
    scratch: &mut Scratch,
    sums: &mut Accumulator,
) -> Result<Way, NonFiniteEntry> {
    let valid = part.entries_of(block);
    let [x, y] = &mut scratch.decoding().wide;
    decode(part, block, scaling, x, y);
    if let Some(entry) = not_finite(block, x, y) {
        return Err(entry);
    }
    sums.add_displacement(&scaling.instructions.run(Measure(Decoded { base: x, delta: y })));
    let largest = arguments(x, y, valid, scaling);
    let in_reach = scaling.frame.is_some() || largest.base <= LARGEST_EXPONENT;
    let way = match largest.delta {
        y if in_reach && y <= 0.25 => WideWay::Quarter,
        y if in_reach && y <= 1.0 => WideWay::One,
        _ if scaling.frame.is_some() => WideWay::ClosedForm,
        _ => WideWay::OutOfReach,
    };
    visit_by(way, x, y, valid, sums);
    Ok(Way::Wide(way))
}

fn visit_by(way: WideWay, x: &mut Block<f64>, y: &mut Block<f64>, valid: usize, visitor: &mut impl Visitor) {
    match way {
        WideWay::ClosedForm => visitor.closed_form(x, y, valid),
        WideWay::OutOfReach => visitor.out_of_reach(),
        WideWay::Quarter | WideWay::One => {
            x.iter_mut().for_each(|x| *x = x.max(NOTHING));
            x[valid..].fill(NOTHING);
            y[valid..].fill(0.0);
            let pairs = Decoded { base: &*x, delta: &*y };
            if matches!(way, WideWay::Quarter) {
                visitor.series::<f64, _, FULL, 11>(pairs, valid);
            } else {
                visitor.series::<f64, _, FULL, 23>(pairs, valid);
            }
        }
    }
}

/// Turns theta into the arguments of the exponentials, and gives the largest of them.
fn arguments(x: &mut Block<f64>, y: &mut Block<f64>, valid: usize, scaling: &Scaling) -> Extent {
    let factor = 1.0 / scaling.temperature;
    // Without a frame nothing is taken off.
    let Frame { base_max, shift, center } = scaling.frame.unwrap_or_default();
    let mut largest = Extent { base: 0.0, delta: 0.0 };
    for (x, y) in x[..valid].iter_mut().zip(&mut y[..valid]) {
        *x = (*x - base_max) * factor;
        *y = (*y - shift) * factor - center;
        largest.base = largest.base.max(x.abs());
        largest.delta = largest.delta.max(y.abs());
    }
    largest
}

/// Decodes one block.
#[inline]
fn decode<R: Real>(part: &WeightVector, block: usize, scaling: &Scaling, x: &mut Block<R>, y: &mut Block<R>) {
    scaling.instructions.run_loops(
        #[inline(always)]
        || part.load(block, x, y),
    );
}

fn not_finite(block: usize, base: &Block<f64>, delta: &Block<f64>) -> Option<NonFiniteEntry> {
    let index = base.iter().zip(delta).position(|(base, delta)| !(base.is_finite() && delta.is_finite()))?;
    Some(NonFiniteEntry { entry: block * BLOCK + index, is_tuned: base[index].is_finite() })
}
