//! Matrix products in twice the digits of `f64`, for heads whose changes undo one another.
//!
//! # How it works
//!
//! A number is the sum of two of `f64`, the lower of which is what the higher lost by rounding: the error of a sum and
//! that of a product are numbers of `f64` themselves (Dekker 1971). Both products are computed so, theta_B and theta_T, and
//! subtracted. The difference is right to seven digits down to 1e-24 of theta, and 0 below 1e-27 of it.

use std::io;

use super::product::{Factor, HeadMatrix, Matrices, ProductError, Theta, squares, tiles};
use crate::memory;
use crate::simd::real::{Lanes, Real};
use crate::simd::{Instructions, Kernel, LANES, Vectors};

/// The part of theta_B below which a difference is rounding: 2^-90.
const NEGLIGIBLE: f64 = 1.0 / (1u128 << 90) as f64;

/// A row-major matrix of sums of two numbers. Its rows are filled up with zeros to whole vectors.
#[derive(Debug)]
struct Doubled {
    high: Vec<[f64; LANES]>,
    low: Vec<[f64; LANES]>,
    /// Vectors of a row.
    width: usize,
}

impl Doubled {
    fn zeros(rows: usize, columns: usize) -> io::Result<Self> {
        let width = columns.div_ceil(LANES);
        let zeros = || memory::zeros(rows * width);
        Ok(Self { high: zeros()?, low: zeros()?, width })
    }

    /// The transpose of a row-major matrix with rows of this length.
    fn transpose_of(numbers: &[f64], length: usize) -> io::Result<Self> {
        let mut transposed = Self::zeros(length, numbers.len() / length)?;
        for (column, row) in numbers.chunks_exact(length).enumerate() {
            for (number, line) in row.iter().zip(transposed.high.chunks_exact_mut(transposed.width)) {
                line[column / LANES][column % LANES] = *number;
            }
        }
        Ok(transposed)
    }
}

/// Computes theta of a head.
pub(super) fn multiply(
    query: &HeadMatrix,
    key: &HeadMatrix,
    value: &HeadMatrix,
    theta: &mut Theta<f64>,
    instructions: Instructions,
) -> Result<(), ProductError> {
    let (rows, values) = (key.rows(), value.rows());
    let [mut k, mut v, mut q] = <[Matrices<f64>; 3]>::default();
    let mut shared = [Doubled::zeros(rows, values)?, Doubled::zeros(rows, values)?];
    for tile in tiles(key.columns) {
        k.decode_tile(key, &tile, instructions, ProductError::Key)?;
        v.decode_tile(value, &tile, instructions, ProductError::Value)?;
        for (out, (k, v)) in shared.iter_mut().zip([(&k.base, &v.base), (&k.tuned, &v.tuned)]) {
            let (left, right) = (Factor::new(k, tile.len()), &Doubled::transpose_of(v, tile.len())?);
            instructions.run(AddProduct { out, rows, left, right });
        }
    }
    theta.fill_with_zeros(query.columns * values)?;
    for tile in tiles(query.columns) {
        q.decode_tile(query, &tile, instructions, ProductError::Query)?;
        let mut both = [Doubled::zeros(tile.len(), values)?, Doubled::zeros(tile.len(), values)?];
        for (out, (q, right)) in both.iter_mut().zip([&q.base, &q.tuned].into_iter().zip(&shared)) {
            let left = Factor::transposed(q, tile.len());
            instructions.run(AddProduct { out, rows: tile.len(), left, right });
        }
        theta.write_differences(&both, tile.start, values);
    }
    if squares(&theta.delta, instructions).sqrt() <= NEGLIGIBLE * squares(&theta.base, instructions).sqrt() {
        theta.delta.fill(0.0);
    }
    Ok(())
}

impl Theta<f64> {
    /// Writes rows of theta, from row `first` on: the first of two matrices, and the second less the first.
    fn write_differences(&mut self, [base, tuned]: &[Doubled; 2], first: usize, columns: usize) {
        let rows = self.base.chunks_exact_mut(columns).zip(self.delta.chunks_exact_mut(columns)).skip(first);
        for (start, (row, delta)) in (0..base.high.len()).step_by(base.width).zip(rows) {
            let [base_high, base_low, high, low] = [&base.high, &base.low, &tuned.high, &tuned.low]
                .map(|lines| lines[start..start + base.width].as_flattened());
            row.copy_from_slice(&base_high[..columns]);
            for (column, delta) in delta.iter_mut().enumerate() {
                let (difference, error) = sum_with_error(high[column], -base_high[column]);
                *delta = difference + (error + (low[column] - base_low[column]));
            }
        }
    }
}

/// Adds `left right` to `out`, which has this number of rows.
struct AddProduct<'a> {
    out: &'a mut Doubled,
    rows: usize,
    left: Factor<'a, f64>,
    right: &'a Doubled,
}

impl Kernel for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) {
        type Numbers<S> = <f64 as Real>::Lanes<S>;
        let Self { out: Doubled { high, low, width }, rows, left, right } = self;
        for row in 0..rows {
            for column in 0..*width {
                let place = row * *width + column;
                for part in 0..S::PARTS {
                    let mut high_sum = Numbers::<S>::load(simd, &high[place], part);
                    let mut low_sum = Numbers::<S>::load(simd, &low[place], part);
                    let lines = right.high[column..].iter().zip(&right.low[column..]).step_by(*width);
                    for (inner, (right_high, right_low)) in lines.enumerate() {
                        let factor = Numbers::<S>::splat(simd, left.entry(row, inner));
                        let right_high = Numbers::<S>::load(simd, right_high, part);
                        let right_low = Numbers::<S>::load(simd, right_low, part);
                        let (product, lost) = product_with_error(factor, right_high);
                        let (sum, error) = sum_with_error(high_sum, product);
                        high_sum = sum;
                        low_sum = low_sum + factor.mul_add(right_low, lost + error);
                    }
                    high_sum.store(&mut high[place], part);
                    low_sum.store(&mut low[place], part);
                }
            }
        }
    }
}

/// The rounded sum, and what it lacks.
#[inline(always)]
fn sum_with_error<N: Copy + std::ops::Add<Output = N> + std::ops::Sub<Output = N>>(a: N, b: N) -> (N, N) {
    let sum = a + b;
    let of_b = sum - a;
    (sum, (a - (sum - of_b)) + (b - of_b))
}

/// The rounded product, and what it lacks.
#[inline(always)]
fn product_with_error<N: Lanes>(a: N, b: N) -> (N, N) {
    let product = a * b;
    if N::Vectors::FUSES {
        return (product, a.mul_add(b, a.constant(0.0) - product));
    }
    // The halves of a number have 26 bits, so that their products are exact.
    let halves = |number: N| {
        let scaled = number * number.constant(((1u64 << 27) + 1) as f64);
        let high = scaled - (scaled - number);
        (high, number - high)
    };
    let ((a_high, a_low), (b_high, b_low)) = (halves(a), halves(b));
    (product, (((a_high * b_high - product) + a_high * b_low) + a_low * b_high) + a_low * b_low)
}
