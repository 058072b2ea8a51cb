//! The rows of a weight matrix as an adapter changes them; those of LoRA are rows of W + s B A.

use std::ops::Range;
use std::sync::Arc;

use super::factors::{FactorMatrix, FactorStore, FactorTensor};
use crate::Result;
use crate::checkpoint::ByteRange;
use crate::error::quote;
use crate::number_format::Dtype;
use crate::simd::Instructions;
use crate::weights::{WeightMatrix, assert_fits};

/// A weight matrix of the base with an adapter's changes to it.
#[derive(Debug)]
pub(super) struct AdaptedMatrix {
    pub(super) base: Box<dyn WeightMatrix>,
    /// The changes to ranges of rows, which cover all rows in ascending order.
    pub(super) changes: Vec<(Range<usize>, RowChange)>,
    pub(super) factors: Arc<FactorStore>,
}

/// The change to some rows of the weights W.
#[derive(Debug)]
pub(super) enum RowChange {
    /// W itself, in the number format of changed weights.
    Unchanged,
    /// W + scale * delta. With a magnitude for each row, every row is then scaled to that length.
    Add { delta: WeightDelta, scale: f64, magnitude: Option<FactorTensor> },
    /// Each row times a number of its own.
    ScaleRows(FactorTensor),
    /// Each column times a number of its own.
    ScaleColumns(FactorTensor),
    /// Some rows replaced. `sources` gives for every row the row of `rows` that replaces it, if any.
    Replace { rows: Box<dyn WeightMatrix>, sources: Vec<Option<usize>> },
}

/// The matrix that is scaled and added to the weights.
#[derive(Debug)]
pub(super) enum WeightDelta {
    Matrix(FactorMatrix),
    /// The product of two matrices entry by entry.
    Hadamard(FactorMatrix, FactorMatrix),
    Kronecker(FactorMatrix, FactorMatrix),
}

impl WeightDelta {
    /// The tensors that it is made of.
    fn tensors(&self) -> impl Iterator<Item = &FactorTensor> {
        let (first, second) = match self {
            WeightDelta::Matrix(matrix) => (matrix, None),
            WeightDelta::Hadamard(first, second) | WeightDelta::Kronecker(first, second) => {
                (first, Some(second))
            }
        };
        first.tensors().chain(second.into_iter().flat_map(FactorMatrix::tensors))
    }

