//! How far the weights themselves have moved, before any softmax.

use super::weight_vector::{BLOCK, Decoded, PAIR, Pairs};
use crate::simd::lanes::Lanes;
use crate::simd::real::Real;
use crate::simd::{Kernel, Vectors};

/// Sums over the entries of theta that need neither the temperature nor a normaliser.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Displacement {
    /// The sum of (theta_T - theta_B)^2.
    pub(crate) delta_squares: f64,
    /// The sum of theta_B^2.
    pub(crate) base_squares: f64,
    /// The largest |theta_T - theta_B|.
    pub(crate) largest_delta: f64,
    /// Entries whose value differs.
    pub(crate) changed: f64,
}

impl Displacement {
    /// Adds what another stretch of theta has.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.delta_squares += other.delta_squares;
        self.base_squares += other.base_squares;
        self.largest_delta = self.largest_delta.max(other.largest_delta);
        self.changed += other.changed;
    }

    /// The same of entries `unit` times as large.
    pub(crate) fn scaled(&self, unit: f64) -> Self {
        Self {
            delta_squares: self.delta_squares * unit * unit,
            base_squares: self.base_squares * unit * unit,
            largest_delta: self.largest_delta * unit,
            changed: self.changed,
        }
    }
}

/// The displacement of one block as it grows.
#[derive(Clone, Copy)]
pub(crate) struct BlockDisplacement<N> {
    base_squares: N,
    /// The largest lane of the sums of theta_B^2 over stretches of the block.
    largest_squares: N,
    delta_squares: N,
    changed: N,
    largest_delta: N,
}

/// A few entries of each lane. Their squares are added up before those of others: of a hundred equal numbers, added one
/// after the other in `f32`, each would be rounded in the same direction.
#[derive(Clone, Copy)]
pub(crate) struct Stretch<N> {
    base_squares: N,
    delta_squares: N,
}

impl<N: Lanes> Stretch<N> {
    #[inline(always)]
    pub(crate) fn none(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self { base_squares: zero, delta_squares: zero }
    }
}

/// What says in which way a block is computed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    /// At least the largest |theta_B|, and seldom twice that: the largest norm of a few entries, those of one lane in
    /// one stretch, which takes next to no work of its own.
    pub(crate) base: f64,
    /// The largest |theta_T - theta_B|.
    pub(crate) delta: f64,
}

impl<N: Lanes> BlockDisplacement<N> {
    #[inline(always)]
    pub(crate) fn none(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self {
            base_squares: zero,
            largest_squares: zero,
            delta_squares: zero,
            changed: zero,
            largest_delta: zero,
        }
    }

    /// Adds entries of a stretch. In `f32` the squares are right where the largest of the block lies
    /// in [2^-40, 2^40] or is 0; entries too small for their squares to be held are too small to count.
    #[inline(always)]
    pub(crate) fn add(&mut self, base: N, delta: N, stretch: &mut Stretch<N>) {
        stretch.base_squares = base.mul_add(base, stretch.base_squares);
        stretch.delta_squares = delta.mul_add(delta, stretch.delta_squares);
        let change = delta.abs();
        self.changed = self.changed.count_positive(change);
        self.largest_delta = self.largest_delta.max(change);
    }

    /// Ends a stretch.
    #[inline(always)]
    pub(crate) fn end(&mut self, stretch: Stretch<N>) {
        self.base_squares = self.base_squares + stretch.base_squares;
        self.largest_squares = self.largest_squares.max(stretch.base_squares);
        self.delta_squares = self.delta_squares + stretch.delta_squares;
    }

    /// What is left to be added up, lane by lane, for [`Self::of_sums`].
    #[inline(always)]
    pub(crate) fn lanes(&self) -> [N; 3] {
        [self.base_squares, self.delta_squares, self.changed]
    }

    /// The displacement, from the sums of [`Self::lanes`], and the extent, which is infinite or NaN where an
    /// entry is.
    #[inline(always)]
    pub(crate) fn of_sums(&self, [base_squares, delta_squares, changed]: [f64; 3]) -> (Displacement, Extent) {
        let (largest_norm, largest_delta) =
            (self.largest_squares.largest().sqrt(), self.largest_delta.largest());
        // A maximum may pass over what is not a number; a sum does not.
        let extent = Extent {
            base: if base_squares.is_nan() { base_squares } else { largest_norm },
            delta: if delta_squares.is_nan() { delta_squares } else { largest_delta },
        };
        (Displacement { delta_squares, base_squares, largest_delta, changed }, extent)
    }
}

/// Measures one block.
pub(crate) struct Measure<'a>(pub(crate) Decoded<'a, f64>);

impl Kernel for Measure<'_> {
    type Output = Displacement;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> Displacement {
        let mut block = BlockDisplacement::<<f64 as Real>::Lanes<S>>::none(simd);
        let mut stretch = Stretch::none(simd);
        for index in 0..BLOCK / PAIR {
            for entries in self.0.load(simd, index) {
                block.add(entries.base, entries.delta, &mut stretch);
            }
        }
        block.end(stretch);
        block.of_sums(block.lanes().map(Lanes::sum)).0
    }
}
