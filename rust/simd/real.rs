//! The traits that kernels compute with: a number ([`Real`]) and a vector of numbers ([`Lanes`]).

use std::ops::{Add, Mul, Sub};

use super::{LANES, Vectors};

/// `f32` or `f64`. Every method is inlined into the kernel, for the compiler to vectorise.
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
    /// A vector of these numbers.
    type Lanes<S: Vectors>: Lanes<Number = Self, Vectors = S>;

    /// Whether this is `f32`.
    const IS_F32: bool;
    /// ln 2 with its last bits cleared, so that small multiples of it are exact.
    const LN_2_HIGH: f64;
    /// ln 2 - [`Real::LN_2_HIGH`].
    const LN_2_LOW: f64;
    /// Adding this rounds a small number to an integer, held in the low bits of the sum.
    const ROUNDER: f64;
    /// The degree of the Taylor polynomial of the exponential that has full precision on [-ln 2 / 2, ln 2 / 2].
    const EXPONENTIAL_DEGREE: usize;

    /// Rounds to the nearest number of this type.
    fn from_f64(value: f64) -> Self;
    /// Converts exactly.
    fn to_f64(self) -> f64;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `self * 2^n`, for an `n` that [`Real::ROUNDER`] was added to. The result must be a normal number.
    fn times_power_of_two(self, rounded: Self) -> Self;
}

/// [`LANES`] numbers, on which every operation works lane by lane.
pub(crate) trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    type Number: Real;
    type Vectors: Vectors;

    /// The nearest number to `value` in every lane.
    fn splat(simd: Self::Vectors, value: f64) -> Self;
    fn load(simd: Self::Vectors, numbers: &[Self::Number; LANES]) -> Self;
    fn to_array(self) -> [Self::Number; LANES];
    /// The instruction set.
    fn simd(self) -> Self::Vectors;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    fn abs(self) -> Self;
    /// The larger of two numbers that are neither negative nor NaN.
    fn max(self, other: Self) -> Self;
    /// Adds 1 where `size` is larger than 0.
    fn count_positive(self, size: Self) -> Self;
    /// Adds all lanes, the upper half to the lower until one is left.
    fn sum(self) -> f64;
    /// The largest lane.
    fn largest(self) -> f64;
    /// Adds to each lane the lane `DISTANCE` above it, cyclically. Lanes whose number lacks the bit `DISTANCE`
    /// are taken from `self`, the others from `other`.
    fn fold_with<const DISTANCE: usize>(self, other: Self) -> Self;

    /// The nearest number to `value` in every lane.
    #[inline(always)]
    fn constant(self, value: f64) -> Self {
        Self::splat(self.simd(), value)
    }

    /// Applies `function` to every lane.
    #[inline(always)]
    fn map(self, function: impl Fn(Self::Number) -> Self::Number) -> Self {
        let mut numbers = self.to_array();
        for number in &mut numbers {
            *number = function(*number);
        }
        Self::load(self.simd(), &numbers)
    }

    /// Adds to each lane the lane `DISTANCE` below it, if there is one.
    ///
    /// The lanes are rotated, and those that wrap around are multiplied by 0: a rotation is one instruction, a
    /// shift that fills up with zeros takes several.
    #[inline(always)]
    fn add_lower<const DISTANCE: usize>(self) -> Self {
        let (numbers, mut rotated) = (self.to_array(), [Self::Number::default(); LANES]);
        let mut is_inside = [Self::Number::default(); LANES];
        for lane in 0..LANES {
            rotated[(lane + DISTANCE) % LANES] = numbers[lane];
            is_inside[lane] = Self::Number::from_f64(f64::from(u8::from(lane >= DISTANCE)));
        }
        Self::load(self.simd(), &rotated).mul_add(Self::load(self.simd(), &is_inside), self)
    }

    /// The sums of each lane and all lanes below it, added in the same order on every instruction set.
    #[inline(always)]
    fn prefix_sums(self) -> Self {
        self.add_lower::<1>().add_lower::<2>().add_lower::<4>().add_lower::<8>()
    }

    /// The sum of each vector's lanes, added in the same order on every instruction set.
    #[inline(always)]
    fn sums(simd: Self::Vectors, vectors: &[[Self::Number; LANES]; LANES]) -> [f64; LANES] {
        let (low, high) = vectors.split_at(LANES / 2);
        let all = fold_eight::<Self>(simd, low).fold_with::<8>(fold_eight(simd, high));
        let mut sums = [0.0; LANES];
        for (sum, number) in sums.iter_mut().zip(all.to_array()) {
            *sum = number.to_f64();
        }
        sums
    }
}

#[inline(always)]
fn fold_eight<N: Lanes>(simd: N::Vectors, vectors: &[[N::Number; LANES]]) -> N {
    fold_four::<N>(simd, &vectors[..4]).fold_with::<4>(fold_four(simd, &vectors[4..]))
}

#[inline(always)]
fn fold_four<N: Lanes>(simd: N::Vectors, vectors: &[[N::Number; LANES]]) -> N {
    let (a, b) = (N::load(simd, &vectors[0]), N::load(simd, &vectors[1]));
    let (c, d) = (N::load(simd, &vectors[2]), N::load(simd, &vectors[3]));
    a.fold_with::<1>(b).fold_with::<2>(c.fold_with::<1>(d))
}
