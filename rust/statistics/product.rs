//! The `product` form: the weight vector Q_h^T (K_g V_g^T) of a head, of equation 5 of the paper.
//!
//! # How it works
//!
//! The difference of two such products cancels twice, so it is formed from differences, never as one product less
//! another: with M = K V^T,
//!
//! dM = dK V_T^T + K_B dV^T,  dP = dQ^T M_T + Q_B^T dM.
//!
//! The matrices are decoded a few hundred columns at a time, so that each is held in memory only as stored bytes.
//!
//! Large heads are multiplied in `f32`, whose rounding errors average out over the many entries unless changes cancel
//! to far below their own size. That halves the time of the multiplications, which take nearly all of it. Small heads,
//! and weights so large or small that a product could leave the range of `f32`, are multiplied in `f64`.
//!
//! Changes may undo one another: rows of Q and K in another order, or turned alike, have the same product. The rounding
//! errors of dP are relative to the terms of the sums above, so they show where dP is far smaller. Such a head is recognised
//! by the norms, and [`HeadProduct::compute_again`] multiplies it in `f64` or, if that is not enough, in twice its
//! digits ([`super::doubled_product`]).

use std::io;
use std::ops::Range;

use gemm::Parallelism;

use super::doubled_product;
use super::precision::MIN_F32_ENTRIES;
use super::vector_sums::NonFiniteEntry;
use super::weight_change::Magnitudes;
use super::weight_vector::{StoredWeights, WeightVector};
use crate::memory;
use crate::pages::Pages;
use crate::simd::real::{Lanes, Real};
use crate::simd::{Instructions, Kernel, LANES, Vectors};

/// Columns decoded at a time: tiles of two matrices and their product fit a core's cache. Results depend on it in
/// their last bits, so it is fixed.
const TILE: usize = 256;

/// The largest magnitude that is multiplied in `f32`, and the inverse of the smallest.
const LARGEST_F32: f64 = (1u64 << 20) as f64;

/// The smallest change that is multiplied in `f32`.
const SMALLEST_F32_DELTA: f64 = 1.0 / (1u64 << 50) as f64;

/// How many times larger a term of a change in `f32` may be than the change.
const LARGEST_F32_TERM: f64 = 4.0;

/// The same in `f64`.
const LARGEST_F64_TERM: f64 = (1u64 << 30) as f64;

/// One matrix of a head in both checkpoints. Its rows are as long as the model is wide.
#[derive(Clone, Copy, Debug)]
pub struct HeadMatrix<'a> {
    /// The matrix of the base checkpoint.
    pub base: StoredWeights<'a>,
    /// The matrix of the tuned checkpoint.
    pub tuned: StoredWeights<'a>,
    /// The length of a row.
    pub columns: usize,
}

impl<'a> HeadMatrix<'a> {
    pub(super) fn rows(&self) -> usize {
        self.base.entries() / self.columns
    }

    /// The entries of the matrix, row after row.
    pub fn weight_vector(&self) -> WeightVector<'a> {
        WeightVector::Stored { base: self.base, tuned: self.tuned }
    }

    fn fits_f32(&self) -> bool {
        self.weight_vector().fits_f32()
    }
}

/// Why a product was not computed.
#[derive(Debug)]
pub enum ProductError {
    /// The query matrix holds a number that is not finite.
    Query(NonFiniteEntry),
    /// The key matrix does.
    Key(NonFiniteEntry),
    /// The value matrix does.
    Value(NonFiniteEntry),
    /// The system has too little memory.
    Memory(io::Error),
}

impl From<io::Error> for ProductError {
    fn from(error: io::Error) -> Self {
        Self::Memory(error)
    }
}

/// K V^T of one key/value group, [head size, value size], which its query heads share. Its memory can be kept from group
/// to group.
#[derive(Debug, Default)]
pub struct KeyValueProduct {
    in_f32: Matrices<f32>,
    in_f64: Matrices<f64>,
    /// Whether it was computed in `f32`.
    is_f32: bool,
    is_precise: bool,
}

impl KeyValueProduct {
    /// Multiplies the key and the value matrix of a group.
    pub fn compute(
        &mut self,
        key: &HeadMatrix,
        value: &HeadMatrix,
        instructions: Instructions,
    ) -> Result<(), ProductError> {
        let Self { in_f32, in_f64, is_f32, is_precise } = self;
        let is_many = key.columns * value.rows() >= MIN_F32_ENTRIES;
        let found = if is_many && key.fits_f32() && value.fits_f32() {
            Some(multiply_group(key, value, in_f32, instructions)?).filter(|found| found.fits)
        } else {
            None
        };
        *is_f32 = found.is_some();
        let found = match found {
            Some(found) => found,
            None => multiply_group(key, value, in_f64, instructions)?,
        };
        *is_precise = found.is_precise;
        Ok(())
    }
}

