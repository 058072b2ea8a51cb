//! The table of statistics: the name of each, and its formula in terms of the measurements of a head.
//!
//! CONTRIBUTING.md says what a new statistic needs.

use super::head::HeadMeasurements;

/// One statistic of a head.
#[derive(Clone, Copy, Debug)]
pub struct Statistic {
    /// Its name, the same everywhere.
    pub name: &'static str,
    /// Whether it needs stored entries, which the form `product` lacks.
    pub of_stored_entries: bool,
    /// Whether it is computed only when it is named.
    pub on_request: bool,
    /// Its value for one head.
    pub value: fn(&HeadMeasurements) -> f64,
}

impl Statistic {
    /// Whether the statistic can have this value for finite weights. `relative_delta` is infinite where the base is
    /// 0, and `wasserstein_z` is not a number where no weight has changed.
    pub fn allows(&self, value: f64) -> bool {
        match self.name {
            "relative_delta" => !value.is_nan(),
            "wasserstein_z" => true,
            _ => value.is_finite(),
        }
    }
}

const fn always_computed(name: &'static str, value: fn(&HeadMeasurements) -> f64) -> Statistic {
    Statistic { name, of_stored_entries: false, on_request: false, value }
}

/// Every statistic, in the order in which they are shown.
pub const STATISTICS: [Statistic; 11] = [
    always_computed("wasserstein", wasserstein),
    always_computed("kl", |head| head.divergences.kl),
    always_computed("js", |head| head.divergences.js),
    always_computed("cosine", |head| head.cosine),
    always_computed("euclidean", |head| head.distance),
    always_computed("delta_norm", |head| head.change.delta_squares.sqrt()),
    always_computed("relative_delta", relative_delta),
    always_computed("max_delta", |head| head.change.largest_delta),
    Statistic {
        name: "changed",
        of_stored_entries: true,
        on_request: false,
        value: |head| head.change.changed / head.entries as f64,
    },
    always_computed("wasserstein_z", wasserstein_z),
    Statistic {
        name: "sorted_wasserstein",
        of_stored_entries: false,
        on_request: true,
        value: |head| head.sorted_wasserstein.unwrap_or(f64::NAN),
    },
];

/// The score of ALPS: W1 between the softmaxes, their entries placed evenly on [0, 1].
fn wasserstein(head: &HeadMeasurements) -> f64 {
    if head.entries < 2 { 0.0 } else { head.area / (head.entries - 1) as f64 }
}

fn relative_delta(head: &HeadMeasurements) -> f64 {
    let change = &head.change;
    if change.delta_squares == 0.0 {
        return 0.0;
    }
    (change.delta_squares / change.base_squares).sqrt()
}

/// The Wasserstein score in standard deviations from its mean over random orders of the same changes. In random order
/// the running sum of the changes is a Brownian bridge; over the norm of the changes, the area under its absolute value
/// has the mean sqrt(pi / 32) and the mean square 7 / 60. Not a number where no weight has changed.
fn wasserstein_z(head: &HeadMeasurements) -> f64 {
    const MEAN_SQUARED: f64 = std::f64::consts::PI / 32.0;
    const MEAN_SQUARE: f64 = 7.0 / 60.0;
    if head.distance == 0.0 {
        return f64::NAN;
    }
    (wasserstein(head) / head.distance - MEAN_SQUARED.sqrt()) / (MEAN_SQUARE - MEAN_SQUARED).sqrt()
}
