//! W1 between the values of theta_B and of theta_T in any order: the mean of |sorted theta_T - sorted theta_B|.

use super::weight_vector::{StoredWeights, WeightVector, for_each_entry};

/// The distance between the values of theta_B and those of theta_T.
pub(super) fn distance(vectors: &[WeightVector]) -> f64 {
    let entries: usize = vectors.iter().map(WeightVector::entries).sum();
    let sum = match (counts(vectors, |base, _| base), counts(vectors, |_, tuned| tuned)) {
        (Some(base), Some(tuned)) => sum_of_distances(base, tuned),
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

/// Counts how often each number of one checkpoint occurs, in ascending order; `None` unless all are stored in one
/// 16-bit format. That is a hundred times faster than to sort a million numbers.
fn counts<'a>(
    vectors: &[WeightVector<'a>],
    choose: fn(StoredWeights<'a>, StoredWeights<'a>) -> StoredWeights<'a>,
) -> Option<Vec<(f64, u64)>> {
    let (mut counts, mut common) = (vec![0_u64; 1 << 16], None);
    for vector in vectors {
        let WeightVector::Stored { base, tuned } = *vector else { return None };
        let StoredWeights { dtype, bytes } = choose(base, tuned);
        if dtype.size() != 2 || *common.get_or_insert(dtype) != dtype {
            return None;
        }
        for bits in bytes.as_chunks().0 {
            counts[usize::from(u16::from_le_bytes(*bits))] += 1;
        }
    }
    let dtype = common?;
    // The bit patterns of negative numbers come last, the largest number first.
    let ascending = (0x8000..=0xffff).rev().chain(0..0x8000).map(|bits: u16| {
        (StoredWeights { dtype, bytes: &bits.to_le_bytes() }.entry(0), counts[usize::from(bits)])
    });
    Some(ascending.filter(|(_, count)| *count > 0).collect())
}

fn sum_of_distances(base: Vec<(f64, u64)>, tuned: Vec<(f64, u64)>) -> f64 {
    let (mut base, mut tuned) = (base.into_iter(), tuned.into_iter());
    let (mut next_base, mut next_tuned) = (base.next(), tuned.next());
    let mut sum = 0.0;
    while let (Some((value, count)), Some((other, other_count))) = (&mut next_base, &mut next_tuned) {
        let matched = (*count).min(*other_count);
        sum += matched as f64 * (*value - *other).abs();
        *count -= matched;
        *other_count -= matched;
        let (base_is_used, tuned_is_used) = (*count == 0, *other_count == 0);
        if base_is_used {
            next_base = base.next();
        }
        if tuned_is_used {
            next_tuned = tuned.next();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number_format::Dtype;
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
