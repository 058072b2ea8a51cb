//! The exponential, and the exponential less one, without a branch.

use super::real::Real;

/// 1/k! for k up to 25.
pub(crate) const INVERSE_FACTORIALS: [f64; 26] = {
    let mut inverses = [1.0; 26];
    let mut factorial = 1.0; // exact up to 22!, rounded once after that
    let mut k = 1;
    while k < 26 {
        factorial *= k as f64;
        inverses[k] = 1.0 / factorial;
        k += 1;
    }
    inverses
};

/// `e^x` for `x` in [-708, 700] (`f64`) or [-80, 80] (`f32`), within two units of the last place.
///
/// x = n ln 2 + f with |f| <= ln 2 / 2, e^x = 2^n e^f, and e^f by its Taylor series.
#[inline(always)]
pub(crate) fn exp<R: Real>(x: R) -> R {
    let rounded = x.mul_add(R::of(std::f64::consts::LOG2_E), R::of(R::ROUNDER));
    let n = rounded - R::of(R::ROUNDER);
    let f = n.mul_add(R::of(-R::LN_2_LOW), n.mul_add(R::of(-R::LN_2_HIGH), x));
    let mut power = R::of(INVERSE_FACTORIALS[R::EXPONENTIAL_TERMS]);
    for k in (0..R::EXPONENTIAL_TERMS).rev() {
        power = power.mul_add(f, R::of(INVERSE_FACTORIALS[k]));
    }
    power.times_power_of_two(rounded)
}

/// `e^x` for `x` in [-1/4, 1/4], within two units of the last place of an `f32`: its Taylor series alone.
#[inline(always)]
pub(crate) fn exp_near_zero<R: Real>(x: R) -> R {
    exp_m1::<R, 6>(x) + R::of(1.0)
}

/// `e^y - 1` by the first `TERMS` terms of its Taylor series: no digits are lost for small `y`.
#[inline(always)]
pub(crate) fn exp_m1<R: Real, const TERMS: usize>(y: R) -> R {
    let mut quotient = R::of(INVERSE_FACTORIALS[TERMS]);
    for k in (1..TERMS).rev() {
        quotient = quotient.mul_add(y, R::of(INVERSE_FACTORIALS[k]));
    }
    quotient * y
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exp_is_right_to_the_last_places(x in -700f64..700.0) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() <= 4.0 * f64::EPSILON, "{x}");
        }

        #[test]
        fn exp_in_single_precision_is_right_to_the_last_places(x in -80f32..80.0) {
            let expected = (x as f64).exp();
            prop_assert!((exp(x) as f64 / expected - 1.0).abs() <= 2.0 * f32::EPSILON as f64, "{x}");
        }

        #[test]
        fn the_series_are_right_within_their_reach(y in -1f64..1.0) {
            let error = |found: f64, y: f64| (found / y.exp_m1() - 1.0).abs();
            if y != 0.0 {
                prop_assert!(error(exp_m1::<f64, 24>(y), y) <= 4.0 * f64::EPSILON);
                prop_assert!(error(exp_m1::<f64, 12>(y / 4.0), y / 4.0) <= 4.0 * f64::EPSILON);
                let (quarter, sixtyfourth) = ((y / 4.0) as f32, (y / 64.0) as f32);
                prop_assert!(error(exp_m1::<f32, 8>(quarter) as f64, quarter as f64) <= 1.5 * f32::EPSILON as f64);
                prop_assert!(error(exp_m1::<f32, 5>(sixtyfourth) as f64, sixtyfourth as f64) <= 1.5 * f32::EPSILON as f64);
            }
        }
    }

    proptest! {
        #[test]
        fn exp_near_zero_is_right_to_the_last_places(x in -0.25f32..0.25) {
            let expected = (x as f64).exp();
            prop_assert!((exp_near_zero(x) as f64 / expected - 1.0).abs() <= f32::EPSILON as f64, "{x}");
        }
    }

    #[test]
    fn exponentials_of_zero_are_exact() {
        assert_eq!((exp(0f64), exp(0f32), exp_near_zero(0f32)), (1.0, 1.0, 1.0));
        assert_eq!((exp_m1::<f64, 24>(0.0), exp_m1::<f32, 5>(0.0)), (0.0, 0.0));
    }
}
