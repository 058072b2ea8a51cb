//! The exponential function without a branch, for kernels.

use crate::simd::real::Real;

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
/// x = n ln 2 + f with |f| <= ln 2 / 2, so e^x = 2^n e^f, and e^f is evaluated by its Taylor series.
#[inline(always)]
pub(crate) fn exp<R: Real>(x: R) -> R {
    let rounded = x.mul_add(R::from_f64(std::f64::consts::LOG2_E), R::from_f64(R::ROUNDER));
    let n = rounded - R::from_f64(R::ROUNDER);
    let f = n.mul_add(R::from_f64(-R::LN_2_LOW), n.mul_add(R::from_f64(-R::LN_2_HIGH), x));
    let mut power = R::from_f64(INVERSE_FACTORIALS[R::EXPONENTIAL_DEGREE]);
    for k in (0..R::EXPONENTIAL_DEGREE).rev() {
        power = power.mul_add(f, R::from_f64(INVERSE_FACTORIALS[k]));
    }
    power.times_power_of_two(rounded)
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
    }
}
