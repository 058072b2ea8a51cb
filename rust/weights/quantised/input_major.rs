//! Reads weights whose codes are stored [in, out], several in a 32-bit word, with scales for groups of input features.

use std::ops::Range;

use super::bit_field::{bit_field, words};
use super::input_groups::InputGroups;
use super::tensor::StoredTensor;
use crate::checkpoint::ByteRange;
use crate::error::Result;
use crate::weights::{WeightMatrix, assert_fits};

/// Weights (code - zero point) * scale, with the scale and zero point of the input feature's group.
#[derive(Debug)]
pub(super) struct InputMajorMatrix {
    /// I32 [words, out] or [in, words].
    pub(super) codes: StoredTensor,
    /// I32 [groups, words].
    pub(super) zero_points: StoredTensor,
    pub(super) groups: InputGroups,
    pub(super) packing: WordPacking,
    /// The out and in features of the weights.
    pub(super) features: [usize; 2],
}

/// How codes and zero points are packed into words.
#[derive(Clone, Copy, Debug)]
pub(super) enum WordPacking {
    /// Codes are packed down the input features, zero points across the output features, both in order.
    Gptq {
        bits: usize,
        /// The number that was subtracted from zero points before they were stored.
        zero_point_offset: u32,
    },
    /// Codes and zero points of 4 bits are packed across the output features, in the order of [`AWQ_ORDER`].
    Awq,
}

/// The positions of the codes of eight output features in a word, counted by 4 bits from the lowest.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The number of input features that are read before they are written row by row: their weights fill a cache line.
const AWQ_STEP: usize = 16;

/// The largest number of input features that are read before they are written: 32 codes of 3 bits.
const LARGEST_STEP: usize = 32;

impl WordPacking {
    fn bits(self) -> usize {
        match self {
            WordPacking::Gptq { bits, .. } => bits,
            WordPacking::Awq => 4,
        }
    }

    /// The words that hold what is packed across these output features.
    fn words_across(self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.bits() / 32..words(rows.end, self.bits())
    }

    /// The code of output feature `row`, packed across the output features, in words of which the first is `first`.
    fn code_across(self, words: &[u32], first: usize, row: usize) -> u32 {
        let start = match self {
            WordPacking::Gptq { bits, .. } => row * bits,
            WordPacking::Awq => row / 8 * 32 + AWQ_ORDER[row % 8] * 4,
        };
        bit_field(|word| words[word - first], start, self.bits())
    }

    /// The value of a stored zero point.
    fn zero_point(self, stored: u32) -> f32 {
        match self {
            // A zero point of 0 minus 1 is stored as all bits.
            WordPacking::Gptq { bits, zero_point_offset } => {
                ((stored + zero_point_offset) & ((1 << bits) - 1)) as f32
            }
            WordPacking::Awq => stored as f32,
        }
    }
}

impl InputMajorMatrix {
    /// Reads the zero points of these output features: groups x rows.
    fn read_zero_points(&self, rows: &Range<usize>, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        let (packing, range) = (self.packing, self.packing.words_across(rows));
        let across = self.zero_points.shape()[1];
        let mut zero_points = Vec::with_capacity(self.groups.count * rows.len());
        let mut words = Vec::new();
        for group in 0..self.groups.count {
            words.clear();
            let start = group * across;
            self.zero_points.read_words(start + range.start..start + range.end, scratch, &mut words)?;
            let stored = rows.clone().map(|row| packing.code_across(&words, range.start, row));
            zero_points.extend(stored.map(|stored| packing.zero_point(stored)));
        }
        Ok(zero_points)
    }
}

impl WeightMatrix for InputMajorMatrix {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        let across = self.packing.words_across(&rows).len();
        let columns = if matches!(self.packing, WordPacking::Awq) { across } else { rows.len() };
        let words = self.codes.shape()[0] * columns + self.groups.count * across;
        words as u64 * 4 + self.groups.stored_bytes(rows.len())
    }

    fn covering_ranges(&self, _rows: Range<usize>) -> Vec<ByteRange<'_>> {
        let groups = self.groups.tensors();
        [&self.codes, &self.zero_points].into_iter().chain(groups).filter_map(StoredTensor::whole).collect()
    }

    fn is_scattered(&self) -> bool {
        true
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let (inputs, count, packing) = (self.features[1], rows.len(), self.packing);
        assert_fits(self, &rows, into);
        let scales = self.groups.read_scales(&rows, scratch)?;
        let zero_points = self.read_zero_points(&rows, scratch)?;
        let groups = self.groups.read_groups(scratch)?;

        let [lines, across] = [self.codes.shape()[0], self.codes.shape()[1]];
        let (columns, lines_in_step, step) = match packing {
            WordPacking::Gptq { bits, .. } => {
                // The fewest lines of words that end where a code ends.
                let lines_in_step = if bits == 3 { 3 } else { 1 };
                (rows.clone(), lines_in_step, lines_in_step * 32 / bits)
            }
            WordPacking::Awq => (packing.words_across(&rows), AWQ_STEP, AWQ_STEP),
        };
        let (mut words, mut codes) = (Vec::new(), [0.0; LARGEST_STEP]);
        for (place, groups) in groups.chunks(step).enumerate() {
            words.clear();
            for line in place * lines_in_step..lines.min((place + 1) * lines_in_step) {
                let start = line * across;
                self.codes.read_words(start + columns.start..start + columns.end, scratch, &mut words)?;
            }
            let first = place * step * 4;
            for (index, (row, into)) in rows.clone().zip(into.chunks_exact_mut(inputs * 4)).enumerate() {
                let codes = &mut codes[..groups.len()];
                match packing {
                    WordPacking::Gptq { bits, .. } => {
                        let word = |line: usize| words[line * count + index];
                        for (input, code) in codes.iter_mut().enumerate() {
                            *code = bit_field(word, input * bits, bits) as f32;
                        }
                    }
                    WordPacking::Awq => {
                        for (code, words) in codes.iter_mut().zip(words.chunks_exact(columns.len())) {
                            *code = packing.code_across(words, columns.start, row) as f32;
                        }
                    }
                }
                let into = into[first..].as_chunks_mut::<4>().0;
                for ((into, group), code) in into.iter_mut().zip(groups).zip(codes) {
                    let at = group * count + index;
                    *into = ((*code - zero_points[at]) * scales[at]).to_le_bytes();
                }
            }
        }
        Ok(())
    }
}