/// theta of one head in the `product` form, [model width, value size] in row-major order. Its memory is kept from
/// head to head.
#[derive(Debug)]
pub struct HeadProduct {
    instructions: Instructions,
    in_f32: Multiplied<f32>,
    in_f64: Multiplied<f64>,
    /// Whether theta was computed in `f32`.
    is_f32: bool,
    is_precise: bool,
}

/// theta of one head in numbers of type `R`.
#[derive(Debug, Default)]
struct Multiplied<R> {
    theta: Theta<R>,
    /// Some columns of the query matrix.
    query: Matrices<R>,
}

/// Theta of both checkpoints.
#[derive(Debug, Default)]
pub(super) struct Theta<R> {
    pub(super) base: Pages<R>,
    /// theta_T - theta_B.
    pub(super) delta: Pages<R>,
}

impl<R: Real> Theta<R> {
    /// Fills it with zeros, so many in each checkpoint.
    pub(super) fn fill_with_zeros(&mut self, length: usize) -> io::Result<()> {
        for numbers in [&mut self.base, &mut self.delta] {
            numbers.resize(length)?;
            numbers.fill(R::default());
        }
        Ok(())
    }
}

/// What a multiplication found out about its matrices.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Whether the type of its numbers has the range for the product.
    fits: bool,
    /// Whether the change of the product is not far smaller than a term of it, so that no rounding shows.
    is_precise: bool,
}

impl HeadProduct {
    /// A product without entries.
    pub fn new(instructions: Instructions) -> Self {
        let (in_f32, in_f64) = Default::default();
        Self { instructions, in_f32, in_f64, is_f32: false, is_precise: true }
    }

    /// Frees the memory of theta, which the matrices of the next group need.
    pub fn free(&mut self) {
        (self.in_f32.theta, self.in_f64.theta) = Default::default();
    }

    /// Multiplies the query matrix of a head with the product of its group.
    pub fn compute(&mut self, query: &HeadMatrix, shared: &KeyValueProduct) -> Result<(), ProductError> {
        let Self { instructions, in_f32, in_f64, is_f32, is_precise } = self;
        let found = if shared.is_f32 && query.fits_f32() {
            Some(multiply_head(query, &shared.in_f32, in_f32, *instructions)?).filter(|found| found.fits)
        } else {
            None
        };
        *is_f32 = found.is_some();
        let found = match found {
            Some(found) => found,
            None if shared.is_f32 => multiply_head(query, &shared.in_f32.to_f64()?, in_f64, *instructions)?,
            None => multiply_head(query, &shared.in_f64, in_f64, *instructions)?,
        };
        *is_precise = shared.is_precise && found.is_precise;
        Ok(())
    }

    /// Whether no rounding shows in theta that was computed last. Otherwise it should be
    /// [computed again](Self::compute_again).
    pub fn is_precise(&self) -> bool {
        self.is_precise
    }

    /// Whether theta that was computed last is in `f64`.
    pub fn is_f64(&self) -> bool {
        !self.is_f32
    }

    /// Multiplies the matrices of a head in `f64` and, if rounding shows even then, in twice its digits.
    pub fn compute_again(
        &mut self,
        query: &HeadMatrix,
        key: &HeadMatrix,
        value: &HeadMatrix,
    ) -> Result<(), ProductError> {
        let Self { instructions, in_f64, is_f32, is_precise, .. } = self;
        (*is_f32, *is_precise) = (false, true);
        let mut shared = Matrices::default();
        let of_group = multiply_group(key, value, &mut shared, *instructions)?;
        let of_head = multiply_head(query, &shared, in_f64, *instructions)?;
        if !(of_group.is_precise && of_head.is_precise) {
            doubled_product::multiply(query, key, value, &mut in_f64.theta, *instructions)?;
        }
        Ok(())
    }

    /// theta of the head that was computed last.
    pub fn weight_vector(&self) -> WeightVector<'_> {
        if self.is_f32 {
            let Theta { base, delta } = &self.in_f32.theta;
            WeightVector::F32 { base, delta }
        } else {
            let Theta { base, delta } = &self.in_f64.theta;
            WeightVector::F64 { base, delta }
        }
    }
}

