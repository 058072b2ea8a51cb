//! The number formats that weights are stored in, with their decoder and their encoder.
//!
//! Whole blocks of `BF16` and `F16` weights have a second decoder, in the kernels that load them (`statistics/block.rs`).

use half::{bf16, f16};

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
        self.decode_with::<N, _, 0>(bytes, numbers.iter_mut(), |number, weight| *number = weight);
    }

    /// Encodes numbers as little-endian weights. Each is rounded to the nearest of the format, as torch does: to the
    /// formats of 16 bits by way of `f32`.
    #[inline(always)]
    pub(crate) fn encode<N: Real>(self, numbers: &[N], bytes: &mut [u8]) {
        let numbers = numbers.iter().map(|number| number.to_f64());
        match self {
            Dtype::F16 => encode_as(numbers, bytes, |number| f16::from_f32(number as f32).to_le_bytes()),
            Dtype::BF16 => encode_as(numbers, bytes, |number| bf16::from_f32(number as f32).to_le_bytes()),
            Dtype::F32 => encode_as(numbers, bytes, |number| (number as f32).to_le_bytes()),
            Dtype::F64 => encode_as(numbers, bytes, f64::to_le_bytes),
        }
    }

    /// Decodes little-endian weights and passes each to `keep`, together with its place. Slices of the length `USUAL`
    /// have a loop of their own, whose length the compiler knows.
    #[inline(always)]
    pub(crate) fn decode_with<N: Real, P, const USUAL: usize>(
        self,
        bytes: &[u8],
        places: impl Iterator<Item = P>,
        keep: impl Fn(P, N),
    ) {
        match self {
            Dtype::F16 => decode_as::<N, P, _, USUAL>(bytes, places, |it| f16_to_f32(it).into(), keep),
            Dtype::BF16 => decode_as::<N, P, _, USUAL>(bytes, places, |it| bf16_to_f32(it).into(), keep),
            Dtype::F32 => {
                decode_as::<N, P, _, USUAL>(bytes, places, |it| f32::from_le_bytes(it).into(), keep)
            }
            Dtype::F64 => decode_as::<N, P, _, USUAL>(bytes, places, f64::from_le_bytes, keep),
        }
    }
}

/// A format of codes, scales or zero points. Every number of it is one of `f32`, so decoding is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeFormat {
    /// Not `F64`.
    Float(Dtype),
    /// 1 sign, 4 exponent and 3 mantissa bits, without infinities (torch's `float8_e4m3fn`).
    E4m3,
    /// 1 sign, 5 exponent and 2 mantissa bits.
    E5m2,
    /// A power of two: the exponent alone, with a bias of 127.
    E8m0,
    I8,
}

impl CodeFormat {
    /// The format of a tensor of codes or zero points.
    pub(crate) fn from_stored(stored: safetensors::Dtype) -> Option<Self> {
        match stored {
            safetensors::Dtype::F8_E4M3 => Some(CodeFormat::E4m3),
            safetensors::Dtype::F8_E5M2 => Some(CodeFormat::E5m2),
            safetensors::Dtype::F8_E8M0 => Some(CodeFormat::E8m0),
            safetensors::Dtype::I8 => Some(CodeFormat::I8),
            other => Dtype::from_stored(other).filter(|dtype| *dtype != Dtype::F64).map(CodeFormat::Float),
        }
    }

    /// The format of a tensor of scales, whose unsigned bytes are exponents.
    pub(crate) fn of_scales(stored: safetensors::Dtype) -> Option<Self> {
        match stored {
            safetensors::Dtype::U8 => Some(CodeFormat::E8m0),
            safetensors::Dtype::I8 => None,
            other => CodeFormat::from_stored(other),
        }
    }

    /// Bytes of one number.
    pub(crate) const fn size(self) -> usize {
        match self {
            CodeFormat::Float(dtype) => dtype.size(),
            CodeFormat::E4m3 | CodeFormat::E5m2 | CodeFormat::E8m0 | CodeFormat::I8 => 1,
        }
    }