    fn read_rows(&self, factors: &FactorStore, rows: Range<usize>) -> Result<Vec<f32>> {
        match self {
            WeightDelta::Matrix(matrix) => matrix.read_rows(factors, rows),
            WeightDelta::Hadamard(first, second) => {
                let mut product = first.read_rows(factors, rows.clone())?;
                for (first, second) in product.iter_mut().zip(second.read_rows(factors, rows)?) {
                    *first *= second;
                }
                Ok(product)
            }
            WeightDelta::Kronecker(first, second) => {
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

impl AdaptedMatrix {
    /// The parts of these rows that are changed alike.
    fn split(&self, rows: Range<usize>) -> impl Iterator<Item = ChangedRows<'_>> {
        self.changes.iter().filter_map(move |(of, change)| {
            let (change_start, rows) = (of.start, rows.start.max(of.start)..rows.end.min(of.end));
            (!rows.is_empty()).then(|| ChangedRows {
                matrix: self,
                change,
                change_start,
                rows: rows.start - change_start..rows.end - change_start,
            })
        })
    }
}

/// Rows of an adapted matrix that are subject to the same change.
struct ChangedRows<'a> {
    matrix: &'a AdaptedMatrix,
    change: &'a RowChange,
    /// The first row that is subject to the change.
    change_start: usize,
    /// The rows, counted from `change_start`.
    rows: Range<usize>,
}

impl ChangedRows<'_> {
    /// The rows of the base.
    fn base_rows(&self) -> Range<usize> {
        self.change_start + self.rows.start..self.change_start + self.rows.end
    }

    /// Fills `into` with the changed rows.
    fn read(&self, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let (factors, columns, first) = (&*self.matrix.factors, self.matrix.in_features(), self.rows.start);
        let rows = || self.rows.clone();
        match self.change {
            RowChange::Unchanged => self.read_with(into, scratch, |_, _| Ok(())),
            RowChange::Add { delta, scale, magnitude } => {
                let delta = delta.read_rows(factors, rows())?;
                let lengths =
                    magnitude.as_ref().map(|lengths| lengths.read_rows(factors, rows())).transpose()?;
                self.read_with(into, scratch, |row, weights| {
                    let place = row - first;
                    let delta = &delta[place * columns..(place + 1) * columns];
                    for (weight, delta) in weights.iter_mut().zip(delta) {
                        *weight += scale * f64::from(*delta);
                    }
                    let Some(lengths) = &lengths else { return Ok(()) };
                    let length = weights.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
                    if length == 0.0 {
                        return Err(factors.refusal(format!(
                            "{} gives row {row} a length, but all weights of that row are 0",
                            magnitude.as_ref().map_or_else(String::new, |lengths| quote(&lengths.name))
                        )));
                    }
                    let factor = f64::from(lengths[place]) / length;
                    weights.iter_mut().for_each(|weight| *weight *= factor);
                    Ok(())
                })
            }
            RowChange::ScaleRows(by) => {
                let by = by.read_rows(factors, rows())?;
                self.read_with(into, scratch, |row, weights| {
                    let by = f64::from(by[row - first]);
                    weights.iter_mut().for_each(|weight| *weight *= by);
                    Ok(())
                })
            }
            RowChange::ScaleColumns(by) => {
                let by = by.read(factors)?;
                self.read_with(into, scratch, |_, weights| {
                    for (weight, by) in weights.iter_mut().zip(&*by) {
                        *weight *= f64::from(*by);
                    }
                    Ok(())
                })
            }
            RowChange::Replace { rows: others, sources } => {
                self.read_with(into, scratch, |_, _| Ok(()))?;
                let (from, to) = (others.dtype(), self.matrix.dtype());
                let mut weights = vec![0.0; columns];
                let mut stored = Vec::new();
                for (place, run) in runs(&sources[rows()]) {
                    stored.resize(run.len() * columns * from.size(), 0);
                    others.read_rows(run, &mut stored, scratch)?;
                    let into = into[place * columns * to.size()..].chunks_exact_mut(columns * to.size());
                    for (stored, into) in stored.chunks_exact(columns * from.size()).zip(into) {
                        from.decode(stored, &mut weights);
                        to.encode(&weights, into);
                    }
                }
                Ok(())
            }
        }
    }

    /// Fills `into` with the rows of the base, each changed by `change`.
    fn read_with(
        &self,
        into: &mut [u8],
        scratch: &mut Vec<u8>,
        change: impl Fn(usize, &mut [f64]) -> Result<()>,
    ) -> Result<()> {
        let (base, columns) = (&self.matrix.base, self.matrix.in_features());
        let (from, to) = (base.dtype(), self.matrix.dtype());
        let (stored_length, length) = (columns * from.size(), columns * to.size());
        // The stored rows are read into the tail of `into`. They are no longer than the changed rows, so each is
        // decoded before a changed row overwrites it.
        let start = into.len() - self.rows.len() * stored_length;
        base.read_rows(self.base_rows(), &mut into[start..], scratch)?;
        let mut weights = vec![0.0; columns];
        for (place, row) in self.rows.clone().enumerate() {
            let stored = start + place * stored_length;
            Instructions::best().run_loops(
                #[inline(always)]
                || {
                    from.decode(&into[stored..stored + stored_length], &mut weights);
                    change(row, &mut weights)?;
                    to.encode(&weights, &mut into[place * length..(place + 1) * length]);
                    Ok(())
                },
            )?;
        }
        Ok(())
    }
}

impl WeightMatrix for AdaptedMatrix {
    fn features(&self) -> [usize; 2] {
        self.base.features()
    }

    /// `F64` over a base in `F64`, whose weights `F32` would round, else `F32`.
    fn dtype(&self) -> Dtype {
        match self.base.dtype() {
            Dtype::F64 => Dtype::F64,
            _ => Dtype::F32,
        }
    }

    /// The bytes of the base. Those of the adapter are few beside them.
    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        self.split(rows).map(|part| self.base.stored_bytes(part.base_rows())).sum()
    }

    fn covering_ranges(&self, rows: Range<usize>) -> Vec<ByteRange<'_>> {
        let mut ranges = Vec::new();
        for part in self.split(rows) {
            ranges.extend(self.base.covering_ranges(part.base_rows()));
            let tensors: Vec<&FactorTensor> = match part.change {
                RowChange::Unchanged => vec![],
                RowChange::Add { delta, magnitude, .. } => delta.tensors().chain(magnitude).collect(),
                RowChange::ScaleRows(by) | RowChange::ScaleColumns(by) => vec![by],
                RowChange::Replace { rows: others, sources } => {
                    let runs = runs(&sources[part.rows.clone()]);
                    ranges.extend(runs.into_iter().flat_map(|(_, run)| others.covering_ranges(run)));
                    vec![]
                }
            };
            ranges.extend(tensors.iter().filter_map(|tensor| self.factors.whole(&tensor.name)));
        }
        ranges
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        assert_fits(self, &rows, into);
        let row_bytes = self.in_features() * self.dtype().size();
        let mut rest = into;
        for part in self.split(rows) {
            let (into, after) = rest.split_at_mut(part.rows.len() * row_bytes);
            part.read(into, scratch)?;
            rest = after;
        }
        Ok(())
    }
}

/// The runs of replaced rows whose replacements follow each other as well: the position of the first row, and the
/// replacements.
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
