//! The number formats that weights are stored in, and the one decoder of them.

use crate::simd::real::Real;

/// A number format whose weights can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    BF16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
}

impl Dtype {
    /// The format that safetensors calls `stored`, or `None` if it is not one of plain floating-point
    /// weights.
    pub fn from_stored(stored: safetensors::Dtype) -> Option<Self> {
        match stored {
            safetensors::Dtype::F16 => Some(Dtype::F16),
            safetensors::Dtype::BF16 => Some(Dtype::BF16),
            safetensors::Dtype::F32 => Some(Dtype::F32),
            safetensors::Dtype::F64 => Some(Dtype::F64),
            _ => None,
        }
    }

    /// The name of the format, as safetensors has it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::F32 => "F32",
            Dtype::F64 => "F64",
        }
    }

    /// Bytes of one weight.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
        }
    }

    /// Decodes little-endian weights into `numbers`. `F64` is rounded where `N` is `f32`; every other
    /// conversion is exact.
    #[inline(always)]
    pub(crate) fn decode<N: Real>(self, bytes: &[u8], numbers: &mut [N]) {
        self.decode_with(bytes, numbers.iter_mut(), |number, weight| *number = weight);
    }

    /// Decodes little-endian weights and passes each to `keep`, together with its place.
    #[inline(always)]
    pub(crate) fn decode_with<N: Real, P>(
        self,
        bytes: &[u8],
        places: impl Iterator<Item = P>,
        keep: impl Fn(P, N),
    ) {
        match self {
            Dtype::F16 => decode_as(bytes, places, |bytes| N::of(f64::from(f16_to_f32(bytes))), keep),
            Dtype::BF16 => decode_as(bytes, places, |bytes| N::of(f64::from(bf16_to_f32(bytes))), keep),
            Dtype::F32 => decode_as(bytes, places, |bytes| N::of(f64::from(f32::from_le_bytes(bytes))), keep),
            Dtype::F64 => decode_as(bytes, places, |bytes| N::of(f64::from_le_bytes(bytes)), keep),
        }
    }
}

#[inline(always)]
fn decode_as<N, P, const SIZE: usize>(
    bytes: &[u8],
    places: impl Iterator<Item = P>,
    decode: impl Fn([u8; SIZE]) -> N,
    keep: impl Fn(P, N),
) {
    for (place, bytes) in places.zip(bytes.as_chunks::<SIZE>().0) {
        keep(place, decode(*bytes));
    }
}

/// A `BF16` is the upper half of an `f32`.
#[inline(always)]
fn bf16_to_f32(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Converts an `F16` exactly, by operations that vectorise: a multiplication rebiases the exponent, which
/// also normalises the subnormal numbers.
#[inline(always)]
pub(crate) fn f16_to_f32(bytes: [u8; 2]) -> f32 {
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23); // 2^(127 - 15)
    let half = u16::from_le_bytes(bytes);
    let magnitude = u32::from(half & 0x7fff) << 13;
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    let value = f32::from_bits(magnitude) * REBIAS;
    f32::from_bits(value.to_bits() | special | (u32::from(half & 0x8000) << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_format() {
        for stored in [
            safetensors::Dtype::F16,
            safetensors::Dtype::BF16,
            safetensors::Dtype::F32,
            safetensors::Dtype::F64,
        ] {
            let size = Dtype::from_stored(stored).map(Dtype::size);
            assert_eq!(size, Some(stored.bitsize() / 8), "{stored}");
        }
    }

    #[test]
    fn every_16_bit_number_decodes_as_the_half_crate_does() {
        fn decoded<N: Real>(dtype: Dtype, bytes: &[u8]) -> Vec<N> {
            let mut numbers = vec![N::default(); bytes.len() / dtype.size()];
            dtype.decode(bytes, &mut numbers);
            numbers
        }
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        let check = |dtype, reference: fn(u16) -> f64| {
            let (singles, doubles) = (decoded::<f32>(dtype, &bytes), decoded::<f64>(dtype, &bytes));
            for ((half, single), double) in halves.iter().zip(singles).zip(doubles) {
                let expected = reference(*half);
                for found in [f64::from(single), double] {
                    assert!(found == expected || (found.is_nan() && expected.is_nan()), "{half:#06x}");
                    assert_eq!(found.is_sign_negative(), expected.is_sign_negative(), "{half:#06x}");
                }
            }
        };
        check(Dtype::F16, |bits| half::f16::from_bits(bits).to_f64());
        check(Dtype::BF16, |bits| half::bf16::from_bits(bits).to_f64());
    }

    #[test]
    fn other_formats_are_not_taken_for_plain_floats() {
        for stored in [safetensors::Dtype::I16, safetensors::Dtype::F8_E4M3, safetensors::Dtype::C64] {
            assert_eq!(Dtype::from_stored(stored), None, "{stored}");
        }
    }
}