    /// Decodes little-endian numbers, as many as `numbers` holds.
    pub(crate) fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        match self {
            CodeFormat::Float(dtype) => dtype.decode(bytes, numbers),
            CodeFormat::E4m3 => decode_codes(bytes, numbers, |code| E4M3[usize::from(code)]),
            // An E5M2 is the upper half of an F16.
            CodeFormat::E5m2 => decode_codes(bytes, numbers, |code| f16_to_f32([0, code])),
            CodeFormat::E8m0 => decode_codes(bytes, numbers, e8m0),
            CodeFormat::I8 => decode_codes(bytes, numbers, |code| f32::from(code.cast_signed())),
        }
    }
}

fn decode_codes(codes: &[u8], numbers: &mut [f32], decode: impl Fn(u8) -> f32) {
    numbers.iter_mut().zip(codes).for_each(|(number, code)| *number = decode(*code));
}

/// The values of the 16 codes of 4 bits with 1 sign, 2 exponent and 1 mantissa bits.
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

const E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < values.len() {
        values[code] = e4m3(code as u32);
        code += 1;
    }
    values
};

const fn e4m3(code: u32) -> f32 {
    let sign = (code & 0x80) << 24;
    let (exponent, mantissa) = ((code >> 3) & 0xf, code & 0x7);
    let magnitude = if code & 0x7f == 0x7f {
        f32::NAN.to_bits()
    } else if exponent == 0 {
        (mantissa as f32 / 512.0).to_bits() // subnormal: multiples of 2^-9
    } else {
        ((exponent + 127 - 7) << 23) | (mantissa << 20)
    };
    f32::from_bits(sign | magnitude)
}

fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::MIN_POSITIVE / 2.0, // 2^-127
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

#[inline(always)]
fn decode_as<N: Real, P, const SIZE: usize, const USUAL: usize>(
    bytes: &[u8],
    places: impl Iterator<Item = P>,
    decode: impl Fn([u8; SIZE]) -> f64,
    keep: impl Fn(P, N),
) {
    let (weights, _) = bytes.as_chunks::<SIZE>();
    if let Ok(weights) = <&[[u8; SIZE]; USUAL]>::try_from(weights) {
        for (place, bytes) in places.zip(weights) {
            keep(place, N::from_f64(decode(*bytes)));
        }
    } else {
        for (place, bytes) in places.zip(weights) {
            keep(place, N::from_f64(decode(*bytes)));
        }
    }
}

