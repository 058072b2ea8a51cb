//! The sums over the entries of theta from which every statistic of the two softmaxes follows.
//!
//! # How it works
//!
//! The [symbols](super#symbols) are those of the folder. With C the total of c, the normalisers are
//! Z_T = C (1 + rho / 2) and Z_B = C (1 - rho / 2), and
//!
//! P_T - P_B = (u - rho c) / (C (1 - rho^2 / 4)).
//!
//! u is computed from delta, never as a difference of two nearly equal exponentials, so a score is as precise as delta,
//! however close the checkpoints are. The normalisers enter last, so the sums of keys and values serve every head that
//! reads them. The sums are those of u and c, not of the two exponentials, because the series of u, of c and of the
//! divergences lack every other term.

use super::divergence::{DIVERGENCE_DEGREE, Divergences};
use super::series::weight_of_power;
use super::weight_change::WeightChange;
use crate::simd::Instructions;

/// What is subtracted where exponentials could overflow, or where the largest entry outweighs all others:
/// x = (theta_B - base_max) / temperature and y = (delta - shift) / temperature - center. No statistic depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExponentOffset {
    /// The largest entry of theta_B.
    pub(crate) base_max: f64,
    /// The largest entry of theta_T less that of theta_B; exactly its delta, where that is one entry.
    pub(crate) shift: f64,
    /// An approximation of log(Z_T / Z_B), subtracted from every y as well: series in log(Z_T / Z_B) need a small one.
    pub(crate) center: f64,
}

/// How the exponentials of a weight vector are computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoftmaxSettings {
    pub(crate) temperature: f64,
    pub(crate) offset: Option<ExponentOffset>,
    pub(crate) instructions: Instructions,
}

/// The sums over one weight vector, or over several.
#[derive(Clone, Debug, Default)]
pub(crate) struct SoftmaxSums {
    pub(crate) entries: usize,
    pub(crate) change: WeightChange,
    pub(crate) u: f64,
    pub(crate) c: f64,
    pub(crate) cc: f64,
    pub(crate) uc: f64,
    pub(crate) uu: f64,
    /// The sums of w y^k over the blocks computed by series.
    pub(crate) moments: [f64; DIVERGENCE_DEGREE + 1],
    /// Whether a block was computed in `f32`, which is right only for a small log(Z_T / Z_B).
    pub(crate) has_f32: bool,
    /// The sums of u and c over the blocks computed in closed form.
    pub(crate) closed_form_u: f64,
    pub(crate) closed_form_c: f64,
    /// The divergences of these blocks, not normalised.
    pub(crate) closed_form: Divergences,
    /// Whether a block is out of reach of every series. Without an offset such blocks are left out of the sums of the
    /// softmax, which are then of no use.
    pub(crate) exceeds_series: bool,
}

impl SoftmaxSums {
    /// Adds the sums of further entries.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.entries += other.entries;
        self.change.merge(&other.change);
        self.u += other.u;
        self.c += other.c;
        self.cc += other.cc;
        self.uc += other.uc;
        self.uu += other.uu;
        for (sum, more) in self.moments.iter_mut().zip(&other.moments) {
            *sum += more;
        }
        self.has_f32 |= other.has_f32;
        self.closed_form_u += other.closed_form_u;
        self.closed_form_c += other.closed_form_c;
        self.closed_form.kl += other.closed_form.kl;
        self.closed_form.js += other.closed_form.js;
        self.exceeds_series |= other.exceeds_series;
    }

    /// rho, for u and c as they were summed: the running sum of u - rho c ends at 0.
    pub(crate) fn ratio(&self) -> f64 {
        self.u / self.c
    }

    /// log(Z_T / Z_B) and sqrt(Z_B Z_T), from all powers of the moments.
    pub(crate) fn normalisers(&self) -> (f64, f64) {
        let mut totals = [self.closed_form_c, self.closed_form_u];
        for (k, moment) in self.moments.iter().enumerate() {
            totals[k % 2] += moment * weight_of_power(k);
        }
        let [c, u] = totals;
        let half = 0.5 * u / c;
        (2.0 * half.atanh(), c * ((1.0 - half) * (1.0 + half)).sqrt())
    }

    /// The sum of (u - rho c)^2.
    pub(crate) fn distance_squared(&self) -> f64 {
        let ratio = self.ratio();
        self.uu - 2.0 * ratio * self.uc + ratio * ratio * self.cc
    }

    /// The factor from u - rho c to P_T - P_B.
    pub(crate) fn scale(&self) -> f64 {
        let ratio = self.ratio();
        1.0 / (self.c * (1.0 - 0.25 * ratio * ratio))
    }

    /// 1 - cos of the angle between e^theta_B = c - u / 2 and e^theta_T = c + u / 2, as sin^2 / (1 + cos). The two
    /// span the same area as c and u.
    pub(crate) fn cosine_distance(&self) -> f64 {
        let area_squared = self.cc * (self.uu - self.uc * (self.uc / self.cc)).max(0.0);
        let mean_square = self.cc + 0.25 * self.uu;
        let squares = (mean_square - self.uc) * (mean_square + self.uc);
        let cosine = (self.cc - 0.25 * self.uu) / squares.sqrt();
        area_squared / squares / (1.0 + cosine)
    }
}
