//! The exponentials of both checkpoints by series, over lanes: the arithmetic that every weight goes through.
//!
//! # How it works
//!
//! w = e^m is evaluated as a polynomial in m, and with it, in the [symbols](super#symbols) of this folder,
//!
//! c = w cosh(y / 2) = w (1 + y^2 / 8 + ...),  u = 2 w sinh(y / 2) = w (y + y^3 / 24 + ...).
//!
//! Low powers are enough for the weights of a model, which lie near 0, and for their changes, which lie nearer; and
//! only every other power of y occurs in each series. [`super::precision`] says which powers are right for which
//! weights.

use super::exponential::{INVERSE_FACTORIALS, exp};
use crate::simd::real::Lanes;

/// In place of a degree: the exponential of any number, to the precision of its type.
pub(crate) const FULL: usize = 0;

/// The coefficient of w y^k: in c where k is even, in u where it is odd.
pub(crate) const fn weight_of_power(k: usize) -> f64 {
    let weight = INVERSE_FACTORIALS[k] / (1u64 << k) as f64;
    if k.is_multiple_of(2) { weight } else { 2.0 * weight }
}

/// c and u of one vector of entries.
pub(crate) struct Terms<N, const POWERS: usize> {
    /// Of the powers of y below POWERS - 1.
    pub(crate) c: N,
    /// Of the powers of y below POWERS.
    pub(crate) u: N,
    /// w, w y and so on to w y^(POWERS - 1).
    pub(crate) powers: [N; POWERS],
}

/// Evaluates the series in y, given w.
#[inline(always)]
pub(crate) fn terms_from<N: Lanes, const POWERS: usize>(w: N, y: N) -> Terms<N, POWERS> {
    let mut powers = [w; POWERS];
    for k in 1..POWERS {
        powers[k] = powers[k - 1] * y;
    }
    Terms { c: every_other_power(&powers[..POWERS - 1], 0), u: every_other_power(&powers, 1), powers }
}

/// Whether so many powers of y make c equal to w.
pub(crate) const fn c_is_w(powers: usize) -> bool {
    powers <= 3
}

/// The sum of every other power from `first` on, times its coefficient. It is nested so that only the last addition
/// rounds a number as large as the sum.
#[inline(always)]
fn every_other_power<N: Lanes>(powers: &[N], first: usize) -> N {
    let mut k = powers.len() - 1 - (powers.len() - 1 - first) % 2;
    let mut sum = powers[k];
    while k > first {
        sum = sum.mul_add(sum.constant(weight_of_power(k) / weight_of_power(k - 2)), powers[k - 2]);
        k -= 2;
    }
    sum
}

/// The largest |m| for a polynomial of this degree in `f32`.
pub(crate) const fn exponent_reach(degree: usize) -> f64 {
    match degree {
        4 => 0.1875,
        6 => 0.5,
        _ => 4.0,
    }
}

/// w = e^m, given 2 m, by a polynomial of degree `DEGREE`. Its last odd coefficient absorbs most of the next odd power,
/// which leaves an error of at most 4e-7 within [`exponent_reach`], and of 1e-8 in its inner half.
#[inline(always)]
pub(crate) fn exponential<N: Lanes, const DEGREE: usize>(doubled: N) -> N {
    if DEGREE == FULL {
        return exp(doubled * doubled.constant(0.5));
    }
    let mut power = doubled.constant(coefficient::<DEGREE>(DEGREE));
    for k in (0..DEGREE).rev() {
        power = power.mul_add(doubled, doubled.constant(coefficient::<DEGREE>(k)));
    }
    power
}

/// x^(n + 2) is nearest to this times h^2 x^n on [-h, h].
const ABSORBED: f64 = 0.865;

#[inline(always)]
fn coefficient<const DEGREE: usize>(k: usize) -> f64 {
    let reach = exponent_reach(DEGREE);
    let next = if k == DEGREE - 1 { ABSORBED * reach * reach * INVERSE_FACTORIALS[DEGREE + 1] } else { 0.0 };
    (INVERSE_FACTORIALS[k] + next) / (1u64 << k) as f64
}

