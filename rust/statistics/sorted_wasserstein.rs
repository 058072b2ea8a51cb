//! W1 between two sets of weight values, whatever their order: the mean of |sorted theta_T - sorted theta_B|.

use super::weight_vector::{StoredWeights, WeightVector, for_each_entry};
use crate::number_format::Dtype;

/// The distance between the values of theta_B and those of theta_T.
pub(super) fn distance(parts: &[WeightVector]) -> f64 {
    let entries: usize = parts.iter().map(WeightVector::entries).sum();
    let sum = match (Counts::of_side(parts, |base, _| base), Counts::of_side(parts, |_, tuned| tuned)) {
        (Some(base), Some(tuned)) => base.sum_of_distances(&tuned),
        _ => by_sorting(parts, entries),
    };
    sum / entries as f64
}

fn by_sorting(parts: &[WeightVector], entries: usize) -> f64 {
    let (mut base, mut tuned) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
    for_each_entry(parts, |from, delta| {
        base.push(from);
        tuned.push(from + delta);
    });
    base.sort_unstable_by(f64::total_cmp);
    tuned.sort_unstable_by(f64::total_cmp);
    base.iter().zip(&tuned).map(|(base, tuned)| (tuned - base).abs()).sum()
}

/// How often each number of a 16-bit format occurs: all there is to say of a set of them, and a hundred
/// times faster to make than to sort a million.
struct Counts {
    of_bits: Vec<u32>,
    dtype: Dtype,
}

impl Counts {
    fn of_side<'a>(
        parts: &[WeightVector<'a>],
        side: fn(StoredWeights<'a>, StoredWeights<'a>) -> StoredWeights<'a>,
    ) -> Option<Self> {
        let mut counts: Option<Self> = None;
        for part in parts {
            let WeightVector::Stored { base, tuned } = *part else { return None };
            let stored = side(base, tuned);
            let counts =
                counts.get_or_insert_with(|| Self { of_bits: vec![0; 1 << 16], dtype: stored.dtype });
            if stored.dtype.size() != 2 || stored.dtype != counts.dtype {
                return None;
            }
            for bytes in stored.bytes.as_chunks().0 {
                counts.of_bits[usize::from(u16::from_le_bytes(*bytes))] += 1;
            }
        }
        counts
    }

    /// Each number that occurs with its count, ascending.
    fn ascending(&self) -> impl Iterator<Item = (f64, u64)> {
        // Negative numbers stand behind the others, the largest first.
        let bits = (0x8000..=0xffff).rev().chain(0..0x8000);
        bits.filter(|bits| self.of_bits[usize::from(*bits)] > 0).map(|bits: u16| {
            let bytes = bits.to_le_bytes();
            let value = StoredWeights { dtype: self.dtype, bytes: &bytes }.entry(0);
            (value, u64::from(self.of_bits[usize::from(bits)]))
        })
    }

    fn sum_of_distances(&self, other: &Self) -> f64 {
        let (mut ours, mut others) = (self.ascending(), other.ascending());
        let (mut our, mut their) = (ours.next(), others.next());
        let mut sum = 0.0;
        while let (Some((value, count)), Some((other, other_count))) = (&mut our, &mut their) {
            let pairs = (*count).min(*other_count);
            sum += pairs as f64 * (*value - *other).abs();
            *count -= pairs;
            *other_count -= pairs;
            if *count == 0 {
                our = ours.next();
                if *other_count == 0 {
                    their = others.next();
                }
            } else {
                their = others.next();
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Without the top bit of the exponent, the same bit in both formats, no number is infinite or NaN.
    fn finite(bits: u16) -> [u8; 2] {
        (bits & !0x4000).to_le_bytes()
    }

    proptest! {
        #[test]
        fn counting_gives_what_sorting_gives(
            weights in prop::collection::vec(any::<(u16, u16)>(), 1..2000),
            cut in 0.0f64..1.0,
            dtypes in prop::sample::select(vec![(Dtype::F16, Dtype::F16), (Dtype::BF16, Dtype::F16)]),
        ) {
            let base: Vec<u8> = weights.iter().flat_map(|(base, _)| finite(*base)).collect();
            let tuned: Vec<u8> = weights.iter().flat_map(|(_, tuned)| finite(*tuned)).collect();
            let cut = 2 * (cut * weights.len() as f64) as usize;
            let parts = [0..cut, cut..base.len()].map(|range| WeightVector::Stored {
                base: StoredWeights { dtype: dtypes.0, bytes: &base[range.clone()] },
                tuned: StoredWeights { dtype: dtypes.1, bytes: &tuned[range] },
            });
            let (found, expected) = (distance(&parts), by_sorting(&parts, weights.len()) / weights.len() as f64);
            prop_assert!((found - expected).abs() <= 1e-12 * expected, "{} {}", found, expected);
        }
    }

    #[test]
    fn the_order_of_the_values_does_not_matter() {
        let bytes = |values: [f32; 3]| values.map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes());
        let [base, tuned, shuffled] = [[1.0, -2.0, 0.5], [-2.0, 1.5, 1.0], [0.5, 1.0, -2.0]].map(bytes);
        let between = |base: &[[u8; 2]; 3], tuned: &[[u8; 2]; 3]| {
            let [base, tuned] =
                [base, tuned].map(|side| StoredWeights { dtype: Dtype::BF16, bytes: side.as_flattened() });
            distance(&[WeightVector::Stored { base, tuned }])
        };
        assert_eq!(between(&base, &tuned), (0.0 + 0.5 + 0.5) / 3.0);
        assert_eq!(between(&base, &shuffled), 0.0);
    }
}
