//! How far the weights themselves have moved, before any softmax.

use super::block::{BLOCK, BlockEntries, DecodedBlock, STEP, add_squares, total};
use crate::simd::real::{Lanes, Real};
use crate::simd::{Kernel, LANES, Vectors};

/// Sums over the entries of theta that need neither the temperature nor a normaliser.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WeightChange {
    /// The sum of (theta_T - theta_B)^2.
    pub(crate) delta_squares: f64,
    /// The sum of theta_B^2.
    pub(crate) base_squares: f64,
    /// The largest |theta_T - theta_B|.
    pub(crate) largest_delta: f64,
    /// The number of entries whose value differs.
    pub(crate) changed: f64,
}

impl WeightChange {
    /// Adds the change of further entries.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.delta_squares += other.delta_squares;
        self.base_squares += other.base_squares;
        self.largest_delta = self.largest_delta.max(other.largest_delta);
        self.changed += other.changed;
    }

    /// The change of entries `unit` times as large.
    pub(crate) fn scaled(&self, unit: f64) -> Self {
        Self {
            delta_squares: self.delta_squares * unit * unit,
            base_squares: self.base_squares * unit * unit,
            largest_delta: self.largest_delta * unit,
            changed: self.changed,
        }
    }
}

/// Bounds on the magnitudes of some entries, which decide the precision that they are computed in. They are
/// infinite or NaN where an entry is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Magnitudes {
    /// The largest |theta_B| or, of exponents, |x|; in `f32` up to 4 times it ([`finish`]).
    pub(crate) base: f64,
    /// The largest |theta_T - theta_B|.
    pub(crate) delta: f64,
}

impl Magnitudes {
    /// Adds further entries.
    pub(crate) fn merge(&mut self, other: Self) {
        self.base = self.base.max(other.base);
        self.delta = self.delta.max(other.delta);
    }
}

/// The change of one block, lane by lane.
#[derive(Clone, Copy)]
pub(crate) struct BlockChange<N> {
    base_squares: N,
    /// The largest partial sum of theta_B^2.
    largest_squares: N,
    delta_squares: N,
    /// The number of entries whose value is the same.
    unchanged: N,
    largest_delta: N,
}

/// The sums of the squares of a few entries, which are completed before they join those of the block: of a
/// hundred equal numbers, added one after the other in `f32`, each would be rounded in the same direction.
///
/// In `f32` squares are right where the largest entry of the block is 0 or lies in [2^-40, 2^40]; entries whose squares
/// underflow are too small to count.
#[derive(Clone, Copy)]
pub(crate) struct PartialSquares<N> {
    /// Of the first entries of the steps, and of the second ones.
    base: [N; 2],
    delta: [N; 2],
}

impl<N: Lanes> PartialSquares<N> {
    #[inline(always)]
    pub(crate) fn zero(simd: N::Vectors) -> Self {
        let zero = [N::splat(simd, 0.0); 2];
        Self { base: zero, delta: zero }
    }

    /// Adds the first entries of a step and the second ones.
    #[inline(always)]
    pub(crate) fn add_base(&mut self, bases: [N; 2]) {
        add_squares(&mut self.base, bases);
    }
}

impl<N: Lanes> BlockChange<N> {
    #[inline(always)]
    pub(crate) fn zero(simd: N::Vectors) -> Self {
        let zero = N::splat(simd, 0.0);
        Self {
            base_squares: zero,
            largest_squares: zero,
            delta_squares: zero,
            unchanged: zero,
            largest_delta: zero,
        }
    }

    /// Adds the changes of the first entries of a step and of the second ones.
    #[inline(always)]
    pub(crate) fn add(&mut self, deltas: [N; 2], squares: &mut PartialSquares<N>) {
        add_squares(&mut squares.delta, deltas);
        for delta in deltas {
            let change = delta.abs();
            self.unchanged = self.unchanged.count_zeros(change);
            self.largest_delta = self.largest_delta.max(change);
        }
    }

    /// Adds complete partial sums.
    #[inline(always)]
    pub(crate) fn add_squares(&mut self, squares: PartialSquares<N>) {
        let base = total(squares.base);
        self.base_squares = self.base_squares + base;
        self.largest_squares = self.largest_squares.max(base);
        self.delta_squares = self.delta_squares + total(squares.delta);
    }

    /// The vectors whose lanes have to be summed for [`finish`].
    #[inline(always)]
    pub(crate) fn lanes(&self) -> [N; 3] {
        [self.base_squares, self.delta_squares, self.unchanged.counted()]
    }

    /// The largest partial sum of theta_B^2 and the largest |theta_T - theta_B|.
    #[inline(always)]
    pub(crate) fn largest(&self) -> [f64; 2] {
        [self.largest_squares.largest(), self.largest_delta.largest()]
    }
}

/// The change and the magnitudes of a whole block, given the sums of [`BlockChange::lanes`] and the largest of
/// [`BlockChange::largest`]. The magnitude of the base is the root of the largest partial sum, of 16 squares in a kernel in
/// `f32`: from 1 to 4 times the largest |theta_B|, seldom more than twice. A maximum of its own would cost more.
#[inline(always)]
pub(crate) fn finish(sums: [f64; 3], largest: [f64; 2]) -> (WeightChange, Magnitudes) {
    let [base_squares, delta_squares, unchanged] = sums;
    let changed = BLOCK as f64 - unchanged;
    let [largest_squares, largest_delta] = largest;
    // A maximum may ignore NaN; a sum does not.
    let magnitudes = Magnitudes {
        base: if base_squares.is_nan() { base_squares } else { largest_squares.sqrt() },
        delta: if delta_squares.is_nan() { delta_squares } else { largest_delta },
    };
    (WeightChange { delta_squares, base_squares, largest_delta, changed }, magnitudes)
}

/// Measures the change of one block in `f64`.
pub(crate) struct MeasureChange<'a>(pub(crate) DecodedBlock<'a, f64>);

impl Kernel for MeasureChange<'_> {
    type Output = WeightChange;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> WeightChange {
        let (mut totals, mut largest) = ([[0.0; LANES]; LANES], [0.0_f64; 2]);
        for part in 0..S::PARTS {
            let mut change = BlockChange::<<f64 as Real>::Lanes<S>>::zero(simd);
            let mut squares = PartialSquares::zero(simd);
            for step in 0..BLOCK / STEP {
                let [first, second] = self.0.load(simd, step, part);
                squares.add_base([first.base, second.base]);
                change.add([first.delta, second.delta], &mut squares);
            }
            change.add_squares(squares);
            for (total, lanes) in totals.iter_mut().zip(change.lanes()) {
                lanes.store(total, part);
            }
            for (largest, of_part) in largest.iter_mut().zip(change.largest()) {
                *largest = largest.max(of_part);
            }
        }
        let [base_squares, delta_squares, unchanged, ..] = <f64 as Real>::Lanes::<S>::sums(simd, &totals);
        finish([base_squares, delta_squares, unchanged], largest).0
    }
}
