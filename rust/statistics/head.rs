//! The measurements of one head, from which every statistic follows.

use std::slice;

use super::block_operation::DecodeBuffers;
use super::divergence::{self, Divergences};
use super::segments::RunningDifference;
use super::softmax_sums::SoftmaxSums;
use super::vector_sums::{NonFiniteEntry, VectorSums};
use super::wasserstein::add_areas;
use super::weight_change::WeightChange;
use super::weight_vector::WeightVector;

/// The measurements of one head.
#[derive(Clone, Copy, Debug)]
pub struct HeadMeasurements {
    pub(super) entries: usize,
    pub(super) change: WeightChange,
    /// The sum over the entries of |C_T - C_B|, where C_T and C_B are the running sums of P_T and P_B.
    pub(super) area: f64,
    /// The norm of P_T - P_B.
    pub(super) distance: f64,
    /// 1 - cos of the angle between P_B and P_T.
    pub(super) cosine: f64,
    pub(super) divergences: Divergences,
    /// W1 between the sets of weight values, where it was asked for.
    pub(super) sorted_wasserstein: Option<f64>,
    /// Whether a block was computed in `f32`.
    pub(super) has_f32: bool,
}

/// An entry of a head that is NaN or infinite.
#[derive(Clone, Copy, Debug)]
pub struct NonFiniteIn {
    /// The weight vector that holds it: 0 is the head's own, 1 the first shared one.
    pub vector: usize,
    /// The entry of that weight vector.
    pub entry: NonFiniteEntry,
}

/// The mean of the normalised |D|, in units of the norm of P_T - P_B, below which the rounding errors of `f32` show in
/// it. Changes in random order have five times that mean, sqrt(pi / 32).
const SMALLEST_F32_MEAN: f64 = 1.0 / 16.0;

impl HeadMeasurements {
    /// The measurements that follow from the sums over all entries of the head and the sum of |D|.
    pub(super) fn new(sums: &SoftmaxSums, area: f64) -> Self {
        let (shift, normaliser) = sums.normalisers();
        let by_series = divergence::of_moments(&sums.moments, shift);
        Self {
            entries: sums.entries,
            change: sums.change,
            area: sums.scale() * area,
            distance: sums.scale() * sums.distance_squared().max(0.0).sqrt(),
            cosine: sums.cosine_distance(),
            divergences: Divergences {
                kl: (by_series.kl + sums.closed_form.kl) / normaliser,
                js: (by_series.js + sums.closed_form.js) / normaliser,
            },
            sorted_wasserstein: None,
            has_f32: sums.has_f32,
        }
    }

    /// Measures a head by itself, from its weight vectors with their sums.
    pub(super) fn of_vectors<'a>(
        vectors: impl Iterator<Item = (&'a WeightVector<'a>, &'a VectorSums)> + Clone,
        buffers: &mut DecodeBuffers,
    ) -> Self {
        let sums = merged(vectors.clone().map(|(_, sums)| sums));
        let mut difference = RunningDifference::new(sums.ratio());
        for (vector, sums) in vectors {
            add_areas(vector, sums, slice::from_mut(&mut difference), buffers);
        }
        Self::new(&sums, difference.area())
    }

    /// Whether the mean of |D| is so far below that of changes in random order that rounding in `f32` shows, so that
    /// the head should be [measured again in `f64`](super::GroupMeasurement::remeasure_in_f64).
    pub fn needs_f64(&self) -> bool {
        self.has_f32 && self.area < SMALLEST_F32_MEAN * self.distance * self.entries as f64
    }
}

/// The sums over several weight vectors.
pub(super) fn merged<'a>(vectors: impl Iterator<Item = &'a VectorSums>) -> SoftmaxSums {
    let mut merged = SoftmaxSums::default();
    for sums in vectors {
        merged.merge(&sums.sums());
    }
    merged
}
