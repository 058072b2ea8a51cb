//! Measures the heads of a key/value group, which share weight vectors.

use std::{iter, mem, slice};

use super::block_operation::DecodeBuffers;
use super::head::{HeadMeasurements, NonFiniteIn, merged};
use super::head_with_offset::measure_with_offset;
use super::precision::{LARGEST_F32_LOG_RATIO, LARGEST_LOG_RATIO};
use super::segments::RunningDifference;
use super::softmax_sums::{ExponentOffset, SoftmaxSettings, SoftmaxSums};
use super::sorted_wasserstein;
use super::vector_sums::VectorSums;
use super::wasserstein::add_areas;
use super::weight_vector::WeightVector;
use crate::simd::Instructions;

/// The heads of a group that were added so far. theta of a head is its own weight vector followed by the shared ones.
///
/// Shared vectors are summed once, and one pass through them finds the areas of all heads.
#[derive(Debug)]
pub struct GroupMeasurement<'a> {
    shared: Vec<(WeightVector<'a>, &'a VectorSums)>,
    settings: SoftmaxSettings,
    with_sorted: bool,
    measured: Vec<HeadMeasurements>,
    /// D of each head that still has to pass through the shared vectors.
    differences: Vec<RunningDifference>,
    /// The index in `measured` of each of these heads, and the factor that normalises its area.
    scales: Vec<(usize, f64)>,
    /// The sums of the shared vectors in `f64`, once a head needs them.
    shared_in_f64: Vec<VectorSums>,
    buffers: DecodeBuffers,
}

impl<'a> GroupMeasurement<'a> {
    /// A group without heads. `shared` has sums of the same temperature. W1 between the sets of weight values needs a
    /// sort, and is measured only `with_sorted`.
    pub fn new(
        shared: Vec<(WeightVector<'a>, &'a VectorSums)>,
        temperature: f64,
        with_sorted: bool,
        instructions: Instructions,
    ) -> Self {
        Self {
            shared,
            settings: SoftmaxSettings { temperature, offset: None, instructions },
            with_sorted,
            measured: Vec::new(),
            differences: Vec::new(),
            scales: Vec::new(),
            shared_in_f64: Vec::new(),
            buffers: DecodeBuffers::default(),
        }
    }

    /// Adds a head. Its own weight vector is not needed afterwards.
    pub fn add(&mut self, own: WeightVector, own_sums: &VectorSums) -> Result<(), NonFiniteIn> {
        let sums = merged(iter::once(own_sums).chain(self.shared.iter().map(|(_, sums)| *sums)));
        let mut measured = if is_well_conditioned(&sums) {
            let mut difference = RunningDifference::new(sums.ratio());
            add_areas(&own, own_sums, slice::from_mut(&mut difference), &mut self.buffers);
            self.scales.push((self.measured.len(), sums.scale()));
            self.differences.push(difference);
            HeadMeasurements::new(&sums, 0.0)
        } else {
            let measured = measure_with_offset(&self.vectors_of(own), &self.settings)?;
            HeadMeasurements { change: sums.change, ..measured }
        };
        if self.with_sorted {
            measured.sorted_wasserstein = Some(sorted_wasserstein::distance(&self.vectors_of(own)));
        }
        self.measured.push(measured);
        Ok(())
    }

    /// Passes through the shared vectors, and returns the measurements of each head.
    pub fn finish(&mut self) -> Vec<HeadMeasurements> {
        for (vector, sums) in &self.shared {
            add_areas(vector, sums, &mut self.differences, &mut self.buffers);
        }
        for ((head, scale), difference) in self.scales.drain(..).zip(self.differences.drain(..)) {
            self.measured[head].area = scale * difference.area();
        }
        mem::take(&mut self.measured)
    }

    /// Measures a head again, all in `f64`, given its first measurements.
    pub fn remeasure_in_f64(
        &mut self,
        own: WeightVector,
        first: &HeadMeasurements,
    ) -> Result<HeadMeasurements, NonFiniteIn> {
        // Any offset, even 0, makes `may_be_f32` refuse; 0 changes no exponent.
        let settings = SoftmaxSettings { offset: Some(ExponentOffset::default()), ..self.settings };
        for (index, (vector, _)) in self.shared.iter().enumerate().skip(self.shared_in_f64.len()) {
            let sums =
                VectorSums::of(vector, settings).map_err(|entry| NonFiniteIn { vector: index + 1, entry })?;
            self.shared_in_f64.push(sums);
        }
        let own_sums = VectorSums::of(&own, settings).map_err(|entry| NonFiniteIn { vector: 0, entry })?;
        let vectors = iter::once(&own).chain(self.shared.iter().map(|(vector, _)| vector));
        let vectors = vectors.zip(iter::once(&own_sums).chain(&self.shared_in_f64));
        let measured = HeadMeasurements::of_vectors(vectors, &mut self.buffers);
        let HeadMeasurements { change, sorted_wasserstein, .. } = *first;
        Ok(HeadMeasurements { change, sorted_wasserstein, ..measured })
    }

    fn vectors_of<'b>(&'b self, own: WeightVector<'b>) -> Vec<WeightVector<'b>> {
        iter::once(own).chain(self.shared.iter().map(|(vector, _)| *vector)).collect()
    }
}

/// Whether sums taken without an offset give every statistic to full precision: the series cover every block, and no
/// large part of u is common to all entries, which the normalisation would cancel.
fn is_well_conditioned(sums: &SoftmaxSums) -> bool {
    if sums.exceeds_series {
        return false;
    }
    let largest = if sums.has_f32 { LARGEST_F32_LOG_RATIO } else { LARGEST_LOG_RATIO };
    let (log_ratio, _) = sums.normalisers();
    sums.uu == 0.0 || (log_ratio.abs() <= largest && sums.distance_squared() >= sums.uu / 4.0)
}