/// The exponentials of one entry of any size.
pub(crate) struct ClosedForm {
    /// e^x.
    pub(crate) base: f64,
    /// e^(x + y).
    pub(crate) tuned: f64,
    pub(crate) u: f64,
    pub(crate) c: f64,
}

impl ClosedForm {
    pub(crate) fn of(x: f64, y: f64) -> Self {
        let (base, tuned) = (x.exp(), (x + y).exp());
        let u = if y.abs() < 1.0 { base * y.exp_m1() } else { tuned - base };
        Self { base, tuned, u, c: 0.5 * (base + tuned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::real::Real;
    use crate::simd::{Instructions, Kernel, LANES, Vectors};
    use proptest::prelude::*;

    struct CAndU<R, const DEGREE: usize, const POWERS: usize>([R; LANES], [R; LANES]);

    impl<R: Real, const DEGREE: usize, const POWERS: usize> Kernel for CAndU<R, DEGREE, POWERS> {
        type Output = ([R; LANES], [R; LANES]);

        #[inline(always)]
        fn run<S: Vectors>(self, simd: S) -> Self::Output {
            let (x, y) = (R::Lanes::<S>::load(simd, &self.0, 0), R::Lanes::<S>::load(simd, &self.1, 0));
            let w = exponential::<_, DEGREE>(x.mul_add(x.constant(2.0), y));
            let Terms { c, u, .. } = terms_from::<_, POWERS>(w, y);
            (c.to_array(), u.to_array())
        }
    }

    /// Checks c and u at exponents whose mean is `m` and whose difference is `y`.
    fn check<R: Real, const DEGREE: usize, const POWERS: usize>(m: f64, y: f64, tolerance: f64) {
        let (x, y) = (R::from_f64(m - 0.5 * y), R::from_f64(y));
        let (base, tuned) = (x.to_f64().exp(), (x.to_f64() + y.to_f64()).exp());
        let expected = (0.5 * (base + tuned), base * y.to_f64().exp_m1());
        let mut all = Vec::new();
        for instructions in Instructions::available() {
            let (c, u) = instructions.run(CAndU::<R, DEGREE, POWERS>([x; LANES], [y; LANES]));
            assert!(
                (c[0].to_f64() / expected.0 - 1.0).abs() <= tolerance,
                "{DEGREE} {POWERS} {} {}",
                x.to_f64(),
                y.to_f64()
            );
            let error = (u[0].to_f64() - expected.1).abs();
            assert!(
                error <= tolerance * expected.1.abs() + 1e-44,
                "{DEGREE} {POWERS} {} {}",
                x.to_f64(),
                y.to_f64()
            );
            if instructions.fuses() {
                all.push((c[0].to_f64().to_bits(), u[0].to_f64().to_bits()));
            }
        }
        assert!(all.iter().all(|bits| *bits == all[0]), "{all:?}");
    }

    proptest! {
        /// The bits are the same on every instruction set that fuses multiply-adds.
        #[test]
        fn the_series_are_right_within_their_reach(unit_x in -1f64..1.0, unit_y in -1f64..1.0) {
            let near = |degree| unit_x * exponent_reach(degree);
            check::<f32, 4, 3>(near(4), unit_y / 512.0, 1e-6);
            check::<f32, 6, 3>(near(6), unit_y / 512.0, 1e-6);
            check::<f32, 4, 4>(near(4), unit_y / 128.0, 6e-7);
            check::<f32, 6, 4>(near(6), unit_y / 128.0, 6e-7);
            check::<f32, FULL, 4>(near(FULL), unit_y / 128.0, 4e-7);
            check::<f32, 6, 6>(near(6), unit_y / 4.0, 6e-7);
            check::<f32, FULL, 6>(near(FULL), unit_y / 4.0, 4e-7);
            // The mean of two exponents of 150 has an error of 1.4e-14 itself.
            check::<f64, FULL, 11>(unit_x * 150.0, unit_y / 4.0, 3e-14);
            check::<f64, FULL, 23>(unit_x * 150.0, unit_y, 3e-14);
        }
    }
}
