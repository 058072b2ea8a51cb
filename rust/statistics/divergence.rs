//! The divergences between the two softmaxes, from moments of the log ratio.
//!
//! # How it works
//!
//! With z = log(P_T / P_B) and g = sqrt(P_B P_T), each divergence is the sum of g f(z) over the entries, where
//!
//! Kullback-Leibler (T from B): f(z) = z e^(z/2) - 2 sinh(z/2),
//! Jensen-Shannon: f(z) = (z sinh(z/2) - 2 cosh(z/2) log cosh(z/2)) / 2.
//!
//! Both f and their first derivatives vanish at 0, so the terms are as small as the result, and never negative. The
//! second f is even, and z^2 / 8 up to terms of z^6. z = y - log(Z_T / Z_B) is known only when all entries are summed.
//! With f as a series in z, the moments suffice: the sums of w y^k over the entries, with w = sqrt(Z_B Z_T) g.

use super::exponential::INVERSE_FACTORIALS;

/// The highest power in any series.
pub(crate) const DIVERGENCE_DEGREE: usize = 24;

/// The Taylor series of Kullback-Leibler's f: k / (2^(k-1) k!), and k - 1 instead of k where k is odd.
const KULLBACK_LEIBLER: [f64; DIVERGENCE_DEGREE + 1] = {
    let mut series = [0.0; DIVERGENCE_DEGREE + 1];
    let (mut k, mut power) = (2, 2.0);
    while k <= DIVERGENCE_DEGREE {
        series[k] = (k - k % 2) as f64 * INVERSE_FACTORIALS[k] / power;
        k += 1;
        power *= 2.0;
    }
    series
};

/// The Taylor series of Jensen-Shannon's f.
const JENSEN_SHANNON: [f64; DIVERGENCE_DEGREE + 1] = {
    let mut series = [0.0; DIVERGENCE_DEGREE + 1];
    series[2] = 1.0 / 8.0;
    series[6] = 1.0 / 9_216.0;
    series[8] = -1.0 / 184_320.0;
    series[10] = 443.0 / 1_238_630_400.0;
    series[12] = -2.507_249_584_343_768_3e-8;
    series[14] = 1.857_816_211_426_053_4e-9;
    series[16] = -1.434_568_172_681_697e-10;
    series[18] = 1.143_675_343_839_722_6e-11;
    series[20] = -9.351_656_501_506_667e-13;
    series[22] = 7.805_562_636_615_097e-14;
    series[24] = -6.626_790_184_453_181e-15;
    series
};

/// Both divergences, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Divergences {
    pub(crate) kl: f64,
    pub(crate) js: f64,
}

/// The divergences, times sqrt(Z_B Z_T), of entries whose sums of w y^k are `moments`; `shift` is log(Z_T / Z_B).
pub(crate) fn of_moments(moments: &[f64; DIVERGENCE_DEGREE + 1], shift: f64) -> Divergences {
    let centered = centered(moments, shift);
    let sum = |series: &[f64; DIVERGENCE_DEGREE + 1]| {
        series.iter().zip(&centered).rev().map(|(coefficient, moment)| coefficient * moment).sum()
    };
    Divergences { kl: sum(&KULLBACK_LEIBLER), js: sum(&JENSEN_SHANNON) }
}

/// The sums of w (y - shift)^k, by the binomial theorem.
fn centered(moments: &[f64; DIVERGENCE_DEGREE + 1], shift: f64) -> [f64; DIVERGENCE_DEGREE + 1] {
    let mut centered = *moments;
    // Each round replaces one more factor y of the moments by y - shift.
    for round in 1..=DIVERGENCE_DEGREE {
        for k in (round..=DIVERGENCE_DEGREE).rev() {
            centered[k] -= shift * centered[k - 1];
        }
    }
    centered
}

/// The divergences of one entry at any z = log(P_T / P_B), times the common factor of `base`, P_B, and `tuned`, P_T.
pub(crate) fn of_entry(base: f64, tuned: f64, z: f64) -> Divergences {
    if z.abs() <= 1.0 {
        let geometric_mean = base * (0.5 * z).exp();
        let sum = |series: &[f64; DIVERGENCE_DEGREE + 1]| {
            geometric_mean * series.iter().rev().fold(0.0, |sum, coefficient| sum * z + coefficient)
        };
        return Divergences { kl: sum(&KULLBACK_LEIBLER), js: sum(&JENSEN_SHANNON) };
    }
    // The logarithms of the mean of both over base and over tuned. The exponent is negative.
    let half = (-z.abs()).exp().ln_1p() - std::f64::consts::LN_2;
    let (over_base, over_tuned) = if z > 0.0 { (z + half, half) } else { (half, half - z) };
    Divergences { kl: tuned * (z - 1.0) + base, js: -0.5 * (tuned * over_tuned + base * over_base) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Both in closed form, at any z; imprecise near 0.
    fn closed(z: f64) -> Divergences {
        let (tuned, mean) = (z.exp(), (1.0 + z.exp()) / 2.0);
        Divergences { kl: tuned * z - z.exp_m1(), js: (tuned * (z - mean.ln()) - mean.ln()) / 2.0 }
    }

    fn close(found: Divergences, expected: Divergences, tolerance: f64) -> bool {
        (found.kl / expected.kl - 1.0).abs() <= tolerance && (found.js / expected.js - 1.0).abs() <= tolerance
    }

    fn moments(entries: &[(f64, f64)]) -> [f64; DIVERGENCE_DEGREE + 1] {
        std::array::from_fn(|k| entries.iter().map(|(v, y)| v * (0.5 * y).exp() * y.powi(k as i32)).sum())
    }

    proptest! {
        #[test]
        fn an_entry_has_the_closed_forms(z in prop_oneof![-20f64..-0.05, 0.05f64..20.0], base in 0.1f64..10.0) {
            let expected = Divergences { kl: base * closed(z).kl, js: base * closed(z).js };
            prop_assert!(close(of_entry(base, base * z.exp(), z), expected, 1e-9));
        }

        #[test]
        fn small_entries_are_of_second_order(z in -1e-6f64..1e-6) {
            prop_assume!(z.abs() > 1e-100);
            let expected = Divergences { kl: z * z / 2.0, js: z * z / 8.0 };
            prop_assert!(close(of_entry(1.0, z.exp(), z), expected, 2e-6));
        }

        #[test]
        fn moments_serve_for_any_shift(
            entries in prop::collection::vec((0.1f64..2.0, -1f64..1.0), 1..20),
            shift in -0.25f64..0.25,
        ) {
            let mut expected = Divergences::default();
            for (v, y) in &entries {
                // P_B and P_T times sqrt(Z_B Z_T): their geometric mean is w.
                let entry = of_entry(v * (0.5 * shift).exp(), v * (y - 0.5 * shift).exp(), y - shift);
                expected.kl += entry.kl;
                expected.js += entry.js;
            }
            prop_assume!(expected.js > 1e-4);
            prop_assert!(close(of_moments(&moments(&entries), shift), expected, 1e-9));
        }
    }

    #[test]
    fn the_series_meet_the_closed_forms_at_their_limit() {
        for z in [-1.0f64, 1.0] {
            let outside = z * (1.0 + 1e-12);
            assert!(close(of_entry(1.0, z.exp(), z), of_entry(1.0, outside.exp(), outside), 1e-11));
        }
    }
}
