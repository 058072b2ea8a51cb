//! What the statistics need of the two softmaxes: sums over the entries of theta.
//!
//! With theta scaled by the temperature, u = e^theta_T - e^theta_B and c = (e^theta_T + e^theta_B) / 2 of every
//! entry, U and C their sums and rho = U / C, the normalisers are Z_T = C (1 + rho / 2) and Z_B = C (1 - rho / 2),
//! and P_T - P_B = (u - rho c) / (C (1 - rho^2 / 4)). u is never a difference of two nearly equal numbers, so a
//! score is as precise as theta_T - theta_B itself however close the checkpoints are; and as the normalisers
//! come last, the sums of a key/value part serve every head that reads it. Taking both sides from their middle,
//! not one from the other, leaves out every other term of the series, of u and c as of the divergences.

use super::displacement::Displacement;
use super::divergence::{Divergences, TERMS};
use super::series::weight_of_power;
use crate::simd::Instructions;

/// The largest entries, relative to which exponentials are taken where they could overflow or where
/// the largest entry outweighs all others: x = theta_B - base_max, y = delta - shift, both over the temperature.
/// No statistic depends on them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    /// The largest entry of theta_B.
    pub(crate) base_max: f64,
    /// The largest entry of theta_T less that of theta_B; exactly its delta, where that is one entry.
    pub(crate) shift: f64,
    /// log(Z_T / Z_B) as far as it is known: taken off every y, it leaves the little that series in
    /// log(Z_T / Z_B) need.
    pub(crate) center: f64,
}

/// How theta becomes the argument of an exponential, and what computes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaling {
    pub(crate) temperature: f64,
    pub(crate) frame: Option<Frame>,
    pub(crate) instructions: Instructions,
}

/// The sums over one part of theta, or over several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) entries: usize,
    pub(crate) displacement: Displacement,
    pub(crate) u: f64,
    pub(crate) c: f64,
    pub(crate) cc: f64,
    pub(crate) uc: f64,
    pub(crate) uu: f64,
    /// The sums of w y^k over the blocks computed by series.
    pub(crate) moments: [f64; TERMS + 1],
    /// Whether some of the moments are right only for a small log(Z_T / Z_B).
    pub(crate) has_narrow: bool,
    /// The sums of u and c over the blocks computed in closed form.
    pub(crate) far_u: f64,
    pub(crate) far_c: f64,
    /// The divergences of these blocks, not normalised.
    pub(crate) far: Divergences,
    /// Whether there are blocks that no series reaches. Without a frame they are left out of the sums
    /// of the softmax, which are then of no use.
    pub(crate) has_far: bool,
}

impl Sums {
    /// Adds the sums of another stretch of theta.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.entries += other.entries;
        self.displacement.merge(&other.displacement);
        self.u += other.u;
        self.c += other.c;
        self.cc += other.cc;
        self.uc += other.uc;
        self.uu += other.uu;
        for (sum, more) in self.moments.iter_mut().zip(&other.moments) {
            *sum += more;
        }
        self.has_narrow |= other.has_narrow;
        self.far_u += other.far_u;
        self.far_c += other.far_c;
        self.far.kl += other.far.kl;
        self.far.js += other.far.js;
        self.has_far |= other.has_far;
    }

    /// rho, for u and c as they were summed: the running sum of u - rho c ends at 0.
    pub(crate) fn ratio(&self) -> f64 {
        self.u / self.c
    }

    /// log(Z_T / Z_B) and sqrt(Z_B Z_T), with all that the moments know of U and C.
    pub(crate) fn normalisers(&self) -> (f64, f64) {
        let mut totals = [self.far_c, self.far_u];
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

/// An entry that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonFiniteEntry {
    /// Its place in the part.
    pub entry: usize,
    /// Whether it is the tuned side's.
    pub is_tuned: bool,
}
