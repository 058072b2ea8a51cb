//! Vectors of `f32` and of `f64`, and the constants that each type computes with.

use std::ops::{Add, Mul, Sub};

use pulp::{cast, f32x16, f64x8};

use super::real::{Lanes, Real};
use super::{LANES, Vectors};

/// A vector of `f32`.
#[derive(Clone, Copy)]
pub(crate) struct F32Lanes<S>(S, f32x16);

/// A vector of `f64`.
#[derive(Clone, Copy)]
pub(crate) struct F64Lanes<S>(S, [f64x8; 2]);

macro_rules! real {
    ($float:ident, $lanes:ident, mantissa: $mantissa:literal, ln_2: $high:literal + $low:literal,
        degree: $degree:literal) => {
        impl Real for $float {
            type Lanes<S: Vectors> = $lanes<S>;

            const IS_F32: bool = size_of::<$float>() == 4;
            const LN_2_HIGH: f64 = $high;
            const LN_2_LOW: f64 = $low;
            const ROUNDER: f64 = 1.5 * (1u64 << $mantissa) as f64;
            const EXPONENTIAL_DEGREE: usize = $degree;

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $float
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
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

real!(f32, F32Lanes, mantissa: 23, ln_2: 0.693145751953125 + 1.428_606_765_330_187e-6, degree: 7);
real!(f64, F64Lanes, mantissa: 52, ln_2: 6.931_471_803_691_238e-1 + 1.908_214_929_270_587_7e-10, degree: 13);

macro_rules! operators {
    ($lanes:ident: $($operator:ident::$method:ident = $compute:expr),*) => {
        $(impl<S: Vectors> $operator for $lanes<S> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(self.0, $compute(self.0, self.1, other.1))
            }
        })*
    };
}

operators!(F32Lanes: Add::add = S::add_f32s, Sub::sub = S::sub_f32s, Mul::mul = S::mul_f32s);
operators!(F64Lanes: Add::add = both(S::add_f64s), Sub::sub = both(S::sub_f64s), Mul::mul = both(S::mul_f64s));

/// Applies an operation on one vector of `f64` to both halves.
#[inline(always)]
fn both<S: Vectors>(
    operation: impl Fn(S, f64x8, f64x8) -> f64x8,
) -> impl Fn(S, [f64x8; 2], [f64x8; 2]) -> [f64x8; 2] {
    #[inline(always)]
    move |simd, a, b| [operation(simd, a[0], b[0]), operation(simd, a[1], b[1])]
}

impl<S: Vectors> Lanes for F32Lanes<S> {
    type Number = f32;
    type Vectors = S;

    #[inline(always)]
    fn splat(simd: S, value: f64) -> Self {
        Self(simd, simd.splat_f32s(value as f32))
    }
    #[inline(always)]
    fn load(simd: S, numbers: &[f32; LANES]) -> Self {
        Self(simd, cast(*numbers))
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        cast(self.1)
    }
    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(self.0, self.0.mul_add_f32s(self.1, factor.1, term.1))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0, self.0.abs_f32s(self.1))
    }
    // The bits of numbers that are not negative have the order of the numbers. Multiply-adds occupy the
    // floating-point units; integer instructions run beside them.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        let (mut bits, other): ([u32; LANES], [u32; LANES]) = (cast(self.1), cast(other.1));
        for (bits, other) in bits.iter_mut().zip(other) {
            *bits = (*bits).max(other);
        }
        Self(self.0, cast(bits))
    }
    #[inline(always)]
    fn count_positive(self, size: Self) -> Self {
        let Self(simd, counts) = self;
        let is_positive = simd.greater_than_f32s(size.1, simd.splat_f32s(0.0));
        Self(simd, simd.select_f32s(is_positive, simd.add_f32s(counts, simd.splat_f32s(1.0)), counts))
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        f64::from(self.0.reduce_sum_f32s(self.1))
    }
    #[inline(always)]
    fn largest(self) -> f64 {
        f64::from(self.0.reduce_max_f32s(self.1))
    }
    #[inline(always)]
    fn fold_with<const DISTANCE: usize>(self, other: Self) -> Self {
        let Self(simd, numbers) = self;
        let mut has_bit = [0.0; LANES];
        for (lane, has_bit) in has_bit.iter_mut().enumerate() {
            *has_bit = (lane & DISTANCE) as f32;
        }
        let has_bit = simd.greater_than_f32s(cast(has_bit), simd.splat_f32s(0.0));
        let kept = simd.select_f32s(has_bit, other.1, numbers);
        let moved = simd.select_f32s(has_bit, numbers, other.1);
        Self(simd, simd.add_f32s(kept, simd.rotate_left_f32s(moved, DISTANCE)))
    }
}