/// A decoded or computed matrix in both checkpoints.
#[derive(Debug, Default)]
pub(super) struct Matrices<R> {
    pub(super) base: Vec<R>,
    pub(super) tuned: Vec<R>,
    /// tuned - base.
    pub(super) delta: Vec<R>,
}

impl Matrices<f32> {
    fn to_f64(&self) -> io::Result<Matrices<f64>> {
        let wide = |numbers: &[f32]| memory::collect(numbers.iter().copied().map(f64::from));
        Ok(Matrices { base: wide(&self.base)?, tuned: wide(&self.tuned)?, delta: wide(&self.delta)? })
    }
}

/// Computes K V^T.
fn multiply_group<R: Real>(
    key: &HeadMatrix,
    value: &HeadMatrix,
    Matrices { base, tuned, delta }: &mut Matrices<R>,
    instructions: Instructions,
) -> Result<Found, ProductError> {
    let (rows, columns) = (key.rows(), value.rows());
    for product in [&mut *base, tuned, delta] {
        product.clear();
        resize(product, rows * columns)?;
    }
    // K_B dV^T is added up apart: the sizes of both terms of dM tell how precise it is.
    let of_values = &mut *tuned;
    let [mut k, mut v] = <[Matrices<R>; 2]>::default();
    let (mut of_key, mut of_value) = (Magnitudes::default(), Magnitudes::default());
    for tile in tiles(key.columns) {
        of_key.merge(k.decode_tile(key, &tile, instructions, ProductError::Key)?);
        of_value.merge(v.decode_tile(value, &tile, instructions, ProductError::Value)?);
        let plain = |entries| Factor::new(entries, tile.len());
        let transposed = |entries| Factor::transposed(entries, tile.len());
        add_product(base, rows, columns, plain(&k.base), transposed(&v.base));
        add_product(delta, rows, columns, plain(&k.delta), transposed(&v.tuned));
        add_product(of_values, rows, columns, plain(&k.base), transposed(&v.delta));
    }
    let term = squares(delta, instructions);
    delta.iter_mut().zip(&*of_values).for_each(|(sum, term)| *sum = *sum + *term);
    let is_precise = is_precise::<R>(term, squares(delta, instructions));
    for ((tuned, base), delta) in tuned.iter_mut().zip(&*base).zip(&*delta) {
        *tuned = *base + *delta;
    }
    Ok(Found { fits: fits::<R>(&of_key) && fits::<R>(&of_value), is_precise })
}

/// Computes theta of a head.
fn multiply_head<R: Real>(
    query: &HeadMatrix,
    shared: &Matrices<R>,
    Multiplied { theta, query: decoded }: &mut Multiplied<R>,
    instructions: Instructions,
) -> Result<Found, ProductError> {
    let value_size = shared.base.len() / query.rows();
    theta.fill_with_zeros(query.columns * value_size)?;
    let mut magnitudes = Magnitudes::default();
    let (mut term, mut change) = (0.0, 0.0);
    for tile in tiles(query.columns) {
        magnitudes.merge(decoded.decode_tile(query, &tile, instructions, ProductError::Query)?);
        let rows = tile.start * value_size..tile.end * value_size;
        let add = |out: &mut [R], left: &[R], right: &[R]| {
            let left = Factor::transposed(left, tile.len());
            add_product(out, tile.len(), value_size, left, Factor::new(right, value_size));
        };
        add(&mut theta.base[rows.clone()], &decoded.base, &shared.base);
        let delta = &mut theta.delta[rows];
        add(delta, &decoded.delta, &shared.tuned);
        term += squares(delta, instructions);
        add(delta, &decoded.base, &shared.delta);
        change += squares(delta, instructions);
    }
    Ok(Found { fits: fits::<R>(&magnitudes), is_precise: is_precise::<R>(term, change) })
}

/// The sum of the squares.
pub(super) fn squares<R: Real>(numbers: &[R], instructions: Instructions) -> f64 {
    instructions.run_loops(
        #[inline(always)]
        || {
            let (lines, rest) = numbers.as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for line in lines {
                for (sum, number) in sums.iter_mut().zip(line) {
                    *sum += number.to_f64() * number.to_f64();
                }
            }
            let of_rest: f64 = rest.iter().map(|number| number.to_f64() * number.to_f64()).sum();
            sums.iter().sum::<f64>() + of_rest
        },
    )
}

/// Whether a change is precise in numbers of type `R`, given its squares and those of a term of it. What overflows counts
/// as precise, and is refused elsewhere.
fn is_precise<R: Real>(term: f64, change: f64) -> bool {
    let largest = if R::IS_F32 { LARGEST_F32_TERM } else { LARGEST_F64_TERM };
    !(term > largest * largest * change && term.is_finite())
}

