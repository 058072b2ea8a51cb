//! The traits that kernels compute with: a number ([`Real`]) and a vector of numbers ([`Lanes`]).

use std::ops::{Add, Mul, Sub};

use super::{LANES, MOST_PARTS, Vectors};

/// `f32` or `f64`. Every method is inlined into the kernel, for the compiler to vectorise.
pub(crate) trait Real:
    Copy
    + Default
    + pulp::bytemuck::Pod
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
    /// `self * 2^n`, for an `n` that [`Real::ROUNDER`] was added to. The result must be a normal number.
    fn times_power_of_two(self, rounded: Self) -> Self;
}

/// Numbers of one part of the lanes, on which every operation works lane by lane.
pub(crate) trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    type Number: Real;
    type Vectors: Vectors;

    /// The nearest number to `value` in every lane.
    fn splat(simd: Self::Vectors, value: f64) -> Self;
    /// Reads as many numbers as a part has lanes.
    fn read(simd: Self::Vectors, numbers: &[Self::Number]) -> Self;
    /// Writes as many numbers as a part has lanes.
    fn write(self, numbers: &mut [Self::Number]);
    /// The instruction set.
    fn simd(self) -> Self::Vectors;
    /// `self * factor + term`, rounded once if the set [fuses](Vectors::FUSES).
    fn mul_add(self, factor: Self, term: Self) -> Self;
    fn abs(self) -> Self;
    /// The larger of two numbers that are neither negative nor NaN.
    fn max(self, other: Self) -> Self;
    /// Adds 1 to the counts where `size`, which is not negative anywhere, is 0. Counts start as 0 and are not
    /// numbers until [`Self::counted`].
    fn count_zeros(self, size: Self) -> Self;
    /// The numbers that counts stand for.
    fn counted(self) -> Self;
    /// The largest lane.
    fn largest(self) -> f64;

    /// Reads a part of these lanes.
    #[inline(always)]
    fn load(simd: Self::Vectors, numbers: &[Self::Number; LANES], part: usize) -> Self {
        Self::read(simd, &numbers[part * Self::Vectors::WIDTH..][..Self::Vectors::WIDTH])
    }

    /// Writes a part of these lanes.
    #[inline(always)]
    fn store(self, numbers: &mut [Self::Number; LANES], part: usize) {
        self.write(&mut numbers[part * Self::Vectors::WIDTH..][..Self::Vectors::WIDTH]);
    }

    /// The numbers of all lanes, followed by zeros.
    #[inline(always)]
    fn to_array(self) -> [Self::Number; LANES] {
        let mut numbers = [Self::Number::default(); LANES];
        self.store(&mut numbers, 0);
        numbers
    }

    /// The numbers that `number` gives for the lanes.
    #[inline(always)]
    fn from_lanes(simd: Self::Vectors, number: impl Fn(usize) -> Self::Number) -> Self {
        let mut numbers = [Self::Number::default(); LANES];
        for (lane, to) in numbers.iter_mut().enumerate().take(Self::Vectors::WIDTH) {
            *to = number(lane);
        }
        Self::load(simd, &numbers, 0)
    }

    /// The nearest number to `value` in every lane.
    #[inline(always)]
    fn constant(self, value: f64) -> Self {
        Self::splat(self.simd(), value)
    }

    /// Applies `function` to every lane.
    #[inline(always)]
    fn map(self, function: impl Fn(Self::Number) -> Self::Number) -> Self {
        let numbers = self.to_array();
        Self::from_lanes(
            self.simd(),
            #[inline(always)]
            |lane| function(numbers[lane]),
        )
    }

    /// The last lane, in every lane.
    #[inline(always)]
    fn last(self) -> Self {
        let last = self.to_array()[Self::Vectors::WIDTH - 1];
        Self::from_lanes(
            self.simd(),
            #[inline(always)]
            |_| last,
        )
    }

    /// `self * 2^n`, for the `n` of every lane that [`Real::ROUNDER`] was added to. The results must be normal numbers.
    #[inline(always)]
    fn times_power_of_two(self, rounded: Self) -> Self {
        let (numbers, rounded) = (self.to_array(), rounded.to_array());
        Self::from_lanes(
            self.simd(),
            #[inline(always)]
            |lane| numbers[lane].times_power_of_two(rounded[lane]),
        )
    }

    /// Every other number of two parts: those at even places, or with `ODD` = 1 those at odd places.
    #[inline(always)]
    fn every_other<const ODD: usize>(self, next: Self) -> Self {
        let (first, next) = (self.to_array(), next.to_array());
        let half = Self::Vectors::WIDTH / 2;
        let mut numbers = [Self::Number::default(); LANES];
        for lane in 0..half {
            numbers[lane] = first[2 * lane + ODD];
            numbers[half + lane] = next[2 * lane + ODD];
        }
        Self::load(self.simd(), &numbers, 0)
    }

    /// Adds, in every 2 `HALF` lanes, the last lane of the lower half to the upper half.
    ///
    /// The lanes of the lower half are multiplied by 0: a permutation is one instruction, one that fills up with zeros
    /// takes several.
    #[inline(always)]
    fn add_last_of_lower<const HALF: usize>(self) -> Self {
        if HALF >= Self::Vectors::WIDTH {
            return self;
        }
        let numbers = self.to_array();
        let last = Self::from_lanes(
            self.simd(),
            #[inline(always)]
            |lane| numbers[(lane | HALF) / HALF * HALF - 1],
        );
        let is_upper = Self::from_lanes(
            self.simd(),
            #[inline(always)]
            |lane| Self::Number::from_f64(if lane & HALF == 0 { 0.0 } else { 1.0 }),
        );
        last.mul_add(is_upper, self)
    }

    /// The sums of each lane and all lanes below it, over all parts, added in the same order on every instruction set.
    #[inline(always)]
    fn prefix_sums(parts: &mut [Self; MOST_PARTS]) {
        for part in parts.iter_mut().take(Self::Vectors::PARTS) {
            *part = part
                .add_last_of_lower::<1>()
                .add_last_of_lower::<2>()
                .add_last_of_lower::<4>()
                .add_last_of_lower::<8>();
        }
        if Self::Vectors::PARTS >= 2 {
            parts[1] = parts[1] + parts[0].last();
        }
        if Self::Vectors::PARTS == 4 {
            parts[3] = parts[3] + parts[2].last();
            let lower = parts[1].last();
            (parts[2], parts[3]) = (parts[2] + lower, parts[3] + lower);
        }
    }

    /// The sum of each vector's lanes, added in the same order on every instruction set: to each lane that which is
    /// half of all lanes away, a quarter, and so on. Many sums at once, in a tree, take fewer instructions each.
    #[inline(always)]
    fn sums(simd: Self::Vectors, vectors: &[[Self::Number; LANES]; LANES]) -> [f64; LANES] {
        let mut sums = [0.0; LANES];
        for first in (0..LANES).step_by(Self::Vectors::WIDTH) {
            let rows = Rows::<Self> { simd, vectors };
            let folded = rows.fold_twos(first).fold_with::<1>(rows.fold_twos(first + 1));
            let mut numbers = [Self::Number::default(); LANES];
            folded.store(&mut numbers, 0);
            for lane in 0..Self::Vectors::WIDTH {
                sums[first + lane] = numbers[lane].to_f64();
            }
        }
        sums
    }

    /// Adds to each lane the lane whose number differs in the bit `DISTANCE`. Lanes whose number lacks that bit are
    /// taken from `self`, the others from `other`.
    #[inline(always)]
    fn fold_with<const DISTANCE: usize>(self, other: Self) -> Self {
        let (own, other) = (self.to_array(), other.to_array());
        let (mut kept, mut moved) = (own, own);
        for lane in 0..Self::Vectors::WIDTH {
            let is_own = lane & DISTANCE == 0;
            kept[lane] = if is_own { own[lane] } else { other[lane] };
            moved[lane] = if is_own { own[lane ^ DISTANCE] } else { other[lane ^ DISTANCE] };
        }
        Self::load(self.simd(), &kept, 0) + Self::load(self.simd(), &moved, 0)
    }
}

