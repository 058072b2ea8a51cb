//! The rows of a linear layer as an adapter changes them.

use std::ops::Range;
use std::sync::Arc;

use super::matrix::{Factors, Matrix, Stored};
use crate::Result;
use crate::error::quote;
use crate::number_format::Dtype;
use crate::simd::Instructions;
use crate::weights::WeightMatrix;

/// A linear layer with what an adapter makes of it.
#[derive(Debug)]
pub(super) struct Changed {
    base: Box<dyn WeightMatrix>,
    change: Change,
    factors: Arc<Factors>,
}

/// What becomes of W.
#[derive(Debug)]
pub(super) enum Change {
    /// W itself, in the number format of what is changed.
    None,
    /// W + scale * delta; where there is a magnitude for each row, every row of that is brought to it.
    Add { delta: Delta, scale: f64, magnitude: Option<Stored> },
    /// Each row times a number of its own.
    ScaleRows(Stored),
    /// Each column times a number of its own.
    ScaleColumns(Stored),
    /// Rows replaced by those of another layer: for every row, which, if any.
    Rows { rows: Box<dyn WeightMatrix>, sources: Vec<Option<usize>> },
}

/// What is added, before it is scaled.
#[derive(Debug)]
pub(super) enum Delta {
    Plain(Matrix),
    /// Entry by entry.
    Hadamard(Matrix, Matrix),
    Kronecker(Matrix, Matrix),
}

impl Delta {
    fn read_rows(&self, factors: &Factors, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Delta::Plain(matrix) => matrix.read_rows(factors, rows),
            Delta::Hadamard(first, second) => {
                let mut product = first.read_rows(factors, rows.clone())?;
                for (first, second) in product.iter_mut().zip(second.read_rows(factors, rows)?) {
                    *first *= second;
                }
                Ok(product)
            }
            Delta::Kronecker(first, second) => {
                let mut product = Vec::with_capacity(rows.len() * first.columns() * second.columns());
                for row in rows {
                    let (of_first, of_second) = (row / second.rows(), row % second.rows());
                    let second = second.read_rows(factors, of_second..of_second + 1)?;
                    for first in first.read_rows(factors, of_first..of_first + 1)? {
                        product.extend(second.iter().map(|second| first * second));
                    }
                }
                Ok(product)
            }
        }
    }
}

impl Changed {
    pub(super) fn new(base: Box<dyn WeightMatrix>, change: Change, factors: Arc<Factors>) -> Self {
        Self { base, change, factors }
    }

    /// Fills `into` with the rows of the base, each as `change` leaves it.
    fn read_changed(
        &self,
        rows: Range<usize>,
        into: &mut [u8],
        scratch: &mut Vec<u8>,
        change: impl Fn(usize, &mut [f64]) -> Result<()>,
    ) -> Result<()> {
        let (from, to) = (self.base.dtype(), self.dtype());
        let (stored_length, length) = (self.in_features() * from.size(), self.in_features() * to.size());
        // The stored rows wait at the end of `into`. They are no longer than what they become, so each has
        // been taken out before it is written over.
        let start = into.len() - rows.len() * stored_length;
        self.base.read_rows(rows.clone(), &mut into[start..], scratch)?;
        let mut weights = vec![0.0; self.in_features()];
        for (place, row) in rows.enumerate() {
            let stored = start + place * stored_length;
            Instructions::best().run_loops(
                #[inline(always)]
                || {
                    from.decode(&into[stored..stored + stored_length], &mut weights);
                    change(row, &mut weights)?;
                    encode(to, &weights, &mut into[place * length..(place + 1) * length]);
                    Ok(())
                },
            )?;
        }
        Ok(())
    }
}

impl WeightMatrix for Changed {
    fn features(&self) -> [usize; 2] {
        self.base.features()
    }

    /// `F32`, or `F64` over a base in `F64`, whose weights `F32` would round.
    fn dtype(&self) -> Dtype {
        match self.base.dtype() {
            Dtype::F64 => Dtype::F64,
            _ => Dtype::F32,
        }
    }

