//! Reads numbers of a few bits that are packed into 32-bit words without gaps, lowest bits first.

/// The number of words that hold `count` numbers of `bits` bits.
pub(super) fn words(count: usize, bits: usize) -> usize {
    (count * bits).div_ceil(32)
}

/// The number of `bits` bits, 8 at most, that begins at bit `start` of the words. It may extend into a second word.
pub(super) fn bit_field(word: impl Fn(usize) -> u32, start: usize, bits: usize) -> u32 {
    let (first, shift) = (start / 32, start % 32);
    let mut field = word(first) >> shift;
    if shift + bits > 32 {
        field |= word(first + 1) << (32 - shift);
    }
    field & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_packed_is_found_again(
            (bits, values) in (1_usize..=8).prop_flat_map(|bits| {
                (Just(bits), prop::collection::vec(0_u32..1 << bits, 1..100))
            })
        ) {
            let mut packed = vec![0_u32; words(values.len(), bits)];
            for (place, value) in values.iter().enumerate() {
                for bit in 0..bits {
                    let at = place * bits + bit;
                    packed[at / 32] |= (value >> bit & 1) << (at % 32);
                }
            }
            for (place, value) in values.iter().enumerate() {
                prop_assert_eq!(bit_field(|word| packed[word], place * bits, bits), *value);
            }
        }
    }
}
