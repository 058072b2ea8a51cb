//! The `product` form: the weight vector Q_h^T (K_g V_g^T) of a head, of equation 5 of the paper.
//!
//! Its difference cancels twice, so it is formed from differences, never as one product less another:
//! with M = K V^T, dM = dK V_T^T + K_B dV^T and dP = dQ^T M_T + Q_B^T dM. The matrices are decoded a few
//! hundred columns at a time, so that no more than stored bytes is held of any of them.
//!
//! The multiplications of large heads are in `f32`, whose rounding errors average out over the many
//! entries, unless changes undo one another over and over: they take half the time, which is nearly all
//! there is. Those of small heads, and of weights so large or small that a product could leave the range
//! of `f32`, are in `f64`.

use std::ops::Range;

use gemm::Parallelism;

use super::precision::MANY;
use super::softmax_sums::NonFiniteEntry;
use super::weight_vector::{StoredWeights, WeightVector};
use crate::number_format::Dtype;
use crate::simd::lanes::Lanes;
use crate::simd::real::Real;
use crate::simd::{Instructions, Kernel, LANES, Vectors};

/// Columns decoded at a time: tiles of two matrices and their product fit a core's cache. Results
/// depend on it in their last bits, so it is fixed.
const TILE: usize = 256;

/// The largest magnitude that is multiplied in `f32`, and one over the smallest.
const NARROW: f64 = (1u64 << 20) as f64;

/// The smallest change that is multiplied in `f32`.
const NARROW_DELTA: f64 = 1.0 / (1u64 << 50) as f64;

/// Both sides of one matrix of a head: `rows` rows, as long as the model is wide.
#[derive(Clone, Copy, Debug)]
pub struct HeadMatrix<'a> {
    /// The base side.
    pub base: StoredWeights<'a>,
    /// The tuned side.
    pub tuned: StoredWeights<'a>,
    /// The length of a row.
    pub columns: usize,
}

impl HeadMatrix<'_> {
    fn rows(&self) -> usize {
        self.base.entries() / self.columns
    }

    fn fits_f32(&self) -> bool {
        self.base.dtype != Dtype::F64 && self.tuned.dtype != Dtype::F64
    }
}

/// Which of two matrices held something that is not finite.
#[derive(Clone, Copy, Debug)]
pub enum NonFiniteMatrix {
    /// The first.
    Key(NonFiniteEntry),
    /// The second.
    Value(NonFiniteEntry),
}

/// K V^T of one key/value group, which its query heads share.
#[derive(Debug)]
pub struct KeyValueProduct(InWidth);

#[derive(Debug)]
enum InWidth {
    Narrow(Sides<f32>),
    Wide(Sides<f64>),
}

impl KeyValueProduct {
    /// Multiplies the key and the value matrix of a group.
    pub fn new(
        key: &HeadMatrix,
        value: &HeadMatrix,
        instructions: Instructions,
    ) -> Result<Self, NonFiniteMatrix> {
        let is_many = key.columns * value.rows() >= MANY;
        if is_many && key.fits_f32() && value.fits_f32() {
            let (narrow, has_room) = Sides::of(key, value, instructions)?;
            if has_room {
                return Ok(Self(InWidth::Narrow(narrow)));
            }
        }
        let (wide, _) = Sides::of(key, value, instructions)?;
        Ok(Self(InWidth::Wide(wide)))
    }
}

/// theta of one head after the other in the `product` form, [model width, value size] in row-major order.
#[derive(Debug)]
pub struct HeadProduct {
    instructions: Instructions,
    narrow: Multiplication<f32>,
    wide: Multiplication<f64>,
    /// Whether theta is in `narrow`.
    is_narrow: bool,
}

impl HeadProduct {
    /// A product of nothing.
    pub fn new(instructions: Instructions) -> Self {
        Self {
            instructions,
            narrow: Multiplication::default(),
            wide: Multiplication::default(),
            is_narrow: false,
        }
    }

    /// Gives back the memory of theta, which the matrices of the next group are read into.
    pub fn free(&mut self) {
        (self.narrow.theta, self.wide.theta) = Default::default();
    }

    /// Multiplies a head's query matrix with what its group shares.
    pub fn compute(
        &mut self,
        query: &HeadMatrix,
        KeyValueProduct(middle): &KeyValueProduct,
    ) -> Result<(), NonFiniteEntry> {
        self.is_narrow = match middle {
            InWidth::Narrow(middle) if query.fits_f32() => {
                self.narrow.load(query, middle, self.instructions)?
            }
            _ => false,
        };
        if !self.is_narrow {
            match middle {
                InWidth::Narrow(middle) => self.wide.load(query, &middle.widened(), self.instructions)?,
                InWidth::Wide(middle) => self.wide.load(query, middle, self.instructions)?,
            };
        }
        Ok(())
    }

