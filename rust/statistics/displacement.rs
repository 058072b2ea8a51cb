//! How far the weights themselves have moved, before any softmax.

use super::part::Block;
use super::real::{Real, add_lanes, horizontal_sum};
use crate::vector::LANES;

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
    pub(crate) changed: u64,
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

/// The [`Displacement`] of one block in lanes, with what decides in which width the block is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent<R> {
    delta_squares: [R; LANES],
    base_squares: [R; LANES],
    changed: [u32; LANES],
    /// The largest |theta_B|; not finite where an entry is not.
    pub(crate) largest_base: f64,
    /// The largest |theta_T - theta_B|; not finite where an entry is not.
    pub(crate) largest_delta: f64,
}

/// Measures one block. In `f32` the squares are right where the largest of the block lies in
/// [2^-40, 2^40] or is 0; entries too small for their squares to be held are too small to count.
#[inline(always)]
pub(crate) fn extent<R: Real>(base: &Block<R>, delta: &Block<R>) -> Extent<R> {
    let zero = [R::default(); LANES];
    let (mut delta_squares, mut base_squares) = (zero, zero);
    let (mut largest_base, mut largest_delta) = (zero, zero);
    let mut changed = [0u32; LANES];
    let (base, _) = base.as_chunks::<LANES>();
    let (delta, _) = delta.as_chunks::<LANES>();
    for (base, delta) in base.iter().zip(delta) {
        for lane in 0..LANES {
            let (b, d) = (base[lane], delta[lane]);
            base_squares[lane] = b.mul_add(b, base_squares[lane]);
            delta_squares[lane] = d.mul_add(d, delta_squares[lane]);
            largest_base[lane] = largest_base[lane].max_or_nan(b.abs());
            largest_delta[lane] = largest_delta[lane].max_or_nan(d.abs());
            changed[lane] += u32::from(d != R::default());
        }
    }
    let largest = |lanes: [R; LANES]| lanes.iter().fold(R::default(), |a, b| a.max_or_nan(*b)).wide();
    let (largest_base, largest_delta) = (largest(largest_base), largest(largest_delta));
    Extent { delta_squares, base_squares, changed, largest_base, largest_delta }
}

/// A [`Displacement`] as it grows.
#[derive(Clone, Debug, Default)]
pub(crate) struct DisplacementLanes {
    delta_squares: [f64; LANES],
    base_squares: [f64; LANES],
    changed: [u64; LANES],
    largest_delta: f64,
}

impl DisplacementLanes {
    /// Adds one block.
    #[inline]
    pub(crate) fn add<R: Real>(&mut self, extent: &Extent<R>) {
        add_lanes(&mut self.delta_squares, &extent.delta_squares);
        add_lanes(&mut self.base_squares, &extent.base_squares);
        for (sum, changed) in self.changed.iter_mut().zip(&extent.changed) {
            *sum += u64::from(*changed);
        }
        self.largest_delta = self.largest_delta.max(extent.largest_delta);
    }

    /// The sums over all blocks.
    pub(crate) fn sum(&self) -> Displacement {
        Displacement {
            delta_squares: horizontal_sum(&self.delta_squares),
            base_squares: horizontal_sum(&self.base_squares),
            largest_delta: self.largest_delta,
            changed: self.changed.iter().sum(),
        }
    }
}
