//! W1 between the values of theta_B and of theta_T in any order: the mean of |sorted theta_T - sorted theta_B|.

use super::weight_vector::{StoredWeights, WeightVector, for_each_entry};
use crate::number_format::Dtype;

/// The distance between the values of theta_B and those of theta_T.
pub(super) fn distance(vectors: &[WeightVector]) -> f64 {
    let entries: usize = vectors.iter().map(WeightVector::entries).sum();
    let sum = match (Counts::of(vectors, |base, _| base), Counts::of(vectors, |_, tuned| tuned)) {
        (Some(base), Some(tuned)) => base.sum_of_distances(&tuned),
        _ => by_sorting(vectors, entries),
    };
    sum / entries as f64
}

fn by_sorting(vectors: &[WeightVector], entries: usize) -> f64 {
    let (mut base, mut tuned) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
    for_each_entry(vectors, |weight, delta| {
        base.push(weight);
        tuned.push(weight + delta);
    });
    base.sort_unstable_by(f64::total_cmp);
    tuned.sort_unstable_by(f64::total_cmp);
    base.iter().zip(&tuned).map(|(base, tuned)| (tuned - base).abs()).sum()
}

/// How often each number of a 16-bit format occurs: a hundred times faster than to sort a million numbers.
struct Counts {
    /// The count of each bit pattern.
    counts: Vec<u32>,
    dtype: Dtype,
}

impl Counts {
    /// Counts the weights of one checkpoint; `None` unless all have one 16-bit format.
    fn of<'a>(
        vectors: &[WeightVector<'a>],
        choose: fn(StoredWeights<'a>, StoredWeights<'a>) -> StoredWeights<'a>,
    ) -> Option<Self> {
        let mut counts: Option<Self> = None;
        for vector in vectors {
            let WeightVector::Stored { base, tuned } = *vector else { return None };
            let stored = choose(base, tuned);
            let counts = counts.get_or_insert_with(|| Self { counts: vec![0; 1 << 16], dtype: stored.dtype });
            if stored.dtype.size() != 2 || stored.dtype != counts.dtype {
                return None;
            }
            for bytes in stored.bytes.as_chunks().0 {
                counts.counts[usize::from(u16::from_le_bytes(*bytes))] += 1;
            }
        }
        counts
    }

    /// Each number that occurs, with its count, in ascending order.
    fn ascending(&self) -> impl Iterator<Item = (f64, u64)> {
        // The bit patterns of negative numbers come last, the largest number first.
        let bits = (0x8000..=0xffff).rev().chain(0..0x8000);
        bits.filter(|bits| self.counts[usize::from(*bits)] > 0).map(|bits: u16| {
            let bytes = bits.to_le_bytes();
            let value = StoredWeights { dtype: self.dtype, bytes: &bytes }.entry(0);
            (value, u64::from(self.counts[usize::from(bits)]))
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
            let vectors = [0..cut, cut..base.len()].map(|range| WeightVector::Stored {
                base: StoredWeights { dtype: dtypes.0, bytes: &base[range.clone()] },
                tuned: StoredWeights { dtype: dtypes.1, bytes: &tuned[range] },
            });
            let (found, expected) = (distance(&vectors), by_sorting(&vectors, weights.len()) / weights.len() as f64);
            prop_assert!((found - expected).abs() <= 1e-12 * expected, "{} {}", found, expected);
        }
    }

    #[test]
    fn the_order_of_the_values_does_not_matter() {
        let bytes = |values: [f32; 3]| values.map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes());
        let [base, tuned, shuffled] = [[1.0, -2.0, 0.5], [-2.0, 1.5, 1.0], [0.5, 1.0, -2.0]].map(bytes);
        let between = |base: &[[u8; 2]; 3], tuned: &[[u8; 2]; 3]| {
            let [base, tuned] = [base, tuned]
                .map(|values| StoredWeights { dtype: Dtype::BF16, bytes: values.as_flattened() });
            distance(&[WeightVector::Stored { base, tuned }])
        };
        assert_eq!(between(&base, &tuned), (0.0 + 0.5 + 0.5) / 3.0);
        assert_eq!(between(&base, &shuffled), 0.0);
    }
}
