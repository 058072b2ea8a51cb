//! Numbers side by side: what a kernel computes with, in `f32` and in `f64`.

use std::ops::{Add, Mul, Sub};

use pulp::{cast, f32x16, f64x8};

use super::real::Real;
use super::{LANES, Vectors};

/// [`LANES`] numbers, on which every operation works lane by lane.
pub(crate) trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// The width of the numbers.
    type Number: Real;
    /// The instruction set.
    type Vectors: Vectors;

    /// The nearest number to `value` in every lane.
    fn splat(simd: Self::Vectors, value: f64) -> Self;
    /// These numbers.
    fn load(simd: Self::Vectors, numbers: &[Self::Number; LANES]) -> Self;
    /// The numbers.
    fn numbers(self) -> [Self::Number; LANES];
    /// The instruction set.
    fn simd(self) -> Self::Vectors;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// Without the signs.
    fn abs(self) -> Self;
    /// The larger of two that are neither negative nor NaN.
    fn max(self, other: Self) -> Self;
    /// One more where `size` is larger than 0.
    fn count_positive(self, size: Self) -> Self;

    /// The nearest number to `value` in every lane.
    #[inline(always)]
    fn constant(self, value: f64) -> Self {
        Self::splat(self.simd(), value)
    }

    /// Every lane through a function.
    #[inline(always)]
    fn map(self, function: impl Fn(Self::Number) -> Self::Number) -> Self {
        let mut numbers = self.numbers();
        for number in &mut numbers {
            *number = function(*number);
        }
        Self::load(self.simd(), &numbers)
    }

    /// Each lane with the one `DISTANCE` below it added, if there is one.
    ///
    /// The lanes go around the end and those that did are multiplied by 0: vectors go around with one instruction, but
    /// to fill them up with zeros takes several.
    #[inline(always)]
    fn with_lower<const DISTANCE: usize>(self) -> Self {
        let (numbers, mut moved) = (self.numbers(), [Self::Number::default(); LANES]);
        let mut is_inside = [Self::Number::default(); LANES];
        for lane in 0..LANES {
            moved[(lane + DISTANCE) % LANES] = numbers[lane];
            is_inside[lane] = Self::Number::of(f64::from(u8::from(lane >= DISTANCE)));
        }
        Self::load(self.simd(), &moved).mul_add(Self::load(self.simd(), &is_inside), self)
    }

    /// Each lane with all lanes before it added up, in an order that is the same everywhere.
    #[inline(always)]
    fn running_sums(self) -> Self {
        self.with_lower::<1>().with_lower::<2>().with_lower::<4>().with_lower::<8>()
    }

    /// All lanes added up, the upper half onto the lower until one is left.
    fn sum(self) -> f64;

    /// The lanes of every vector added up, in an order that is the same everywhere.
    #[inline(always)]
    fn sums(simd: Self::Vectors, vectors: &[[Self::Number; LANES]; LANES]) -> [f64; LANES] {
        let (low, high) = vectors.split_at(LANES / 2);
        let all = sum_of_eight::<Self>(simd, low).folded_with::<8>(sum_of_eight(simd, high));
        let mut sums = [0.0; LANES];
        for (sum, number) in sums.iter_mut().zip(all.numbers()) {
            *sum = number.wide();
        }
        sums
    }

    /// Each lane with the one `DISTANCE` above it, around the end, added: those without the bit `DISTANCE` in
    /// their number from these lanes, the others from `other`.
    fn folded_with<const DISTANCE: usize>(self, other: Self) -> Self;

    /// The largest lane.
    fn largest(self) -> f64;
}

#[inline(always)]
fn sum_of_eight<N: Lanes>(simd: N::Vectors, vectors: &[[N::Number; LANES]]) -> N {
    sum_of_four::<N>(simd, &vectors[..4]).folded_with::<4>(sum_of_four(simd, &vectors[4..]))
}