impl<S: Vectors> Lanes for F64Lanes<S> {
    type Number = f64;
    type Vectors = S;

    #[inline(always)]
    fn splat(simd: S, value: f64) -> Self {
        Self(simd, [simd.splat_f64s(value); 2])
    }
    #[inline(always)]
    fn load(simd: S, numbers: &[f64; LANES]) -> Self {
        Self(simd, cast(*numbers))
    }
    #[inline(always)]
    fn to_array(self) -> [f64; LANES] {
        cast(self.1)
    }
    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        let [(a, b), (c, d)] = [(self.1[0], factor.1[0]), (self.1[1], factor.1[1])];
        Self(self.0, [self.0.mul_add_f64s(a, b, term.1[0]), self.0.mul_add_f64s(c, d, term.1[1])])
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0, [self.0.abs_f64s(self.1[0]), self.0.abs_f64s(self.1[1])])
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0, both(S::max_f64s)(self.0, self.1, other.1))
    }
    #[inline(always)]
    fn count_positive(self, size: Self) -> Self {
        self + size.map(
            #[inline(always)]
            |size| f64::from(u8::from(size > 0.0)),
        )
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        let Self(simd, [low, high]) = self;
        simd.reduce_sum_f64s(simd.add_f64s(low, high))
    }
    #[inline(always)]
    fn largest(self) -> f64 {
        let Self(simd, [low, high]) = self;
        simd.reduce_max_f64s(simd.max_f64s(low, high))
    }
    #[inline(always)]
    fn fold_with<const DISTANCE: usize>(self, other: Self) -> Self {
        let both = [self.to_array(), other.to_array()];
        let mut numbers = [0.0; LANES];
        for (lane, number) in numbers.iter_mut().enumerate() {
            let from = &both[usize::from(lane & DISTANCE != 0)];
            *number = from[lane] + from[(lane + DISTANCE) % LANES];
        }
        Self::load(self.0, &numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Instructions, Kernel};
    use proptest::prelude::*;

    /// Computes the sums of vectors, and the prefix sums of the first.
    struct Sums<'a, R>(&'a [[R; LANES]; LANES]);

    impl<R: Real> Kernel for Sums<'_, R> {
        type Output = ([f64; LANES], [R; LANES]);

        #[inline(always)]
        fn run<S: Vectors>(self, simd: S) -> Self::Output {
            let first = R::Lanes::<S>::load(simd, &self.0[0]);
            (R::Lanes::<S>::sums(simd, self.0), first.prefix_sums().to_array())
        }
    }

    fn check<R: Real>(numbers: &[[R; LANES]; LANES], tolerance: f64) {
        let mut all = Vec::new();
        for instructions in Instructions::available() {
            let (sums, running) = instructions.run(Sums(numbers));
            for (sum, numbers) in sums.iter().zip(numbers) {
                let expected: f64 = numbers.iter().map(|number| number.to_f64()).sum();
                assert!((sum - expected).abs() <= tolerance, "{sum} {expected}");
            }
            let mut expected = 0.0;
            for (sum, number) in running.iter().zip(&numbers[0]) {
                expected += number.to_f64();
                assert!((sum.to_f64() - expected).abs() <= tolerance, "{sum:?} {expected}");
            }
            all.push((sums.map(f64::to_bits), running.map(|sum| sum.to_f64().to_bits())));
        }
        assert!(all.iter().all(|bits| *bits == all[0]), "{all:?}");
    }

    proptest! {
        #[test]
        fn sums_have_the_same_bits_on_every_instruction_set(
            numbers in prop::array::uniform16(prop::array::uniform16(-1f64..1.0)),
        ) {
            check::<f64>(&numbers, 1e-14);
            check::<f32>(&numbers.map(|numbers| numbers.map(|number| number as f32)), 1e-5);
        }
    }
}