/// Whether numbers of type `R` have the range for products of matrices of these magnitudes.
fn fits<R: Real>(magnitudes: &Magnitudes) -> bool {
    let Magnitudes { base, delta } = *magnitudes;
    let base_fits = base == 0.0 || (1.0 / LARGEST_F32..=LARGEST_F32).contains(&base);
    !R::IS_F32 || base_fits && (delta == 0.0 || (SMALLEST_F32_DELTA..=LARGEST_F32).contains(&delta))
}

impl<R: Real> Matrices<R> {
    /// Decodes some columns of a matrix, and returns their magnitudes. `refusal` is the error of an entry that is not finite.
    pub(super) fn decode_tile(
        &mut self,
        matrix: &HeadMatrix,
        columns: &Range<usize>,
        instructions: Instructions,
        refusal: impl FnOnce(NonFiniteEntry) -> ProductError,
    ) -> Result<Magnitudes, ProductError> {
        for entries in [&mut self.base, &mut self.tuned, &mut self.delta] {
            resize(entries, matrix.rows() * columns.len())?;
        }
        let magnitudes = instructions.run(DecodeTile { tile: self, matrix, columns });
        if magnitudes.base.is_finite() && magnitudes.delta.is_finite() {
            return Ok(magnitudes);
        }
        let is_finite = |number: &R| number.to_f64().is_finite();
        let index = self.delta.iter().position(|delta| !is_finite(delta)).unwrap_or_default();
        Err(refusal(NonFiniteEntry {
            entry: index / columns.len() * matrix.columns + columns.start + index % columns.len(),
            is_tuned: is_finite(&self.base[index]),
        }))
    }
}

struct DecodeTile<'a, R> {
    tile: &'a mut Matrices<R>,
    matrix: &'a HeadMatrix<'a>,
    columns: &'a Range<usize>,
}

impl<R: Real> Kernel for DecodeTile<'_, R> {
    type Output = Magnitudes;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> Magnitudes {
        let Self { tile: Matrices { base, tuned, delta }, matrix, columns } = self;
        for row in 0..matrix.rows() {
            let start = row * matrix.columns;
            let entries = start + columns.start..start + columns.end;
            let place = row * columns.len()..(row + 1) * columns.len();
            matrix.base.decode(entries.clone(), &mut base[place.clone()]);
            matrix.tuned.decode(entries, &mut tuned[place]);
        }
        for ((delta, tuned), base) in delta.iter_mut().zip(&*tuned).zip(&*base) {
            *delta = *tuned - *base;
        }
        let zero = R::Lanes::<S>::splat(simd, 0.0);
        let (mut largest_base, mut largest_delta, mut sums) = (zero, zero, zero);
        let (base_lanes, base_rest) = base.as_chunks::<LANES>();
        let (delta_lanes, delta_rest) = delta.as_chunks::<LANES>();
        let (mut base_last, mut delta_last) = ([R::default(); LANES], [R::default(); LANES]);
        base_last[..base_rest.len()].copy_from_slice(base_rest);
        delta_last[..delta_rest.len()].copy_from_slice(delta_rest);
        let base_lanes = base_lanes.iter().chain([&base_last]);
        for (base, delta) in base_lanes.zip(delta_lanes.iter().chain([&delta_last])) {
            for part in 0..S::PARTS {
                let base = R::Lanes::<S>::load(simd, base, part);
                let delta = R::Lanes::<S>::load(simd, delta, part);
                largest_base = largest_base.max(base.abs());
                largest_delta = largest_delta.max(delta.abs());
                // A maximum may ignore NaN; a sum does not.
                sums = delta.mul_add(zero, sums);
            }
        }
        let is_finite = sums.to_array().into_iter().all(|sum| sum.to_f64() == 0.0);
        let delta = if is_finite { largest_delta.largest() } else { f64::NAN };
        Magnitudes { base: largest_base.largest(), delta }
    }
}

/// Makes a vector as long as this, with zeros for what it lacked.
fn resize<R: Real>(entries: &mut Vec<R>, length: usize) -> io::Result<()> {
    memory::reserve(entries, length.saturating_sub(entries.len()))?;
    entries.resize(length, R::default());
    Ok(())
}

pub(super) fn tiles(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns).step_by(TILE).map(move |start| start..columns.min(start + TILE))
}

/// A row-major matrix, or its transpose, as a factor of a product.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a, R> {
    entries: &'a [R],
    row_stride: usize,
    column_stride: usize,
}

