//! Vectors of `f32` and of `f64`, and the constants that each type computes with.

use std::ops::{Add, Mul, Sub};

use pulp::bytemuck::{bytes_of, cast_slice_mut};
use pulp::cast;

use super::Vectors;
use super::real::{Lanes, Real};
use super::vectors::read;

/// A vector of `f32`.
#[derive(Clone, Copy)]
pub(crate) struct F32Lanes<S: Vectors>(S, S::f32s);

/// A vector of `f64`.
#[derive(Clone, Copy)]
pub(crate) struct F64Lanes<S: Vectors>(S, Halves<S>);

/// The first half of the lanes, and the second.
type Halves<S> = [<S as pulp::Simd>::f64s; 2];

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
    operation: impl Fn(S, S::f64s, S::f64s) -> S::f64s,
) -> impl Fn(S, Halves<S>, Halves<S>) -> Halves<S> {
    #[inline(always)]
    move |simd, a, b| [operation(simd, a[0], b[0]), operation(simd, a[1], b[1])]
}

impl<S: Vectors> F32Lanes<S> {
    /// A vector that a register holds.
    #[inline(always)]
    pub(crate) fn of(simd: S, numbers: S::f32s) -> Self {
        Self(simd, numbers)
    }
}

impl<S: Vectors> Lanes for F32Lanes<S> {
    type Number = f32;
    type Vectors = S;

    #[inline(always)]
    fn splat(simd: S, value: f64) -> Self {
        Self(simd, simd.splat_f32s(value as f32))
    }
    #[inline(always)]
    fn read(simd: S, numbers: &[f32]) -> Self {
        Self(simd, read(numbers))
    }
    #[inline(always)]
    fn write(self, numbers: &mut [f32]) {
        cast_slice_mut(numbers).copy_from_slice(bytes_of(&self.1));
    }
    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        if S::FUSES {
            Self(self.0, self.0.mul_add_f32s(self.1, factor.1, term.1))
        } else {
            self * factor + term
        }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0, self.0.abs_f32s(self.1))
    }
    // The bits of numbers that are not negative have the order of the numbers. Multiply-adds occupy the
    // floating-point units; integer instructions run beside them.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0, cast(self.0.max_u32s(cast(self.1), cast(other.1))))
    }
    #[inline(always)]
    fn count_zeros(self, size: Self) -> Self {
        Self(self.0, cast(self.0.count_zeros(cast(self.1), cast(size.1))))
    }
    #[inline(always)]
    fn counted(self) -> Self {
        self.map(
            #[inline(always)]
            |count| count.to_bits() as f32,
        )
    }
    #[inline(always)]
    fn largest(self) -> f64 {
        f64::from(self.0.reduce_max_f32s(self.1))
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
    fn read(simd: S, numbers: &[f64]) -> Self {
        let (low, high) = numbers.split_at(S::F64_LANES);
        Self(simd, [read(low), read(high)])
    }
    #[inline(always)]
    fn write(self, numbers: &mut [f64]) {
        cast_slice_mut(numbers).copy_from_slice(bytes_of(&self.1));
    }
    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        if S::FUSES {
            let [(a, b), (c, d)] = [(self.1[0], factor.1[0]), (self.1[1], factor.1[1])];
            Self(self.0, [self.0.mul_add_f64s(a, b, term.1[0]), self.0.mul_add_f64s(c, d, term.1[1])])
        } else {
            self * factor + term
        }
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
    fn count_zeros(self, size: Self) -> Self {
        self + size.map(
            #[inline(always)]
            |size| f64::from(u8::from(size == 0.0)),
        )
    }
    #[inline(always)]
    fn counted(self) -> Self {
        self
    }
    #[inline(always)]
    fn largest(self) -> f64 {
        let Self(simd, [low, high]) = self;
        simd.reduce_max_f64s(simd.max_f64s(low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Instructions, Kernel, LANES, MOST_PARTS};
    use proptest::prelude::*;

    /// Computes the sums of vectors, and the prefix sums of the first.
    struct Sums<'a, R>(&'a [[R; LANES]; LANES]);

    impl<R: Real> Kernel for Sums<'_, R> {
        type Output = ([f64; LANES], [R; LANES]);

        #[inline(always)]
        fn run<S: Vectors>(self, simd: S) -> Self::Output {
            let mut parts = [R::Lanes::<S>::splat(simd, 0.0); MOST_PARTS];
            for (part, lanes) in parts.iter_mut().enumerate().take(S::PARTS) {
                *lanes = R::Lanes::<S>::load(simd, &self.0[0], part);
            }
            R::Lanes::<S>::prefix_sums(&mut parts);
            let mut running = [R::default(); LANES];
            for (part, lanes) in parts.into_iter().enumerate().take(S::PARTS) {
                lanes.store(&mut running, part);
            }
            (R::Lanes::<S>::sums(simd, self.0), running)
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
