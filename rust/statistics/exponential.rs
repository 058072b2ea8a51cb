//! The exponential function without a branch, for kernels.

use crate::simd::real::{Lanes, Real};

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
pub(crate) fn exp<N: Lanes>(x: N) -> N {
    let rounder = x.constant(N::Number::ROUNDER);
    let rounded = x.mul_add(x.constant(std::f64::consts::LOG2_E), rounder);
    let n = rounded - rounder;
    let high = n.mul_add(x.constant(-N::Number::LN_2_HIGH), x);
    let f = n.mul_add(x.constant(-N::Number::LN_2_LOW), high);
    let mut power = x.constant(INVERSE_FACTORIALS[N::Number::EXPONENTIAL_DEGREE]);
    for k in (0..N::Number::EXPONENTIAL_DEGREE).rev() {
        power = power.mul_add(f, x.constant(INVERSE_FACTORIALS[k]));
    }
    power.times_power_of_two(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Instructions, Kernel, LANES, Vectors};
    use proptest::prelude::*;

    struct Exp<R>(R);

    impl<R: Real> Kernel for Exp<R> {
        type Output = [R; LANES];

        #[inline(always)]
        fn run<S: Vectors>(self, simd: S) -> [R; LANES] {
            exp(R::Lanes::<S>::splat(simd, self.0.to_f64())).to_array()
        }
    }

    fn of_every_set<R: Real>(x: R) -> impl Iterator<Item = f64> {
        Instructions::available().into_iter().map(move |set| set.run(Exp(x))[0].to_f64())
    }

    proptest! {
        #[test]
        fn exp_is_right_to_the_last_places(x in -700f64..700.0) {
            for found in of_every_set(x) {
                prop_assert!((found / x.exp() - 1.0).abs() <= 4.0 * f64::EPSILON, "{x}");
            }
        }

        #[test]
        fn exp_in_single_precision_is_right_to_the_last_places(x in -80f32..80.0) {
            let expected = (x as f64).exp();
            for found in of_every_set(x) {
                prop_assert!((found / expected - 1.0).abs() <= 2.0 * f32::EPSILON as f64, "{x}");
            }
        }
    }
}
