//! Bounds that prove from the sums of a segment that a running difference D keeps its sign in it.
//!
//! # How it works
//!
//! D changes by steps of u - rho c, over T entries ([symbols](super#symbols)).
//!
//! First bound: by the Cauchy-Schwarz inequality the path of D over T entries is no longer than
//! sqrt(T uu) + |rho| (sum of c), and a path from a to 0 and on to b is at least |a| + |b| long.
//!
//! Second bound: let D(t) be linear between the entries. Its energy E = integral of D'^2 is the sum of the squares of
//! its steps, whose root is at most sqrt(uu) + `drift_norm`. A path from a to 0 in time t with area A has at least the
//! energy of a parabola, a^2 / t + 12 (A - a t / 2)^2 / t^3. If D reaches 0 after a share s of T, with a, b >= 0 at its
//! ends, mean m, and q = s (1 - s), then
//!
//! E T >= a^2 / s + b^2 / (1 - s) + 12 (m - a s / 2 - b (1 - s) / 2)^2 / (s^3 + (1 - s)^3)
//!     >= min(a, b)^2 / q + 12 (m - max(a, b) / 2)^2 / (1 - 3 q)
//!     >= 3 (min(a, b) + 2 m - max(a, b))^2,
//!
//! for the best division of the area and the best q: D cannot reach 0 within the segment if its mean is large.

use super::block::SEGMENT;

/// The sums of D within one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentPath {
    /// D before the first entry and after the last.
    pub(crate) before: f64,
    pub(crate) after: f64,
    /// The mean of D after each entry; where entries are absent, D is constant.
    pub(crate) mean: f64,
    /// The sum of u^2.
    pub(crate) uu: f64,
    /// The sum of |rho| c.
    pub(crate) drift: f64,
    /// At least the root of the sum of (rho c)^2: that over the whole block.
    pub(crate) drift_norm: f64,
}

impl SegmentPath {
    /// Whether D provably keeps its sign.
    #[inline(always)]
    pub(crate) fn keeps_sign(self) -> bool {
        let Self { before, after, mean, uu, drift, drift_norm } = self;
        const T: f64 = SEGMENT as f64;
        let exceeds_steps = |length: f64| (length > 0.0) & (T * uu * (MARGIN * MARGIN) <= length * length);
        // The mean along the path contains half of the step after each entry.
        let mean = mean - (after - before) / (2.0 * T);
        let far = 3f64.sqrt() * (2.0 * mean.abs() - (after - before).abs());
        let has_one_sign = ((before > 0.0) == (after > 0.0)) & ((before > 0.0) == (mean > 0.0));
        exceeds_steps(before.abs() + after.abs() - MARGIN * drift)
            | (has_one_sign & exceeds_steps(far - MARGIN * T.sqrt() * drift_norm))
    }
}

/// A factor that covers the rounding of sums in `f32`.
const MARGIN: f64 = 1.0 + 1e-5;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The path of D from `before` by these steps, of which `drifts` come from rho c, and whether its sign changes.
    fn path(before: f64, steps: &[f64], drifts: &[f64]) -> (SegmentPath, bool) {
        let (mut d, mut sum, mut changes) = (before, 0.0, false);
        for step in steps {
            d += step;
            sum += d;
            changes |= d * before < 0.0;
        }
        let squares =
            |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>();
        let path = SegmentPath {
            before,
            after: d,
            mean: sum / steps.len() as f64,
            uu: squares(&mut steps.iter().zip(drifts).map(|(step, drift)| step + drift)),
            drift: drifts.iter().sum(),
            drift_norm: squares(&mut drifts.iter().copied()).sqrt(),
        };
        (path, changes)
    }

    /// A parabola from `from` to `to`, at a share of its time.
    fn parabola(from: f64, to: f64, bulge: f64, share: f64) -> f64 {
        from + (to - from) * share + bulge * share * (1.0 - share)
    }

    proptest! {
        /// Of all paths below 0 and back, parabolas need the least energy; those that go far from 0 before and after
        /// have a large mean as well.
        #[test]
        fn a_path_below_0_is_never_said_to_keep_its_sign(
            [before, after] in prop::array::uniform2(0.01f64..1.0),
            bulges in prop::array::uniform2(-1f64..4.0),
            share in 0.01f64..0.99,
            depth in 1e-6f64..0.1,
            noise in prop::collection::vec(-1f64..1.0, SEGMENT),
            loudness in prop::sample::select(vec![0.0, 1e-3, 0.1]),
            drifts in prop::collection::vec(0.5f64..1.0, SEGMENT),
            drift in prop::sample::select(vec![0.0, 1e-4, 1e-2]),
        ) {
            let drifts: Vec<f64> = drifts.iter().map(|share| share * drift).collect();
            let at = |time: f64| match time / share {
                to_lowest if to_lowest < 1.0 => parabola(before, -depth, bulges[0], to_lowest),
                _ => parabola(-depth, after, bulges[1], (time - share) / (1.0 - share)),
            };
            let place = |entry: usize| entry as f64 / SEGMENT as f64;
            let steps: Vec<f64> = (0..SEGMENT)
                .map(|entry| at(place(entry + 1)) - at(place(entry)) + loudness * noise[entry])
                .collect();
            for sign in [1.0, -1.0] {
                let steps: Vec<f64> = steps.iter().map(|step| sign * step).collect();
                let (path, changes) = path(sign * before, &steps, &drifts);
                prop_assert!(!(changes && path.keeps_sign()), "{path:?}");
            }
        }

        /// Where no entry has changed, only rho c moves D, straight through 0.
        #[test]
        fn a_drift_through_0_changes_the_sign(scale in -30f64..0.0, share in 0f64..1.0) {
            let drift = scale.exp();
            let (before, after) = (share * drift, share * drift - drift);
            let drift_norm = drift / (SEGMENT as f64).sqrt();
            let path = SegmentPath { before, after, mean: (before + after) / 2.0, uu: 0.0, drift, drift_norm };
            prop_assert!(!path.keeps_sign(), "{path:?}");
        }

        /// The steps would reach 0 if all had the same sign.
        #[test]
        fn a_path_that_stays_away_from_0_keeps_its_sign(
            swings in prop::collection::vec(0.8f64..1.0, SEGMENT / 2),
        ) {
            let steps: Vec<f64> = swings.iter().flat_map(|swing| [*swing, -swing]).collect();
            for before in [0.3 * SEGMENT as f64, -0.3 * SEGMENT as f64] {
                let (path, _) = path(before, &steps, &[0.0; SEGMENT]);
                prop_assert!(path.keeps_sign(), "{path:?}");
            }
        }
    }
}
