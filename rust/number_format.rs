//! The number formats that weights are read in.

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
    fn other_formats_are_not_taken_for_plain_floats() {
        for stored in [safetensors::Dtype::I16, safetensors::Dtype::F8_E4M3, safetensors::Dtype::C64] {
            assert_eq!(Dtype::from_stored(stored), None, "{stored}");
        }
    }
}