#[inline(always)]
fn encode_as<const SIZE: usize>(
    numbers: impl Iterator<Item = f64>,
    bytes: &mut [u8],
    encode: impl Fn(f64) -> [u8; SIZE],
) {
    for (into, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
        *into = encode(number);
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
    let half = u16::from_le_bytes(bytes);
    let magnitude = u32::from(half & 0x7fff) << 13;
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    let value = f32::from_bits(magnitude) * REBIAS;
    f32::from_bits(value.to_bits() | special | (u32::from(half & 0x8000) << 16))
}

/// Converts a finite `F16` exactly, by fewer operations; an infinity or NaN becomes a finite number of at least 2^16.
#[inline(always)]
pub(crate) fn finite_f16_to_f32(bytes: [u8; 2]) -> f32 {
    // The sign, two copies of it that the mask removes, the exponent and the mantissa.
    let shifted = i32::from(i16::from_le_bytes(bytes)) << 16 >> 3;
    f32::from_bits(shifted.cast_unsigned() & 0x8fff_e000) * REBIAS
}

/// 2^(127 - 15), between the biases of the exponents of `f32` and `F16`.
const REBIAS: f32 = f32::from_bits((127 + 112) << 23);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finite_half_has_a_shorter_conversion_and_others_become_too_large_for_it() {
        for half in 0..=u16::MAX {
            let (expected, found) = (f16_to_f32(half.to_le_bytes()), finite_f16_to_f32(half.to_le_bytes()));
            if expected.is_finite() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{half:#x}");
            } else {
                assert!(found.is_finite() && found.abs() >= 65536.0, "{half:#x}: {found}");
            }
        }
    }

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
    fn encoding_is_the_inverse_of_decoding() {
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
            let numbers = [0.0, -0.0, 1.5, -2.0, 0.000_030_517_578_125];
            let (mut bytes, mut decoded) = (vec![0; numbers.len() * dtype.size()], [f64::NAN; 5]);
            dtype.encode(&numbers, &mut bytes);
            dtype.decode(&bytes, &mut decoded);
            assert_eq!(decoded.map(f64::to_bits), numbers.map(f64::to_bits), "{dtype:?}");
        }
        // `f32` rounds it to the middle of two numbers of `BF16`, of which the even one is taken.
        let above_middle = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let mut bytes = [0; 2];
        Dtype::BF16.encode(&[above_middle], &mut bytes);
        assert_eq!(bytes, bf16::from_f32(1.0).to_le_bytes()[..]);
    }

    #[test]
    fn other_formats_are_not_taken_for_plain_floats() {
        for stored in [safetensors::Dtype::I16, safetensors::Dtype::F8_E4M3, safetensors::Dtype::C64] {
            assert_eq!(Dtype::from_stored(stored), None, "{stored}");
        }
    }

    /// The value of a code by the formula of its format: (-1)^s 2^(e - bias) (1 + m / 2^mantissa bits).
    fn by_formula(code: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
        let (code, bias) = (u32::from(code), (1 << (exponent_bits - 1)) - 1);
        let sign = if code >> (exponent_bits + mantissa_bits) == 0 { 1.0 } else { -1.0 };
        let exponent = ((code >> mantissa_bits) & ((1 << exponent_bits) - 1)).cast_signed();
        let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
        let (whole, exponent) = if exponent == 0 { (0.0, 1 - bias) } else { (1.0, exponent - bias) };
        sign * (whole + fraction) * f64::from(exponent).exp2()
    }

    fn decoded(number: CodeFormat, code: u8) -> f64 {
        let mut decoded = [0.0];
        number.decode(&[code], &mut decoded);
        f64::from(decoded[0])
    }

    #[test]
    fn every_code_of_8_bits_has_the_value_of_its_format() {
        for code in 0..=u8::MAX {
            match code & 0x7f {
                0x7f => assert!(decoded(CodeFormat::E4m3, code).is_nan()),
                _ => assert_eq!(decoded(CodeFormat::E4m3, code), by_formula(code, 4, 3), "{code:#x}"),
            }
            match code & 0x7f {
                0x7c => assert!(decoded(CodeFormat::E5m2, code).is_infinite()),
                0x7d.. => assert!(decoded(CodeFormat::E5m2, code).is_nan()),
                _ => assert_eq!(decoded(CodeFormat::E5m2, code), by_formula(code, 5, 2), "{code:#x}"),
            }
            match code {
                255 => assert!(decoded(CodeFormat::E8m0, code).is_nan()),
                _ => assert_eq!(decoded(CodeFormat::E8m0, code), (f64::from(code) - 127.0).exp2()),
            }
            assert_eq!(decoded(CodeFormat::I8, code), f64::from(code as i8));
        }
        assert_eq!((decoded(CodeFormat::E4m3, 0x7e), decoded(CodeFormat::E5m2, 0x7b)), (448.0, 57344.0));
    }

    #[test]
    fn every_code_of_4_bits_has_the_value_of_its_format() {
        for (code, value) in (0..).zip(E2M1) {
            assert_eq!(f64::from(value), by_formula(code, 2, 1), "{code}");
            assert_eq!(value.is_sign_negative(), code >= 8);
        }
    }

    #[test]
    fn longer_numbers_are_little_endian() {
        let two = |dtype: Dtype, bytes: &[u8]| {
            let mut decoded = [0.0_f32; 2];
            dtype.decode(bytes, &mut decoded);
            decoded
        };
        assert_eq!(two(Dtype::F32, &[0, 0, 0xc0, 0xbf, 0, 0, 0, 0x40]), [-1.5, 2.0]);
        assert_eq!(two(Dtype::F16, &[0x00, 0x3c, 0x01, 0x00]), [1.0, 2.0_f32.powi(-24)]);
        assert_eq!(two(Dtype::BF16, &[0x80, 0x3f, 0x80, 0xbf]), [1.0, -1.0]);
    }
}
