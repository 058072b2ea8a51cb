//! How far the weights themselves have moved, before any softmax.

use super::lanes::Lanes;
use super::part::{BLOCK, Decoded, Pairs};
use super::real::{Real, add_lanes, sum_of_lanes};
use crate::vector::{Kernel, LANES, Vectors};

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
}

/// The displacement of one block as it grows, with its extent.
#[derive(Clone, Copy)]
pub(crate) struct BlockDisplacement<N> {
    delta_squares: N,
    base_squares: N,
    changed: N,
    largest_base: N,
    largest_delta: N,
}

/// The largest entries of a block, which say in which way it is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// The largest |theta_B|.
    pub(crate) base: f64,
    /// The largest |theta_T - theta_B|.
    pub(crate) delta: f64,
}

impl<N: Lanes> BlockDisplacement<N> {
    #[inline(always)]
    pub(crate) fn none(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self {
            delta_squares: zero,
            base_squares: zero,
            changed: zero,
            largest_base: zero,
            largest_delta: zero,
        }
    }

    /// Adds entries. In `f32` the squares are right where the largest of the block lies in [2^-40, 2^40]
    /// or is 0; entries too small for their squares to be held are too small to count.
    #[inline(always)]
    pub(crate) fn add(&mut self, base: N, base_square: N, delta: N) {
        self.base_squares = self.base_squares + base_square;
        self.delta_squares = delta.mul_add(delta, self.delta_squares);
        let change = delta.abs();
        self.changed = self.changed.count_positive(change);
        self.largest_base = self.largest_base.max(base.abs());
        self.largest_delta = self.largest_delta.max(change);
    }

    /// The extent; infinite or NaN where an entry is.
    #[inline(always)]
    pub(crate) fn extent(&self) -> Extent {
        // A maximum may pass over what is not a number; a sum does not.
        let passed_over = |squares: N, largest: N| {
            let (squares, largest) = (squares.sum(), largest.largest());
            if squares.is_nan() { squares } else { largest }
        };
        Extent {
            base: passed_over(self.base_squares, self.largest_base),
            delta: passed_over(self.delta_squares, self.largest_delta),
        }
    }
}

/// A [`Displacement`] as it grows, in `f64`.
#[derive(Clone, Debug, Default)]
pub(crate) struct DisplacementLanes {
    delta_squares: [f64; LANES],
    base_squares: [f64; LANES],
    changed: [f64; LANES],
    largest_delta: f64,
}

impl DisplacementLanes {
    /// Adds one block, measured in units of `unit`.
    #[inline(always)]
    pub(crate) fn add<N: Lanes>(&mut self, block: &BlockDisplacement<N>, extent: &Extent, unit: f64) {
        add_lanes(&mut self.delta_squares, block.delta_squares, unit * unit);
        add_lanes(&mut self.base_squares, block.base_squares, unit * unit);
        add_lanes(&mut self.changed, block.changed, 1.0);
        self.largest_delta = self.largest_delta.max(extent.delta * unit);
    }

    /// The sums over all blocks.
    pub(crate) fn sum(&self) -> Displacement {
        Displacement {
            delta_squares: sum_of_lanes(&self.delta_squares),
            base_squares: sum_of_lanes(&self.base_squares),
            largest_delta: self.largest_delta,
            changed: sum_of_lanes(&self.changed),
        }
    }
}

/// Adds one block to `sums`, and gives its extent.
pub(crate) struct Measure<'a> {
    pub(crate) pairs: Decoded<'a, f64>,
    pub(crate) sums: &'a mut DisplacementLanes,
}

impl Kernel for Measure<'_> {
    type Output = Extent;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> Extent {
        let mut block = BlockDisplacement::<<f64 as Real>::Lanes<S>>::none(simd);
        for index in 0..BLOCK / LANES {
            let (base, delta) = self.pairs.load(simd, index);
            block.add(base, base * base, delta);
        }
        let extent = block.extent();
        self.sums.add(&block, &extent, 1.0);
        extent
    }
}
