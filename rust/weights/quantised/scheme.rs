//! The formats in which the weights of a quantised module are stored, and their names.

use std::fmt;

/// How the weights of a module are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scheme {
    /// 8-bit floats with 4 exponent bits, with a scale for each block, row or tensor.
    Fp8E4m3,
    /// 8-bit floats with 5 exponent bits, with a scale for each block, row or tensor.
    Fp8E5m2,
    /// compressed-tensors' 8-bit integers.
    Int8,
    /// compressed-tensors' packed integers.
    PackedInteger {
        /// The number of bits of a weight.
        bits: usize,
    },
    /// 4-bit floats, with an 8-bit scale for each 16 and one more for all.
    Nvfp4,
    /// 4-bit floats, with a power of two for each 32.
    Mxfp4,
    /// bitsandbytes' 8-bit integers.
    BitsAndBytesInt8,
    /// bitsandbytes' 4-bit codes, spaced for normal weights.
    Nf4,
    /// bitsandbytes' 4-bit floats.
    Fp4,
    /// GPTQ's packed integers.
    Gptq {
        /// The number of bits of a weight.
        bits: usize,
    },
    /// AWQ's 4-bit integers. AWQ also moves factors from the columns of weights to the preceding module, so the weights
    /// differ from unquantised ones by more than rounding.
    Awq,
    /// MLX's packed integers.
    Mlx {
        /// The number of bits of a weight.
        bits: usize,
    },
}

impl fmt::Display for Scheme {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Scheme::Fp8E4m3 => formatter.write_str("FP8 (E4M3)"),
            Scheme::Fp8E5m2 => formatter.write_str("FP8 (E5M2)"),
            Scheme::Int8 => formatter.write_str("compressed-tensors int8"),
            Scheme::PackedInteger { bits } => write!(formatter, "compressed-tensors int{bits}"),
            Scheme::Nvfp4 => formatter.write_str("NVFP4"),
            Scheme::Mxfp4 => formatter.write_str("MXFP4"),
            Scheme::BitsAndBytesInt8 => formatter.write_str("bitsandbytes int8"),
            Scheme::Nf4 => formatter.write_str("bitsandbytes nf4"),
            Scheme::Fp4 => formatter.write_str("bitsandbytes fp4"),
            Scheme::Gptq { bits } => write!(formatter, "GPTQ int{bits}"),
            Scheme::Awq => formatter.write_str("AWQ int4, with columns rescaled"),
            Scheme::Mlx { bits } => write!(formatter, "MLX int{bits}"),
        }
    }
}
