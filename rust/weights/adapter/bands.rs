//! A layer of which several adapted layers are parts.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::number_format::Dtype;
use crate::weights::WeightMatrix;

/// Some rows of a layer, as a layer.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) whole: Arc<dyn WeightMatrix>,
    pub(super) rows: Range<usize>,
}

impl WeightMatrix for Part {
    fn features(&self) -> [usize; 2] {
        [self.rows.len(), self.whole.in_features()]
    }

    fn dtype(&self) -> Dtype {
        self.whole.dtype()
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        self.whole.stored_bytes(rows.start + self.rows.start..rows.end + self.rows.start)
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        self.whole.read_rows(rows.start + self.rows.start..rows.end + self.rows.start, into, scratch)
    }
}

/// Layers one below the other. All are of one number format.
#[derive(Debug)]
pub(super) struct Bands(pub(super) Vec<Box<dyn WeightMatrix>>);

impl Bands {
    /// Each layer with its first row.
    fn starts(&self) -> impl Iterator<Item = (usize, &dyn WeightMatrix)> {
        self.0.iter().scan(0, |start, band| {
            *start += band.out_features();
            Some((*start - band.out_features(), &**band))
        })
    }

    /// What these rows are of each layer that has some of them.
    fn split(&self, rows: Range<usize>) -> impl Iterator<Item = (&dyn WeightMatrix, Range<usize>)> {
        self.starts().filter_map(move |(start, band)| {
            let within = |row: usize| row.saturating_sub(start).min(band.out_features());
            let part = within(rows.start)..within(rows.end);
            (!part.is_empty()).then_some((band, part))
        })
    }
}

impl WeightMatrix for Bands {
    fn features(&self) -> [usize; 2] {
        [self.0.iter().map(|band| band.out_features()).sum(), self.0[0].in_features()]
    }

    fn dtype(&self) -> Dtype {
        self.0[0].dtype()
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        self.split(rows).map(|(band, part)| band.stored_bytes(part)).sum()
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let row_bytes = self.in_features() * self.dtype().size();
        let mut rest = into;
        for (band, part) in self.split(rows) {
            let (into, after) = rest.split_at_mut(part.len() * row_bytes);
            band.read_rows(part, into, scratch)?;
            rest = after;
        }
        Ok(())
    }
}