#[inline(always)]
fn sum_of_four<N: Lanes>(simd: N::Vectors, vectors: &[[N::Number; LANES]]) -> N {
    let (a, b) = (N::load(simd, &vectors[0]), N::load(simd, &vectors[1]));
    let (c, d) = (N::load(simd, &vectors[2]), N::load(simd, &vectors[3]));
    a.folded_with::<1>(b).folded_with::<2>(c.folded_with::<1>(d))
}

/// Lanes of `f32`.
#[derive(Clone, Copy)]
pub(crate) struct Narrow<S>(S, f32x16);

/// Lanes of `f64`.
#[derive(Clone, Copy)]
pub(crate) struct Wide<S>(S, [f64x8; 2]);

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

operators!(Narrow: Add::add = S::add_f32s, Sub::sub = S::sub_f32s, Mul::mul = S::mul_f32s);
operators!(Wide: Add::add = both(S::add_f64s), Sub::sub = both(S::sub_f64s), Mul::mul = both(S::mul_f64s));

/// An operation on vectors of `f64`, on two of them.
#[inline(always)]
fn both<S: Vectors>(
    operation: impl Fn(S, f64x8, f64x8) -> f64x8,
) -> impl Fn(S, [f64x8; 2], [f64x8; 2]) -> [f64x8; 2] {
    #[inline(always)]
    move |simd, a, b| [operation(simd, a[0], b[0]), operation(simd, a[1], b[1])]
}

impl<S: Vectors> Lanes for Narrow<S> {
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
    fn numbers(self) -> [f32; LANES] {
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
    // The bits of numbers that are not negative have the order of the numbers. Multiply-adds take up all
    // that there is for floating point; instructions for integers find a place beside them.
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
    fn folded_with<const DISTANCE: usize>(self, other: Self) -> Self {
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

impl<S: Vectors> Lanes for Wide<S> {
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
    fn numbers(self) -> [f64; LANES] {
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
    fn folded_with<const DISTANCE: usize>(self, other: Self) -> Self {
        let sides = [self.numbers(), other.numbers()];
        let mut numbers = [0.0; LANES];
        for (lane, number) in numbers.iter_mut().enumerate() {
            let from = &sides[usize::from(lane & DISTANCE != 0)];
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

    /// The sums of vectors, and the running sums of the first.
    struct AddUp<'a, R>(&'a [[R; LANES]; LANES]);

    impl<R: Real> Kernel for AddUp<'_, R> {
        type Output = ([f64; LANES], [R; LANES]);

        #[inline(always)]
        fn run<S: Vectors>(self, simd: S) -> Self::Output {
            let first = R::Lanes::<S>::load(simd, &self.0[0]);
            (R::Lanes::<S>::sums(simd, self.0), first.running_sums().numbers())
        }
    }

    fn check<R: Real>(numbers: &[[R; LANES]; LANES], tolerance: f64) {
        let mut all = Vec::new();
        for instructions in Instructions::available() {
            let (sums, running) = instructions.run(AddUp(numbers));
            for (sum, numbers) in sums.iter().zip(numbers) {
                let expected: f64 = numbers.iter().map(|number| number.wide()).sum();
                assert!((sum - expected).abs() <= tolerance, "{sum} {expected}");
            }
            let mut expected = 0.0;
            for (sum, number) in running.iter().zip(&numbers[0]) {
                expected += number.wide();
                assert!((sum.wide() - expected).abs() <= tolerance, "{sum:?} {expected}");
            }
            all.push((sums.map(f64::to_bits), running.map(|sum| sum.wide().to_bits())));
        }
        assert!(all.iter().all(|bits| *bits == all[0]), "{all:?}");
    }

    proptest! {
        /// With the same bits on every instruction set.
        #[test]
        fn every_vector_is_added_up(numbers in prop::array::uniform16(prop::array::uniform16(-1f64..1.0))) {
            check::<f64>(&numbers, 1e-14);
            check::<f32>(&numbers.map(|numbers| numbers.map(|number| number as f32)), 1e-5);
        }
    }
}
