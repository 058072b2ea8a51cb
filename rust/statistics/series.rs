//! e^x and e^y - 1 by their series, over lanes: the arithmetic that every weight goes through.
//!
//! A power series of few terms is enough for the weights of a model, which lie near 0, and for their
//! changes, which lie nearer. How many terms are right for which reach stands in [`super::way`].

use super::exponential::{INVERSE_FACTORIALS, exp};
use super::lanes::Lanes;

/// Stands for the exponential of any number, in place of a number of terms.
pub(crate) const FULL: usize = 0;

/// What one vector of entries adds to the sums.
pub(crate) struct Terms<N, const K: usize> {
    /// e^x.
    pub(crate) v: N,
    /// v (e^y - 1).
    pub(crate) u: N,
    /// v y, v y^2 and so on to v y^K, of which u is made.
    pub(crate) powers: [N; K],
}

/// `X` terms of the series of e^x, or [`FULL`], and `K` of that of e^y - 1. `square` is x^2.
#[inline(always)]
pub(crate) fn terms<N: Lanes, const X: usize, const K: usize>(x: N, square: N, y: N) -> Terms<N, K> {
    let v = exponential::<N, X>(x, square);
    let mut powers = [v * y; K];
    for k in 1..K {
        powers[k] = powers[k - 1] * y;
    }
    // p_1 + (p_2 + (p_3 + ...) / 3) / 2, so that only the last addition rounds what is as large as u.
    let mut u = powers[K - 1];
    for k in (1..K).rev() {
        u = u.mul_add(y.constant(1.0 / (k + 1) as f64), powers[k - 1]);
    }
    Terms { v, u, powers }
}

/// The largest |x| for a series of `X` terms in `f32`.
pub(crate) const fn exponent_reach(terms: usize) -> f64 {
    match terms {
        4 => 0.125,
        6 => 0.375,
        _ => 2.0,
    }
}

/// e^x, by X terms after the first: 1 + x + x^2 (c_2 + c_3 x + ...). The last odd coefficient takes up
/// most of the next odd term, which within the reach leaves an error of at most 4e-8.
#[inline(always)]
fn exponential<N: Lanes, const X: usize>(x: N, square: N) -> N {
    if X == FULL {
        return x.map(exp);
    }
    let mut quotient = x.constant(coefficient::<X>(X));
    for k in (2..X).rev() {
        quotient = quotient.mul_add(x, x.constant(coefficient::<X>(k)));
    }
    quotient.mul_add(square, x + x.constant(1.0))
}

/// The share of h^2 by which a x^n comes nearest to x^(n + 2) on [-h, h].
const TAKEN_UP: f64 = 0.865;

#[inline(always)]
fn coefficient<const X: usize>(k: usize) -> f64 {
    let reach = exponent_reach(X);
    let next = if k == X - 1 { TAKEN_UP * reach * reach * INVERSE_FACTORIALS[X + 1] } else { 0.0 };
    INVERSE_FACTORIALS[k] + next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::real::Real;
    use crate::vector::{Instructions, Kernel, LANES, Vectors};
    use proptest::prelude::*;

    struct Both<R, const X: usize, const K: usize>([R; LANES], [R; LANES]);

    impl<R: Real, const X: usize, const K: usize> Kernel for Both<R, X, K> {
        type Output = ([R; LANES], [R; LANES]);

        #[inline(always)]
        fn run<S: Vectors>(self, simd: S) -> Self::Output {
            let (x, y) = (R::Lanes::<S>::load(simd, &self.0), R::Lanes::<S>::load(simd, &self.1));
            let Terms { v, u, .. } = terms::<_, X, K>(x, x * x, y);
            (v.numbers(), u.numbers())
        }
    }

    fn check<R: Real, const X: usize, const K: usize>(x: f64, y: f64, tolerance: f64) {
        let (x, y) = (R::of(x), R::of(y));
        let expected = (x.wide().exp(), x.wide().exp() * y.wide().exp_m1());
        let mut all = Vec::new();
        for instructions in Instructions::available() {
            let (v, u) = instructions.run(Both::<R, X, K>([x; LANES], [y; LANES]));
            assert!((v[0].wide() / expected.0 - 1.0).abs() <= tolerance, "{X} {}", x.wide());
            let error = (u[0].wide() - expected.1).abs();
            assert!(error <= tolerance * expected.1.abs() + 1e-44, "{K} {} {}", x.wide(), y.wide());
            all.push((v[0].wide().to_bits(), u[0].wide().to_bits()));
        }
        assert!(all.iter().all(|bits| *bits == all[0]), "{all:?}");
    }

    proptest! {
        /// In both widths, with the same bits on every instruction set.
        #[test]
        fn the_series_are_right_within_their_reach(unit_x in -1f64..1.0, unit_y in -1f64..1.0) {
            let near = |terms| unit_x * exponent_reach(terms);
            check::<f32, 4, 3>(near(4), unit_y / 128.0, 2e-7);
            check::<f32, 6, 3>(near(6), unit_y / 128.0, 2e-7);
            check::<f32, FULL, 3>(near(FULL), unit_y / 128.0, 3e-7);
            check::<f32, 4, 6>(near(4), unit_y / 4.0, 2e-7);
            check::<f32, 6, 6>(near(6), unit_y / 4.0, 2e-7);
            check::<f32, FULL, 6>(near(FULL), unit_y / 4.0, 3e-7);
            check::<f64, FULL, 11>(unit_x * 150.0, unit_y / 4.0, 1e-14);
            check::<f64, FULL, 23>(unit_x * 150.0, unit_y, 1e-14);
        }
    }
}
