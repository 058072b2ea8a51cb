//! The number formats that codes, scales and zero points are stored in.

use crate::number_format::{Dtype, f16_to_f32};

/// A format whose numbers are all numbers of `f32` too, so that decoding is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    F32,
    F16,
    Bf16,
    /// 1 sign, 4 exponent and 3 mantissa bits, without infinities (torch's `float8_e4m3fn`).
    E4m3,
    /// 1 sign, 5 exponent and 2 mantissa bits.
    E5m2,
    /// A power of two: the exponent alone, with a bias of 127.
    E8m0,
    I8,
}

impl Number {
    /// The format of a tensor of codes or zero points.
    pub(super) fn from_stored(stored: safetensors::Dtype) -> Option<Self> {
        match stored {
            safetensors::Dtype::F32 => Some(Number::F32),
            safetensors::Dtype::F16 => Some(Number::F16),
            safetensors::Dtype::BF16 => Some(Number::Bf16),
            safetensors::Dtype::F8_E4M3 => Some(Number::E4m3),
            safetensors::Dtype::F8_E5M2 => Some(Number::E5m2),
            safetensors::Dtype::F8_E8M0 => Some(Number::E8m0),
            safetensors::Dtype::I8 => Some(Number::I8),
            _ => None,
        }
    }

    /// The format of a tensor of scales, where plain bytes are exponents.
    pub(super) fn of_scales(stored: safetensors::Dtype) -> Option<Self> {
        match stored {
            safetensors::Dtype::U8 => Some(Number::E8m0),
            safetensors::Dtype::I8 => None,
            other => Number::from_stored(other),
        }
    }

    /// Bytes of one number.
    pub(super) const fn size(self) -> usize {
        match self {
            Number::F32 => 4,
            Number::F16 | Number::Bf16 => 2,
            Number::E4m3 | Number::E5m2 | Number::E8m0 | Number::I8 => 1,
        }
    }

    /// Decodes little-endian numbers, as many as `into` holds.
    pub(super) fn decode(self, stored: &[u8], into: &mut [f32]) {
        match self {
            Number::F32 => Dtype::F32.decode(stored, into),
            Number::F16 => Dtype::F16.decode(stored, into),
            Number::Bf16 => Dtype::BF16.decode(stored, into),
            Number::E4m3 => decode_codes(stored, into, |code| E4M3[usize::from(code)]),
            // The upper half of an F16.
            Number::E5m2 => decode_codes(stored, into, |code| f16_to_f32([0, code])),
            Number::E8m0 => decode_codes(stored, into, e8m0),
            Number::I8 => decode_codes(stored, into, |code| f32::from(code.cast_signed())),
        }
    }
}

fn decode_codes(stored: &[u8], into: &mut [f32], decode: impl Fn(u8) -> f32) {
    into.iter_mut().zip(stored).for_each(|(number, code)| *number = decode(*code));
}

/// The values of the 16 codes of 4 bits with 1 sign, 2 exponent and 1 mantissa bits.
pub(super) const E2M1: [f32; 16] =
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a code by the formula of its format: (-1)^s 2^(e - bias) (1 + m / 2^mantissa bits).
    fn by_formula(code: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
        let (code, bias) = (u32::from(code), (1 << (exponent_bits - 1)) - 1);
        let sign = if code >> (exponent_bits + mantissa_bits) == 0 { 1.0 } else { -1.0 };
        let exponent = ((code >> mantissa_bits) & ((1 << exponent_bits) - 1)).cast_signed();
        let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
        let (whole, exponent) = if exponent == 0 { (0.0, 1 - bias) } else { (1.0, exponent - bias) };
        sign * (whole + fraction) * f64::from(exponent).exp2()
    }

    fn decoded(number: Number, code: u8) -> f64 {
        let mut decoded = [0.0];
        number.decode(&[code], &mut decoded);
        f64::from(decoded[0])
    }

    #[test]
    fn every_code_of_8_bits_has_the_value_of_its_format() {
        for code in 0..=u8::MAX {
            match code & 0x7f {
                0x7f => assert!(decoded(Number::E4m3, code).is_nan()),
                _ => assert_eq!(decoded(Number::E4m3, code), by_formula(code, 4, 3), "{code:#x}"),
            }
            match code & 0x7f {
                0x7c => assert!(decoded(Number::E5m2, code).is_infinite()),
                0x7d.. => assert!(decoded(Number::E5m2, code).is_nan()),
                _ => assert_eq!(decoded(Number::E5m2, code), by_formula(code, 5, 2), "{code:#x}"),
            }
            match code {
                255 => assert!(decoded(Number::E8m0, code).is_nan()),
                _ => assert_eq!(decoded(Number::E8m0, code), (f64::from(code) - 127.0).exp2()),
            }
            assert_eq!(decoded(Number::I8, code), f64::from(code as i8));
        }
        assert_eq!((decoded(Number::E4m3, 0x7e), decoded(Number::E5m2, 0x7b)), (448.0, 57344.0));
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
        let two = |number: Number, bytes: &[u8]| {
            let mut decoded = [0.0; 2];
            number.decode(bytes, &mut decoded);
            decoded
        };
        assert_eq!(two(Number::F32, &[0, 0, 0xc0, 0xbf, 0, 0, 0, 0x40]), [-1.5, 2.0]);
        assert_eq!(two(Number::F16, &[0x00, 0x3c, 0x01, 0x00]), [1.0, 2.0_f32.powi(-24)]);
        assert_eq!(two(Number::Bf16, &[0x80, 0x3f, 0x80, 0xbf]), [1.0, -1.0]);
    }
}
