//! The exponentials of both sides by their series, over lanes: the arithmetic that every weight goes through.
//!
//! With m the mean of the two exponents, y their difference and w = e^m, the two exponentials have the mean
//! c = w cosh(y / 2) and the difference u = 2 w sinh(y / 2). A power series of few terms is enough for the
//! weights of a model, which lie near 0, and for their changes, which lie nearer; and in y only every other
//! term is there. How many terms are right for which reach stands in [`super::precision`].

use super::exponential::{INVERSE_FACTORIALS, exp};
use super::weight_vector::Entries;
use crate::simd::lanes::Lanes;

/// Stands for the exponential of any number, in place of a number of terms.
pub(crate) const FULL: usize = 0;

/// What w y^k counts: in c where k is even, in u where it is odd.
pub(crate) const fn weight_of_power(k: usize) -> f64 {
    let weight = INVERSE_FACTORIALS[k] / (1u64 << k) as f64;
    if k.is_multiple_of(2) { weight } else { 2.0 * weight }
}

/// What one vector of entries adds to the sums.
pub(crate) struct Terms<N, const K: usize> {
    /// (e^theta_B + e^theta_T) / 2, of the powers below K - 1.
    pub(crate) c: N,
    /// e^theta_T - e^theta_B, of the powers below K.
    pub(crate) u: N,
    /// w, w y and so on to w y^(K - 1).
    pub(crate) powers: [N; K],
}

/// `X` terms of the series of e^m, or [`FULL`], and `K` powers of y.
#[inline(always)]
pub(crate) fn terms<N: Lanes, const X: usize, const K: usize>(entries: Entries<N>) -> Terms<N, K> {
    terms_from(exponential::<N, X>(entries.sum), entries.delta)
}

/// The same from w and y.
#[inline(always)]
pub(crate) fn terms_from<N: Lanes, const K: usize>(w: N, y: N) -> Terms<N, K> {
    let mut powers = [w; K];
    for k in 1..K {
        powers[k] = powers[k - 1] * y;
    }
    Terms { c: every_other(&powers[..K - 1], 0), u: every_other(&powers, 1), powers }
}

/// The sum of what the powers from `first` on count, nested so that only the last addition rounds what is as
/// large as the sum.
#[inline(always)]
fn every_other<N: Lanes>(powers: &[N], first: usize) -> N {
    let mut k = powers.len() - 1 - (powers.len() - 1 - first) % 2;
    let mut sum = powers[k];
    while k > first {
        sum = sum.mul_add(sum.constant(weight_of_power(k) / weight_of_power(k - 2)), powers[k - 2]);
        k -= 2;
    }
    sum
}

/// The largest |m| for a series of `X` terms in `f32`.
pub(crate) const fn exponent_reach(terms: usize) -> f64 {
    match terms {
        4 => 0.1875,
        6 => 0.5,
        _ => 4.0,
    }
}

/// w = e^m for 2 m, by X terms after the first. The last odd coefficient takes up most of the next odd term, which
/// within the reach leaves an error of at most 4e-7, and of 1e-8 in its inner half.
#[inline(always)]
pub(crate) fn exponential<N: Lanes, const X: usize>(doubled: N) -> N {
    if X == FULL {
        return (doubled * doubled.constant(0.5)).map(exp);
    }
    let mut power = doubled.constant(coefficient::<X>(X));
    for k in (0..X).rev() {
        power = power.mul_add(doubled, doubled.constant(coefficient::<X>(k)));
    }
    power
}

/// The share of h^2 by which a x^n comes nearest to x^(n + 2) on [-h, h].
const TAKEN_UP: f64 = 0.865;

#[inline(always)]
fn coefficient<const X: usize>(k: usize) -> f64 {
    let reach = exponent_reach(X);
    let next = if k == X - 1 { TAKEN_UP * reach * reach * INVERSE_FACTORIALS[X + 1] } else { 0.0 };
    (INVERSE_FACTORIALS[k] + next) / (1u64 << k) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::real::Real;
    use crate::simd::{Instructions, Kernel, LANES, Vectors};
    use proptest::prelude::*;

    struct Both<R, const X: usize, const K: usize>([R; LANES], [R; LANES]);

    impl<R: Real, const X: usize, const K: usize> Kernel for Both<R, X, K> {
        type Output = ([R; LANES], [R; LANES]);

        #[inline(always)]
        fn run<S: Vectors>(self, simd: S) -> Self::Output {
            let (x, y) = (R::Lanes::<S>::load(simd, &self.0), R::Lanes::<S>::load(simd, &self.1));
            let sum = x.mul_add(x.constant(2.0), y);
            let Terms { c, u, .. } = terms::<_, X, K>(Entries { base: x, delta: y, sum });
            (c.numbers(), u.numbers())
        }
    }

    /// At exponents whose mean is `m` and whose difference is `y`.
    fn check<R: Real, const X: usize, const K: usize>(m: f64, y: f64, tolerance: f64) {
        let (x, y) = (R::of(m - 0.5 * y), R::of(y));
        let (base, tuned) = (x.wide().exp(), (x.wide() + y.wide()).exp());
        let expected = (0.5 * (base + tuned), base * y.wide().exp_m1());
        let mut all = Vec::new();
        for instructions in Instructions::available() {
            let (c, u) = instructions.run(Both::<R, X, K>([x; LANES], [y; LANES]));
            assert!((c[0].wide() / expected.0 - 1.0).abs() <= tolerance, "{X} {K} {} {}", x.wide(), y.wide());
            let error = (u[0].wide() - expected.1).abs();
            assert!(error <= tolerance * expected.1.abs() + 1e-44, "{X} {K} {} {}", x.wide(), y.wide());
            all.push((c[0].wide().to_bits(), u[0].wide().to_bits()));
        }
        assert!(all.iter().all(|bits| *bits == all[0]), "{all:?}");
    }

    proptest! {
        /// In both widths, with the same bits on every instruction set.
        #[test]
        fn the_series_are_right_within_their_reach(unit_x in -1f64..1.0, unit_y in -1f64..1.0) {
            let near = |terms| unit_x * exponent_reach(terms);
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
