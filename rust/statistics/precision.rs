//! Chooses the precision and the series of a block: the cheapest that are right for its magnitudes.
//!
//! # How it works
//!
//! The exponentials of an entry are e^(m - y / 2) and e^(m + y / 2), in the [symbols](super#symbols) of this folder.
//! e^m is evaluated by a polynomial in m, or to full precision, and the rest by the powers of y from y^0 to y^(p - 1).
//! The higher the powers, the larger the |m| and |y| that the series are right for:
//!
//! | largest m | largest y | e^m | p | precision |
//! |---|---|---|---|---|
//! | 3/16 | 2^-9 | degree 4 | 3 | `f32` |
//! | 1/2 | 2^-9 | degree 6 | 3 | `f32` |
//! | 1/2 | 2^-7 | degree 6 | 4 | `f32` |
//! | 1/2 | 1/4 | degree 6 | 6 | `f32` |
//! | 4 | 1/4 | full | 6 | `f32` |
//! | 150 | 1/4 | full | 11 | `f64` |
//! | 150 | 1 | full | 23 | `f64` |
//! | any | any | closed forms of each entry, with an offset | | `f64` |
//!
//! The weights of large models take one of the first three rows, at any usual temperature. Vectors of
//! [`MIN_F32_ENTRIES`] entries and more are summed in `f32`: their rounding errors average out far below the precision
//! of a score. Smaller vectors cost next to nothing in `f64`. [`super::VectorSums`] calls [`may_be_f32`],
//! [`SeriesLengths::choose`] and [`F64Method::choose`] for each block. The choice depends on the weights and the
//! temperature only, not on the threads or on how a file is read.
//!
//! This choice is for a block. Two others are for a whole head, once its sums are known, in `group_measurement`: a head
//! whose changes undo one another is measured with an offset (`is_well_conditioned`), and one whose sums in `f32` lost too
//! much is measured again in `f64` ([`needs_f64`](super::HeadMeasurements::needs_f64)).

use super::block::BLOCK;
use super::series::{FULL, exponent_reach};
use super::softmax_sums::SoftmaxSettings;
use super::weight_change::Magnitudes;
use super::weight_vector::WeightVector;

/// How a block is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Precision {
    F32(SeriesLengths),
    F64(F64Method),
}

/// The methods in `f64`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum F64Method {
    /// The series for y up to 1/4.
    ShortSeries,
    /// The series for y up to 1.
    LongSeries,
    /// No series, with an offset.
    ClosedForm,
    /// Not computed: the block needs an offset.
    OutOfRange,
}

/// The lengths of the series of a block in `f32`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SeriesLengths {
    /// The degree of the polynomial in m, or [`FULL`].
    pub(crate) degree: u8,
    /// The number of powers of y, from y^0 on.
    pub(crate) powers: u8,
}

/// The largest |log(Z_T / Z_B)| of a head with blocks in `f32`. Where the series of c and u ([`super::series`]) are cut
/// off after their first terms, P_T - P_B comes out too small by an eighth of the square of that logarithm.
pub(crate) const LARGEST_F32_LOG_RATIO: f64 = 1.0 / 1024.0;

/// The largest |log(Z_T / Z_B)| of a head with moments in `f64`.
pub(crate) const LARGEST_LOG_RATIO: f64 = 0.25;

/// The number of entries from which on the rounding errors of `f32` average out.
pub(crate) const MIN_F32_ENTRIES: usize = 1 << 16;

/// The smallest magnitude of a block, other than 0, whose squares are normal numbers in `f32`.
const TINY: f64 = 1.0 / (1u64 << 40) as f64;

/// The largest exponent without an offset: sums of squared exponentials stay below overflow in `f64`.
const LARGEST_EXPONENT: f64 = 150.0;

impl SeriesLengths {
    /// Every choice, the shortest first.
    const ALL: [Self; 5] =
        [Self::new(4, 3), Self::new(6, 3), Self::new(6, 4), Self::new(6, 6), Self::new(FULL, 6)];

    #[inline(always)]
    pub(crate) const fn new(degree: usize, powers: usize) -> Self {
        Self { degree: degree as u8, powers: powers as u8 }
    }

    /// Decides whether a block is computed in `f32`, and by which series. `compute` sums the block by series of given
    /// lengths and returns its magnitudes, and adds nothing if the series do not cover them; it runs until series cover
    /// the block. Returns the shortest series that are right for the block; `None` if it needs `f64`.
    #[inline(always)]
    pub(crate) fn choose(
        previous: Option<Precision>,
        mut compute: impl FnMut(Self) -> Magnitudes,
    ) -> Option<Self> {
        let mut lengths = Self::guess(previous);
        loop {
            let magnitudes = compute(lengths);
            let shortest = Self::shortest(&magnitudes)?;
            if lengths.cover(&magnitudes) {
                return Some(shortest);
            }
            lengths = shortest;
        }
    }

    /// A guess for the block after one that was computed in `previous`. Measuring the entries first would take a third
    /// of the time of their sums.
    #[inline(always)]
    fn guess(previous: Option<Precision>) -> Self {
        match previous {
            Some(Precision::F32(lengths)) => lengths,
            _ => Self::ALL[0],
        }
    }

    /// The shortest series for a block of these magnitudes; `None` if it needs `f64`.
    fn shortest(magnitudes: &Magnitudes) -> Option<Self> {
        Self::ALL.into_iter().find(|lengths| lengths.cover(magnitudes))
    }

    /// Whether the series are right for a block of these magnitudes.
    #[inline(always)]
    pub(crate) fn cover(&self, magnitudes: &Magnitudes) -> bool {
        let largest_y = match self.powers {
            3 => 1.0 / 512.0,
            4 => 1.0 / 128.0,
            _ => 0.25,
        };
        let has_squares = |largest: f64| largest == 0.0 || largest >= TINY;
        magnitudes.base + 0.5 * magnitudes.delta <= exponent_reach(self.degree as usize)
            && magnitudes.delta <= largest_y
            && has_squares(magnitudes.base)
            && has_squares(magnitudes.delta)
    }
}

/// Whether `f32` may be precise enough for a block: one that is whole, of a large vector, without an offset.
#[inline(always)]
pub(crate) fn may_be_f32(vector: &WeightVector, block: usize, settings: &SoftmaxSettings) -> bool {
    vector.entries_of(block) == BLOCK && vector.entries() >= MIN_F32_ENTRIES && settings.offset.is_none()
}

impl F64Method {
    /// The method for a block: `base` of `largest` bounds |x|, and `delta` bounds |y|, so that |m| <= base + delta / 2.
    pub(crate) fn choose(largest: &Magnitudes, has_offset: bool) -> Self {
        let is_bounded = has_offset || largest.base <= LARGEST_EXPONENT;
        match largest.delta {
            y if is_bounded && y <= 0.25 => Self::ShortSeries,
            y if is_bounded && y <= 1.0 => Self::LongSeries,
            _ if has_offset => Self::ClosedForm,
            _ => Self::OutOfRange,
        }
    }
}
