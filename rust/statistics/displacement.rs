//! How far the weights themselves have moved, before any softmax.

use super::part::Block;
use super::real::Real;
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
    #[inline(always)]
    pub(crate) fn merge(&mut self, other: &Self) {
        self.delta_squares += other.delta_squares;
        self.base_squares += other.base_squares;
        self.largest_delta = self.largest_delta.max(other.largest_delta);
        self.changed += other.changed;
    }
}

/// The [`Displacement`] of one block, with what decides in which width it can be computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) displacement: Displacement,
    /// The largest |theta_B|; not finite where an entry is not.
    pub(crate) largest_base: f64,
    /// The largest |theta_T - theta_B|; not finite where an entry is not.
    pub(crate) largest_delta: f64,
}

/// Measures one block. In `f32` the squares are right where the largest of the block lies in
/// [2^-40, 2^40] or is 0; entries too small for their squares to be held are too small to count.
#[inline(always)]
pub(crate) fn extent<R: Real>(base: &Block<R>, delta: &Block<R>) -> Extent {
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
    Extent {
        displacement: Displacement {
            delta_squares: horizontal_sum(&delta_squares),
            base_squares: horizontal_sum(&base_squares),
            largest_delta,
            changed: changed.iter().sum::<u32>().into(),
        },
        largest_base,
        largest_delta,
    }
}

/// The sum over the lanes in `f64`, in an order that does not depend on the instruction set.
#[inline(always)]
pub(crate) fn horizontal_sum<R: Real>(lanes: &[R; LANES]) -> f64 {
    let mut half = [0.0; LANES / 2];
    for lane in 0..LANES / 2 {
        half[lane] = lanes[lane].wide() + lanes[lane + LANES / 2].wide();
    }
    ((half[0] + half[4]) + (half[2] + half[6])) + ((half[1] + half[5]) + (half[3] + half[7]))
}
