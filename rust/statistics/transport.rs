//! The Wasserstein statistics: the area between two distributions.

use super::accumulator::Entries;
use super::head::for_each_entry;
use super::part::Part;
use super::softmax::{Scaling, Segment};

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
    for Stretch { part, segments } in stretches {
        for (block, segment) in segments.iter().enumerate() {
            let before: f64 = u - ratio * v;
            u += segment.u;
            v += segment.v;
            let after = u - ratio * v;
            let variation = segment.u_variation + ratio.abs() * segment.v;
            let same_sign = before * after > 0.0 || (before == 0.0 && after == 0.0);
            let entries = part.entries_of(block);
            if same_sign && variation * MARGIN <= before.abs() + after.abs() {
                area += (entries as f64 * before + (segment.u_area - ratio * segment.v_area)).abs();
            } else if variation > 0.0 {
                area += area_by_entries(part, block, entries, before, ratio, scaling);
            }
        }
    }
    area
}

/// Covers the rounding of sums in `f32`.
const MARGIN: f64 = 1.0 + 1e-5;

fn area_by_entries(
    part: &Part,
    block: usize,
    entries: usize,
    before: f64,
    ratio: f64,
    scaling: &Scaling,
) -> f64 {
    let Entries { u, v, .. } = Entries::of(part, block, scaling);
    let (mut difference, mut area) = (before, 0.0);
    for (u, v) in u.iter().zip(&v).take(entries) {
        difference += u - ratio * v;
        area += difference.abs();
    }
    area
}

/// W1 between the two sets of weight values: the mean of |sorted theta_T - sorted theta_B|.
pub(crate) fn between_values(parts: &[Part]) -> f64 {
    let entries: usize = parts.iter().map(Part::entries).sum();
    let (mut base, mut tuned) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
    for_each_entry(parts, |from, delta| {
        base.push(from);
        tuned.push(from + delta);
    });
    base.sort_unstable_by(f64::total_cmp);
    tuned.sort_unstable_by(f64::total_cmp);
    let total: f64 = base.iter().zip(&tuned).map(|(base, tuned)| (tuned - base).abs()).sum();
    total / entries as f64
}