    /// Those of the base: the adapter's own are few beside them.
    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        self.base.stored_bytes(rows)
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let (factors, columns, first) = (&*self.factors, self.in_features(), rows.start);
        match &self.change {
            Change::None => self.read_changed(rows, into, scratch, |_, _| Ok(())),
            Change::Add { delta, scale, magnitude } => {
                let delta = delta.read_rows(factors, rows.clone())?;
                let lengths =
                    magnitude.as_ref().map(|lengths| lengths.read_rows(factors, rows.clone())).transpose()?;
                self.read_changed(rows, into, scratch, |row, weights| {
                    let place = row - first;
                    let delta = &delta[place * columns..(place + 1) * columns];
                    for (weight, delta) in weights.iter_mut().zip(delta) {
                        *weight += scale * f64::from(*delta);
                    }
                    let Some(lengths) = &lengths else { return Ok(()) };
                    let length = weights.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
                    if length == 0.0 {
                        return Err(factors.refuse(format!(
                            "{} gives row {row} a length, but all weights of that row are 0",
                            magnitude.as_ref().map_or_else(String::new, |lengths| quote(&lengths.name))
                        )));
                    }
                    let factor = f64::from(lengths[place]) / length;
                    weights.iter_mut().for_each(|weight| *weight *= factor);
                    Ok(())
                })
            }
            Change::ScaleRows(by) => {
                let by = by.read_rows(factors, rows.clone())?;
                self.read_changed(rows, into, scratch, |row, weights| {
                    let by = f64::from(by[row - first]);
                    weights.iter_mut().for_each(|weight| *weight *= by);
                    Ok(())
                })
            }
            Change::ScaleColumns(by) => {
                let by = by.read(factors)?;
                self.read_changed(rows, into, scratch, |_, weights| {
                    for (weight, by) in weights.iter_mut().zip(&*by) {
                        *weight *= f64::from(*by);
                    }
                    Ok(())
                })
            }
            Change::Rows { rows: others, sources } => {
                self.read_changed(rows.clone(), into, scratch, |_, _| Ok(()))?;
                let (from, to) = (others.dtype(), self.dtype());
                let mut weights = vec![0.0; columns];
                let mut stored = Vec::new();
                for (place, run) in runs(&sources[rows]) {
                    stored.resize(run.len() * columns * from.size(), 0);
                    others.read_rows(run, &mut stored, scratch)?;
                    let into = into[place * columns * to.size()..].chunks_exact_mut(columns * to.size());
                    for (stored, into) in stored.chunks_exact(columns * from.size()).zip(into) {
                        from.decode(stored, &mut weights);
                        encode(to, &weights, into);
                    }
                }
                Ok(())
            }
        }
    }
}

/// Each run of rows that are replaced by rows that follow each other too: its place, and the others.
fn runs(sources: &[Option<usize>]) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for (place, source) in sources.iter().enumerate() {
        let Some(source) = *source else { continue };
        match runs.last_mut() {
            Some((first, run)) if run.end == source && *first + run.len() == place => run.end += 1,
            _ => runs.push((place, source..source + 1)),
        }
    }
    runs
}

/// Writes numbers as `F32` or `F64`.
#[inline(always)]
fn encode(dtype: Dtype, numbers: &[f64], into: &mut [u8]) {
    if dtype == Dtype::F64 {
        for (number, into) in numbers.iter().zip(into.chunks_exact_mut(size_of::<f64>())) {
            into.copy_from_slice(&number.to_le_bytes());
        }
    } else {
        for (number, into) in numbers.iter().zip(into.chunks_exact_mut(size_of::<f32>())) {
            into.copy_from_slice(&(*number as f32).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_replaced_in_runs() {
        let sources = [None, Some(4), Some(5), None, Some(6), Some(0), Some(1)];
        assert_eq!(runs(&sources), [(1, 4..6), (4, 6..7), (5, 0..2)]);
        assert_eq!(runs(&[None]), []);
    }
}