impl<'a, R> Factor<'a, R> {
    pub(super) fn new(entries: &'a [R], columns: usize) -> Self {
        Self { entries, row_stride: columns, column_stride: 1 }
    }

    pub(super) fn transposed(entries: &'a [R], columns: usize) -> Self {
        Self { entries, row_stride: 1, column_stride: columns }
    }

    pub(super) fn entry(&self, row: usize, column: usize) -> R
    where
        R: Copy,
    {
        self.entries[row * self.row_stride + column * self.column_stride]
    }

    /// Whether a matrix of these sizes stays inside the entries.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        let last = || {
            let row = (rows - 1).checked_mul(self.row_stride)?;
            row.checked_add((columns - 1).checked_mul(self.column_stride)?)
        };
        rows == 0 || columns == 0 || last().is_some_and(|last| last < self.entries.len())
    }
}

/// Adds `left right` to the row-major matrix `out`, [rows, columns], on one thread, since heads are measured in
/// parallel.
fn add_product<R: Real>(out: &mut [R], rows: usize, columns: usize, left: Factor<R>, right: Factor<R>) {
    let inner = left.entries.len() / rows;
    let sizes =
        [(rows, columns), (rows, inner), (inner, columns)].map(|(rows, columns)| rows.checked_mul(columns));
    assert_eq!(sizes, [out.len(), left.entries.len(), right.entries.len()].map(Some));
    assert!(left.holds(rows, inner) && right.holds(inner, columns));
    // SAFETY: each matrix has the number of entries that its sizes require, and its strides stay inside it, as just
    // checked without wrapping; `out` holds numbers, since it is added to, and is borrowed mutably, so it overlaps neither
    // factor. A slice has no more bytes than `isize` holds, so every stride that is used fits into it.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            true,
            left.entries.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.entries.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            R::from_f64(1.0),
            R::from_f64(1.0),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::number_format::Dtype;
    use proptest::prelude::*;

    fn bytes(weights: &[f64]) -> Vec<u8> {
        weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
    }

    /// Computes Q^T (K V^T), an entry at a time.
    fn definition(q: &[f64], k: &[f64], v: &[f64], width: usize) -> Vec<f64> {
        let (rows, values) = (q.len() / width, v.len() / width);
        let mut theta = Vec::new();
        for i in 0..width {
            for j in 0..values {
                let key_value =
                    |row: usize| -> f64 { (0..width).map(|c| k[row * width + c] * v[j * width + c]).sum() };
                theta.push((0..rows).map(|row| q[row * width + i] * key_value(row)).sum());
            }
        }
        theta
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn products_are_those_of_the_definition(
            (rows, values, width) in (1usize..5, 1usize..5, prop_oneof![1usize..9, TILE - 1..TILE + 2]),
            seed in any::<u64>(),
        ) {
            let mut state = seed;
            let mut random = |count: usize| -> Vec<f64> {
                (0..count)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
                    })
                    .collect()
            };
            let [q, k, v] = [rows, rows, values].map(|rows| (random(rows * width), random(rows * width)));
            let stored: Vec<_> = [&q, &k, &v].map(|(base, tuned)| (bytes(base), bytes(tuned))).into();
            let matrix = |index: usize| HeadMatrix {
                base: StoredWeights { dtype: Dtype::F64, bytes: &stored[index].0 },
                tuned: StoredWeights { dtype: Dtype::F64, bytes: &stored[index].1 },
                columns: width,
            };
            let mut shared = KeyValueProduct::default();
            shared.compute(&matrix(1), &matrix(2), Instructions::best()).unwrap();
            let mut product = HeadProduct::new(Instructions::best());
            prop_assert!(product.compute(&matrix(0), &shared).is_ok());
            let Theta { base: found, delta: found_delta } = &product.in_f64.theta;
            let base = definition(&q.0, &k.0, &v.0, width);
            let tuned = definition(&q.1, &k.1, &v.1, width);
            prop_assert_eq!(found.len(), base.len());
            for (entry, (base, tuned)) in base.iter().zip(&tuned).enumerate() {
                prop_assert!((found[entry] - base).abs() <= 1e-12 * width as f64);
                prop_assert!((found_delta[entry] - (tuned - base)).abs() <= 1e-12 * width as f64);
            }
        }
    }

    #[test]
    #[should_panic(expected = "left.holds")]
    fn strides_that_leave_a_factor_are_refused() {
        let entries = [0.0_f64; 6];
        add_product(&mut [0.0; 4], 2, 2, Factor::new(&entries, 5), Factor::new(&entries, 2));
    }
}