    /// theta of the head that was loaded last.
    pub fn weight_vector(&self) -> WeightVector<'_> {
        if self.is_narrow {
            let Theta { base, delta } = &self.narrow.theta;
            WeightVector::F32 { base, delta }
        } else {
            let Theta { base, delta } = &self.wide.theta;
            WeightVector::F64 { base, delta }
        }
    }
}

/// K V^T on both sides, [head size, value size].
#[derive(Debug, Default)]
struct Sides<R> {
    base: Vec<R>,
    tuned: Vec<R>,
    delta: Vec<R>,
}

impl Sides<f32> {
    fn widened(&self) -> Sides<f64> {
        let [base, tuned, delta] =
            [&self.base, &self.tuned, &self.delta].map(|part| part.iter().copied().map(f64::from).collect());
        Sides { base, tuned, delta }
    }
}

impl<R: Real> Sides<R> {
    /// The product, and whether this width has room for the matrices.
    fn of(
        key: &HeadMatrix,
        value: &HeadMatrix,
        instructions: Instructions,
    ) -> Result<(Self, bool), NonFiniteMatrix> {
        let (rows, columns) = (key.rows(), value.rows());
        let [mut base, mut delta] = [(); 2].map(|()| vec![R::default(); rows * columns]);
        let [mut k, mut v] = <[Tile<R>; 2]>::default();
        let (mut of_key, mut of_value) = (Largest::default(), Largest::default());
        for range in tiles(key.columns) {
            of_key.merge(k.load(key, range.clone(), instructions).map_err(NonFiniteMatrix::Key)?);
            of_value.merge(v.load(value, range, instructions).map_err(NonFiniteMatrix::Value)?);
            let of = |entries| Factor::of(entries, k.columns);
            let transposed = |entries| Factor::transposed(entries, k.columns);
            add_product(&mut base, rows, columns, of(&k.base), transposed(&v.base));
            add_product(&mut delta, rows, columns, of(&k.delta), transposed(&v.tuned));
            add_product(&mut delta, rows, columns, of(&k.base), transposed(&v.delta));
        }
        let tuned = base.iter().zip(&delta).map(|(base, delta)| *base + *delta).collect();
        let has_room = !R::IS_NARROW || (of_key.is_narrow() && of_value.is_narrow());
        Ok((Self { base, tuned, delta }, has_room))
    }
}

/// The matrices of a multiplication in one width.
#[derive(Debug, Default)]
struct Multiplication<R> {
    theta: Theta<R>,
    tile: Tile<R>,
}

#[derive(Debug, Default)]
struct Theta<R> {
    base: Vec<R>,
    /// theta_T - theta_B.
    delta: Vec<R>,
}

/// Some columns of a [`HeadMatrix`], decoded.
#[derive(Debug, Default)]
struct Tile<R> {
    base: Vec<R>,
    tuned: Vec<R>,
    delta: Vec<R>,
    rows: usize,
    columns: usize,
}

/// The largest magnitudes of a matrix.
#[derive(Clone, Copy, Debug, Default)]
struct Largest {
    base: f64,
    delta: f64,
}

impl Largest {
    fn merge(&mut self, other: Largest) {
        self.base = self.base.max(other.base);
        self.delta = self.delta.max(other.delta);
    }

    /// Whether `f32` has room for products of such matrices. Zero has no size.
    fn is_narrow(&self) -> bool {
        let base_fits = self.base == 0.0 || (1.0 / NARROW..=NARROW).contains(&self.base);
        base_fits && (self.delta == 0.0 || (NARROW_DELTA..=NARROW).contains(&self.delta))
    }
}

impl<R: Real> Multiplication<R> {
    /// Whether this width has room for the matrix.
    fn load(
        &mut self,
        query: &HeadMatrix,
        Sides { base, tuned, delta }: &Sides<R>,
        instructions: Instructions,
    ) -> Result<bool, NonFiniteEntry> {
        let Self { theta, tile } = self;
        let value_size = base.len() / query.rows();
        for entries in [&mut theta.base, &mut theta.delta] {
            entries.clear();
            entries.resize(query.columns * value_size, R::default());
        }
        let mut largest = Largest::default();
        for range in tiles(query.columns) {
            largest.merge(tile.load(query, range.clone(), instructions)?);
            let rows = range.start * value_size..range.end * value_size;
            let product = |out: &mut [R], left: &[R], right: &[R]| {
                let left = Factor::transposed(left, tile.columns);
                add_product(out, tile.columns, value_size, left, Factor::of(right, value_size));
            };
            product(&mut theta.base[rows.clone()], &tile.base, base);
            product(&mut theta.delta[rows.clone()], &tile.delta, tuned);
            product(&mut theta.delta[rows], &tile.base, delta);
        }
        Ok(!R::IS_NARROW || largest.is_narrow())
    }
}