/// Vectors whose lanes are added up. Each function folds as many of them, a distance apart, as it says.
#[derive(Clone, Copy)]
struct Rows<'a, N: Lanes> {
    simd: N::Vectors,
    vectors: &'a [[N::Number; LANES]; LANES],
}

impl<N: Lanes> Rows<'_, N> {
    /// One vector, its parts added up.
    #[inline(always)]
    fn one(self, row: usize) -> N {
        let part = |part| N::load(self.simd, &self.vectors[row], part);
        match N::Vectors::PARTS {
            1 => part(0),
            2 => part(0) + part(1),
            _ => (part(0) + part(2)) + (part(1) + part(3)),
        }
    }

    #[inline(always)]
    fn fold_eights(self, row: usize) -> N {
        if N::Vectors::WIDTH <= 8 {
            return self.one(row);
        }
        self.one(row).fold_with::<8>(self.one(row + 8))
    }

    #[inline(always)]
    fn fold_fours(self, row: usize) -> N {
        if N::Vectors::WIDTH <= 4 {
            return self.one(row);
        }
        self.fold_eights(row).fold_with::<4>(self.fold_eights(row + 4))
    }

    #[inline(always)]
    fn fold_twos(self, row: usize) -> N {
        self.fold_fours(row).fold_with::<2>(self.fold_fours(row + 2))
    }
}
