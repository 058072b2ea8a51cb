//! The two widths of number that the kernels compute in.

use std::ops::{Add, Mul, Sub};

use super::Vectors;
use super::lanes::{Lanes, Narrow, Wide};
use crate::statistics::block::{Memory, Waiting};

/// `f32` or `f64`: what a kernel needs of a number, so that it is written once for both.
///
/// Every method is inlined into the kernel, for the compiler to vectorise.
pub(crate) trait Real:
    Copy
    + Default
    + PartialOrd
    + std::fmt::Debug
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
{
    /// Numbers of this width side by side.
    type Lanes<S: Vectors>: Lanes<Number = Self, Vectors = S>;

    /// Whether this is the width of whole blocks without a frame.
    const IS_NARROW: bool;
    /// ln 2 with its last bits cleared, so that small multiples of it are exact.
    const LN_2_HIGH: f64;
    /// What [`Real::LN_2_HIGH`] leaves out of ln 2.
    const LN_2_LOW: f64;
    /// Adding this rounds a small number to an integer, held in the low bits of the sum.
    const ROUNDER: f64;
    /// Terms of the exponential series that reach this width's precision on [-ln 2 / 2, ln 2 / 2].
    const EXPONENTIAL_TERMS: usize;

    /// Where vectors of this width wait.
    fn waiting(memory: &mut Memory) -> &mut Waiting<Self>;
    /// The nearest number of this width.
    fn of(value: f64) -> Self;
    /// The same number as `f64`.
    fn wide(self) -> f64;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `self * 2^n`, for an `n` that [`Real::ROUNDER`] was added to. No overflow, no denormals.
    fn times_power_of_two(self, rounded: Self) -> Self;
}

macro_rules! real {
    ($float:ty, $lanes:ident, $mantissa:literal, narrow: $narrow:literal, memory: $memory:ident, high: $high:literal, low: $low:literal, terms: $terms:literal) => {
        impl Real for $float {
            type Lanes<S: Vectors> = $lanes<S>;

            const IS_NARROW: bool = $narrow;
            const LN_2_HIGH: f64 = $high;
            const LN_2_LOW: f64 = $low;
            const ROUNDER: f64 = 1.5 * (1u64 << $mantissa) as f64;
            const EXPONENTIAL_TERMS: usize = $terms;

            #[inline(always)]
            fn waiting(memory: &mut Memory) -> &mut Waiting<Self> {
                &mut memory.$memory
            }
            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $float
            }
            #[inline(always)]
            fn wide(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn mul_add(self, factor: Self, term: Self) -> Self {
                <$float>::mul_add(self, factor, term)
            }
            #[inline(always)]
            fn times_power_of_two(self, rounded: Self) -> Self {
                <$float>::from_bits(self.to_bits().wrapping_add(rounded.to_bits() << $mantissa))
            }
        }
    };
}

real!(f32, Narrow, 23, narrow: true, memory: narrow, high: 0.693145751953125, low: 1.428_606_765_330_187e-6, terms: 7);
real!(f64, Wide, 52, narrow: false, memory: wide, high: 6.931_471_803_691_238e-1, low: 1.908_214_929_270_587_7e-10, terms: 13);
