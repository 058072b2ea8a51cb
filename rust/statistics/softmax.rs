//! What the statistics need of the two softmaxes: sums over the entries of theta.
//!
//! With theta scaled by the temperature, v = e^theta_B and u = e^theta_T - e^theta_B = v (e^y - 1) where
//! y = theta_T - theta_B. The difference is never taken between two nearly equal numbers, so a score is
//! as precise as y itself however close the checkpoints are: P_T - P_B = (u - r v) / Z_T with
//! r = sum(u) / sum(v). The normalisers come last, so the sums of a key/value part serve every head that
//! reads it.

use super::displacement::Displacement;
use super::divergence::{Divergences, TERMS};
use crate::vector::Instructions;

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
    pub(crate) v: f64,
    pub(crate) vv: f64,
    pub(crate) uv: f64,
    pub(crate) uu: f64,
    /// The sums of v y^k over the blocks computed by series.
    pub(crate) moments: [f64; TERMS + 1],
    /// Whether some of the moments are right only for a small log(Z_T / Z_B).
    pub(crate) has_narrow: bool,
    /// The divergences of the blocks computed in closed form, times Z_B.
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
        self.v += other.v;
        self.vv += other.vv;
        self.uv += other.uv;
        self.uu += other.uu;
        for (sum, more) in self.moments.iter_mut().zip(&other.moments) {
            *sum += more;
        }
        self.has_narrow |= other.has_narrow;
        self.far.kl += other.far.kl;
        self.far.js += other.far.js;
        self.has_far |= other.has_far;
    }

    /// r = Z_T / Z_B - 1.
    pub(crate) fn ratio(&self) -> f64 {
        self.u / self.v
    }

    /// Z_T^2 times the squared norm of P_T - P_B.
    pub(crate) fn distance_squared(&self) -> f64 {
        let ratio = self.ratio();
        self.uu - 2.0 * ratio * self.uv + ratio * ratio * self.vv
    }

    /// Z_T^2 times the squared distance of P_T from the line through P_B and the origin.
    pub(crate) fn distance_from_base_squared(&self) -> f64 {
        self.uu - self.uv * (self.uv / self.vv)
    }
}

/// An entry that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// Its place in the part.
    pub entry: usize,
    /// Whether it is the tuned side's.
    pub tuned: bool,
}
