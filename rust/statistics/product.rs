//! The `product` form: the weight vector Q_h^T (K_g V_g^T) of a head, of equation 5 of the paper.
//!
//! Its difference cancels twice, so it is formed from differences, never as one product less another:
//! with M = K V^T, dM = dK V_T^T + K_B dV^T and dP = dQ^T M_T + Q_B^T dM. Multiplications are in `f64`,
//! which leaves their rounding far below the precision of a score; the matrices are decoded a few
//! hundred columns at a time, so that no more than stored bytes is held of any of them.

use std::ops::Range;

use gemm::Parallelism;

use super::part::Stored;
use super::softmax::NotFinite;

/// Columns decoded at a time: tiles of two matrices and their product fit a core's cache. Results
/// depend on it in their last bits, so it is fixed.
const TILE: usize = 256;

/// Both sides of one matrix of a head: `rows` rows, as long as the model is wide.
#[derive(Clone, Copy, Debug)]
pub struct MatrixPair<'a> {
    /// The base side.
    pub base: Stored<'a>,
    /// The tuned side.
    pub tuned: Stored<'a>,
    /// The length of a row.
    pub columns: usize,
}

/// Some columns of a [`MatrixPair`], in `f64`.
#[derive(Debug, Default)]
struct Tile {
    base: Vec<f64>,
    tuned: Vec<f64>,
    delta: Vec<f64>,
    rows: usize,
    columns: usize,
}

impl Tile {
    fn load(&mut self, matrix: &MatrixPair, columns: Range<usize>) -> Result<(), NotFinite> {
        self.columns = columns.len();
        self.rows = matrix.base.entries() / matrix.columns;
        self.base.clear();
        self.tuned.clear();
        for row in 0..self.rows {
            let entries = row * matrix.columns + columns.start..row * matrix.columns + columns.end;
            matrix.base.decode_into(entries.clone(), &mut self.base);
            matrix.tuned.decode_into(entries, &mut self.tuned);
        }
        self.delta.clear();
        self.delta.extend(self.tuned.iter().zip(&self.base).map(|(tuned, base)| tuned - base));
        match self.delta.iter().position(|delta| !delta.is_finite()) {
            None => Ok(()),
            Some(index) => Err(NotFinite {
                entry: index / self.columns * matrix.columns + columns.start + index % self.columns,
                tuned: self.base[index].is_finite(),
            }),
        }
    }
}

fn tiles(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns).step_by(TILE).map(move |start| start..columns.min(start + TILE))
}

/// K_g V_g^T of one key/value group, [head size, value size]: what its query heads share.
#[derive(Debug, Default)]
pub struct Middle {
    base: Vec<f64>,
    tuned: Vec<f64>,
    delta: Vec<f64>,
    tiles: [Tile; 2],
}

/// Which of two matrices held something that is not finite.
#[derive(Clone, Copy, Debug)]
pub enum Refused {
    /// The first.
    Key(NotFinite),
    /// The second.
    Value(NotFinite),
}

impl Middle {
    /// Multiplies the key and the value matrix of a group.
    pub fn load(&mut self, key: &MatrixPair, value: &MatrixPair) -> Result<(), Refused> {
        let (rows, columns) = (key.base.entries() / key.columns, value.base.entries() / value.columns);
        for product in [&mut self.base, &mut self.tuned, &mut self.delta] {
            product.clear();
            product.resize(rows * columns, 0.0);
        }
        for range in tiles(key.columns) {
            let [k, v] = &mut self.tiles;
            k.load(key, range.clone()).map_err(Refused::Key)?;
            v.load(value, range).map_err(Refused::Value)?;
            let inner = k.columns;
            add_product(
                &mut self.base,
                rows,
                columns,
                Factor::of(&k.base, inner),
                Factor::transposed(&v.base, inner),
            );
            add_product(
                &mut self.delta,
                rows,
                columns,
                Factor::of(&k.delta, inner),
                Factor::transposed(&v.tuned, inner),
            );
            add_product(
                &mut self.delta,
                rows,
                columns,
                Factor::of(&k.base, inner),
                Factor::transposed(&v.delta, inner),
            );
        }
        for ((tuned, base), delta) in self.tuned.iter_mut().zip(&self.base).zip(&self.delta) {
            *tuned = base + delta;
        }
        Ok(())
    }
}

/// theta of one head in the `product` form, [model width, value size] in row-major order.
#[derive(Debug, Default)]
pub struct Product {
    /// theta_B.
    pub base: Vec<f64>,
    /// theta_T - theta_B.
    pub delta: Vec<f64>,
    tile: Tile,
}

impl Product {
    /// Multiplies a head's query matrix with what its group has prepared.
    pub fn load(&mut self, query: &MatrixPair, middle: &Middle) -> Result<(), NotFinite> {
        let head_size = query.base.entries() / query.columns;
        let value_size = middle.base.len() / head_size;
        for theta in [&mut self.base, &mut self.delta] {
            theta.clear();
            theta.resize(query.columns * value_size, 0.0);
        }
        for range in tiles(query.columns) {
            self.tile.load(query, range.clone())?;
            let Tile { base, delta, columns: width, .. } = &self.tile;
            let rows = range.start * value_size..range.end * value_size;
            let product = |out: &mut [f64], left: &[f64], right: &[f64]| {
                let left = Factor::transposed(left, *width);
                add_product(out, *width, value_size, left, Factor::of(right, value_size));
            };
            product(&mut self.base[rows.clone()], base, &middle.base);
            product(&mut self.delta[rows.clone()], delta, &middle.tuned);
            product(&mut self.delta[rows], base, &middle.delta);
        }
        Ok(())
    }
}

/// A row-major matrix, or its transpose, as a factor of a product.
#[derive(Clone, Copy)]
struct Factor<'a> {
    entries: &'a [f64],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Factor<'a> {
    fn of(entries: &'a [f64], columns: usize) -> Self {
        Self { entries, row_stride: columns, column_stride: 1 }
    }

    fn transposed(entries: &'a [f64], columns: usize) -> Self {
        Self { entries, row_stride: 1, column_stride: columns }
    }
}

/// Adds `left right` to the row-major matrix `out`, [rows, columns]. On one thread: heads are what runs
/// in parallel.
fn add_product(out: &mut [f64], rows: usize, columns: usize, left: Factor, right: Factor) {
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
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
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
            let pair = |index: usize| MatrixPair {
                base: Stored { dtype: Dtype::F64, bytes: &stored[index].0 },
                tuned: Stored { dtype: Dtype::F64, bytes: &stored[index].1 },
                columns: width,
            };
            let (mut middle, mut product) = (Middle::default(), Product::default());
            prop_assert!(middle.load(&pair(1), &pair(2)).is_ok());
            prop_assert!(product.load(&pair(0), &middle).is_ok());
            let base = definition(&q.0, &k.0, &v.0, width);
            let tuned = definition(&q.1, &k.1, &v.1, width);
            prop_assert_eq!(product.base.len(), base.len());
            for (entry, (base, tuned)) in base.iter().zip(&tuned).enumerate() {
                prop_assert!((product.base[entry] - base).abs() <= 1e-12 * width as f64);
                prop_assert!((product.delta[entry] - (tuned - base)).abs() <= 1e-12 * width as f64);
            }
        }
    }
}
