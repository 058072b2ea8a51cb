//! The Wasserstein score: the area between two running sums.

use super::accumulator::Entries;
use super::part::Part;
use super::softmax::{Scaling, Segment};
use super::way::Scratch;

/// One part of theta with its segments.
pub(crate) struct Stretch<'a> {
    pub(crate) part: &'a Part<'a>,
    pub(crate) segments: &'a [Segment],
}

/// The sum over all entries of |U - ratio V|, where U and V are the running sums of u and v: Z_T times
/// that of |C_T - C_B|.
///
/// Where the running difference D cannot change its sign within a block, the block's segment says all.
/// It cannot where what D varies by, at most the sum of |u| + |ratio| v, is less than the way from D at
/// the start to 0 and back to D at the end. The other blocks, a few in a hundred, are gone through entry
/// by entry.
pub(crate) fn area(stretches: &[Stretch], ratio: f64, scaling: &Scaling) -> f64 {
    let (mut u, mut v, mut area) = (0.0, 0.0, 0.0);
    let (mut entries, mut scratch) = (Entries::new(scaling.instructions), Scratch::new());
    for Stretch { part, segments } in stretches {
        for (block, segment) in segments.iter().enumerate() {
            let before: f64 = u - ratio * v;
            u += segment.u;
            v += segment.v;
            let after = u - ratio * v;
            let variation = segment.u_variation + ratio.abs() * segment.v;
            let same_sign = before * after > 0.0 || (before == 0.0 && after == 0.0);
            let count = part.entries_of(block);
            if same_sign && variation * MARGIN <= before.abs() + after.abs() {
                area += (count as f64 * before + (segment.u_area - ratio * segment.v_area)).abs();
            } else if variation > 0.0 {
                entries.load(part, block, scaling, &mut scratch);
                area += area_by_entries(&entries.u[..count], &entries.v[..count], before, ratio);
            }
        }
    }
    area
}

/// Covers the rounding of sums in `f32`.
const MARGIN: f64 = 1.0 + 1e-5;

fn area_by_entries(u: &[f64], v: &[f64], before: f64, ratio: f64) -> f64 {
    let (mut difference, mut area) = (before, 0.0);
    for (u, v) in u.iter().zip(v) {
        difference += u - ratio * v;
        area += difference.abs();
    }
    area
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::statistics::Stored;
    use crate::statistics::accumulator::Accumulator;
    use crate::vector::Instructions;
    use proptest::prelude::*;

    fn bytes(weights: &[f64]) -> Vec<u8> {
        weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
    }

    proptest! {
        /// The segments say what the entries say, whatever the changes: drifts, which leave most blocks
        /// on one side, and noise, which does not.
        #[test]
        fn the_area_is_that_of_the_entries(
            deltas in prop::collection::vec(-0.2f64..0.2, 1..1500),
            drift in -0.05f64..0.05,
            ratio in -0.05f64..0.05,
            cut in 0.0f64..1.0,
        ) {
            let base: Vec<f64> = (0..deltas.len()).map(|entry| (entry as f64 * 0.7).sin() * 0.1).collect();
            let tuned: Vec<f64> = base.iter().zip(&deltas).map(|(base, delta)| base + delta + drift).collect();
            let cut = 8 * (cut * base.len() as f64) as usize;
            let (base_bytes, tuned_bytes) = (bytes(&base), bytes(&tuned));
            let part = |range: std::ops::Range<usize>| Part::Stored {
                base: Stored { dtype: Dtype::F64, bytes: &base_bytes[range.clone()] },
                tuned: Stored { dtype: Dtype::F64, bytes: &tuned_bytes[range] },
            };
            let parts = [part(0..cut), part(cut..base_bytes.len())];
            let scaling = Scaling { temperature: 1.0, frame: None, instructions: Instructions::best() };
            let accumulators: Vec<_> = parts
                .iter()
                .map(|part| {
                    let mut accumulator = Accumulator::new(scaling.instructions);
                    assert!(accumulator.add(part, 0..part.blocks(), &scaling).is_ok());
                    accumulator
                })
                .collect();
            let stretches: Vec<_> = parts
                .iter()
                .zip(&accumulators)
                .map(|(part, accumulator)| Stretch { part, segments: accumulator.segments() })
                .collect();

            let (mut difference, mut expected) = (0.0, 0.0);
            for (base, tuned) in base.iter().zip(&tuned) {
                difference += tuned.exp() - base.exp() - ratio * base.exp();
                expected += f64::abs(difference);
            }
            let found = area(&stretches, ratio, &scaling);
            prop_assert!((found / expected - 1.0).abs() <= 1e-9, "{} {}", found, expected);
        }
    }
}