impl<R: Real> Tile<R> {
    fn load(
        &mut self,
        matrix: &HeadMatrix,
        columns: Range<usize>,
        instructions: Instructions,
    ) -> Result<Largest, NonFiniteEntry> {
        (self.rows, self.columns) = (matrix.rows(), columns.len());
        for side in [&mut self.base, &mut self.tuned, &mut self.delta] {
            side.resize(self.rows * self.columns, R::default());
        }
        let largest = instructions.run(Decode { tile: self, matrix, first: columns.start });
        if largest.base.is_finite() && largest.delta.is_finite() {
            return Ok(largest);
        }
        let is_finite = |number: &R| number.wide().is_finite();
        let index = self.delta.iter().position(|delta| !is_finite(delta)).unwrap_or_default();
        Err(NonFiniteEntry {
            entry: index / self.columns * matrix.columns + columns.start + index % self.columns,
            is_tuned: is_finite(&self.base[index]),
        })
    }
}

struct Decode<'a, R> {
    tile: &'a mut Tile<R>,
    matrix: &'a HeadMatrix<'a>,
    first: usize,
}

impl<R: Real> Kernel for Decode<'_, R> {
    type Output = Largest;

    #[inline(always)]
    fn run<S: Vectors>(self, simd: S) -> Largest {
        let Self { tile: Tile { base, tuned, delta, rows, columns }, matrix, first } = self;
        for row in 0..*rows {
            let entries = row * matrix.columns + first..row * matrix.columns + first + *columns;
            let place = row * *columns..(row + 1) * *columns;
            matrix.base.decode_into(entries.clone(), &mut base[place.clone()]);
            matrix.tuned.decode_into(entries, &mut tuned[place]);
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
            let (base, delta) = (R::Lanes::<S>::load(simd, base), R::Lanes::<S>::load(simd, delta));
            largest_base = largest_base.max(base.abs());
            largest_delta = largest_delta.max(delta.abs());
            // A maximum may pass over what is not a number; a sum does not.
            sums = delta.mul_add(zero, sums);
        }
        let delta = if sums.sum() == 0.0 { largest_delta.largest() } else { f64::NAN };
        Largest { base: largest_base.largest(), delta }
    }
}

fn tiles(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns).step_by(TILE).map(move |start| start..columns.min(start + TILE))
}

/// A row-major matrix, or its transpose, as a factor of a product.
#[derive(Clone, Copy)]
struct Factor<'a, R> {
    entries: &'a [R],
    row_stride: usize,
    column_stride: usize,
}

impl<'a, R> Factor<'a, R> {
    fn of(entries: &'a [R], columns: usize) -> Self {
        Self { entries, row_stride: columns, column_stride: 1 }
    }

    fn transposed(entries: &'a [R], columns: usize) -> Self {
        Self { entries, row_stride: 1, column_stride: columns }
    }
}

/// Adds `left right` to the row-major matrix `out`, [rows, columns]. On one thread: heads are what runs
/// in parallel.
fn add_product<R: Real>(out: &mut [R], rows: usize, columns: usize, left: Factor<R>, right: Factor<R>) {
    let inner = left.entries.len() / rows;
    assert!(out.len() == rows * columns && left.entries.len() == rows * inner);
    assert!(right.entries.len() == inner * columns);
    // SAFETY: each matrix has as many entries as its sizes say, which was just checked, and strides that
    // stay inside it; `out` is borrowed mutably, so it overlaps neither factor.
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
            R::of(1.0),
            R::of(1.0),
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

    /// Q^T (K V^T), an entry at a time.
    fn definition(q: &[f64], k: &[f64], v: &[f64], width: usize) -> Vec<f64> {
        let (rows, values) = (q.len() / width, v.len() / width);
        let mut theta = Vec::new();
        for i in 0..width {
            for j in 0..values {
                let middle =
                    |row: usize| -> f64 { (0..width).map(|c| k[row * width + c] * v[j * width + c]).sum() };
                theta.push((0..rows).map(|row| q[row * width + i] * middle(row)).sum());
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
            let pair = |index: usize| HeadMatrix {
                base: StoredWeights { dtype: Dtype::F64, bytes: &stored[index].0 },
                tuned: StoredWeights { dtype: Dtype::F64, bytes: &stored[index].1 },
                columns: width,
            };
            let middle = KeyValueProduct::new(&pair(1), &pair(2), Instructions::best()).unwrap();
            let mut product = HeadProduct::new(Instructions::best());
            prop_assert!(product.compute(&pair(0), &middle).is_ok());
            let Theta { base: found, delta: found_delta } = &product.wide.theta;
            let base = definition(&q.0, &k.0, &v.0, width);
            let tuned = definition(&q.1, &k.1, &v.1, width);
            prop_assert_eq!(found.len(), base.len());
            for (entry, (base, tuned)) in base.iter().zip(&tuned).enumerate() {
                prop_assert!((found[entry] - base).abs() <= 1e-12 * width as f64);
                prop_assert!((found_delta[entry] - (tuned - base)).abs() <= 1e-12 * width as f64);
            }
        }
    }
}
