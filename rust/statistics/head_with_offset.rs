//! Measures a head with an offset of its exponents, all in `f64`: right for every finite theta, and slower.

use super::block_operation::DecodeBuffers;
use super::head::{HeadMeasurements, NonFiniteIn, merged};
use super::precision::LARGEST_LOG_RATIO;
use super::softmax_sums::{ExponentOffset, SoftmaxSettings};
use super::vector_sums::VectorSums;
use super::weight_vector::{WeightVector, for_each_entry};

/// The largest error of the center for divergences in closed form, which cannot be corrected afterwards.
const CENTER_PRECISION: f64 = 1e-10;

/// Far more passes than are needed. If somebody writes to the weights meanwhile, the passes might not converge.
const PASSES: usize = 64;

/// Measures one head relative to its largest entries. The first pass finds log(Z_T / Z_B), which is the center of the
/// next.
pub(super) fn measure_with_offset(
    vectors: &[WeightVector],
    settings: &SoftmaxSettings,
) -> Result<HeadMeasurements, NonFiniteIn> {
    let (mut offset, mut passes) = (largest_entries(vectors), 0);
    loop {
        passes += 1;
        let settings = SoftmaxSettings { offset: Some(offset), ..*settings };
        let sum = |(index, vector)| {
            VectorSums::of(vector, settings).map_err(|entry| NonFiniteIn { vector: index, entry })
        };
        let all_sums = vectors.iter().enumerate().map(sum).collect::<Result<Vec<_>, _>>()?;
        let sums = merged(all_sums.iter());
        let (rest, _) = sums.normalisers();
        let largest_rest = if sums.exceeds_series { CENTER_PRECISION } else { LARGEST_LOG_RATIO };
        // After an overflow there is no center to find, and the caller refuses the result.
        if rest.abs() <= largest_rest || !rest.is_finite() || passes == PASSES {
            let vectors = vectors.iter().zip(&all_sums);
            return Ok(HeadMeasurements::of_vectors(vectors, &mut DecodeBuffers::default()));
        }
        offset.center += rest;
    }
}

/// The offset by the largest entries of theta_B and of theta_T.
fn largest_entries(vectors: &[WeightVector]) -> ExponentOffset {
    let (mut base_max, mut tuned_max, mut of_tuned) = (f64::NEG_INFINITY, f64::NEG_INFINITY, (0.0, 0.0));
    for_each_entry(vectors, |base, delta| {
        base_max = base_max.max(base);
        if base + delta > tuned_max {
            tuned_max = base + delta;
            of_tuned = (base, delta);
        }
    });
    ExponentOffset { base_max, shift: (of_tuned.0 - base_max) + of_tuned.1, center: 0.0 }
}
