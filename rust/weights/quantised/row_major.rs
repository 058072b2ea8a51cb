//! Reads weights whose codes are stored row after row, with scales for blocks of them.

use std::ops::Range;

use super::bit_field::{bit_field, words};
use super::block_grid::BlockGrid;
use super::tensor::StoredTensor;
use crate::checkpoint::ByteRange;
use crate::error::Result;
use crate::number_format::{CodeFormat, Dtype, E2M1};
use crate::weights::{WeightMatrix, assert_fits};

/// Weights (code - zero point) * (scale * factor / divisor) + bias, with the scale, zero point and bias of the weight's
/// block.
#[derive(Debug)]
pub(super) struct RowMajorMatrix {
    pub(super) codes: StoredTensor,
    pub(super) packing: CodePacking,
    /// The out and in features of the weights.
    pub(super) features: [usize; 2],
    pub(super) scales: BlockGrid,
    pub(super) factor: f32,
    pub(super) divisor: f32,
    pub(super) zero_points: ZeroPoints,
    pub(super) biases: Option<BlockGrid>,
    /// I32 [in]: the block of each column among the blocks across, if columns are not in order.
    pub(super) order: Option<StoredTensor>,
}

impl RowMajorMatrix {
    /// Weights code * scale.
    pub(super) fn new(
        codes: StoredTensor,
        packing: CodePacking,
        features: [usize; 2],
        scales: BlockGrid,
    ) -> Self {
        let (factor, divisor) = (1.0, 1.0);
        let zero_points = ZeroPoints::None;
        Self { codes, packing, features, scales, factor, divisor, zero_points, biases: None, order: None }
    }
}

/// How the codes of a row are packed.
#[derive(Clone, Copy, Debug)]
pub(super) enum CodePacking {
    /// Each code is one number.
    Whole(CodeFormat),
    /// Two codes of the format E2M1 in a byte, the first in the lower half.
    E2m1,
    /// Integers of this many bits, with half of their range below zero. A row begins with a new word.
    Integer(usize),
    /// Integers of this many bits from zero on. A row begins with a new word.
    Unsigned(usize),
}

/// The numbers that are subtracted from the codes of each block.
#[derive(Debug)]
pub(super) enum ZeroPoints {
    None,
    Unpacked(BlockGrid),
    /// I32 [words, blocks across]: packed like the codes, but down the columns. Blocks are one row high.
    Packed(StoredTensor),
}

impl CodePacking {
    /// Bytes of a row of `columns` codes.
    fn row_bytes(self, columns: usize) -> usize {
        match self {
            CodePacking::Whole(format) => columns * format.size(),
            CodePacking::E2m1 => columns.div_ceil(2),
            CodePacking::Integer(bits) | CodePacking::Unsigned(bits) => words(columns, bits) * 4,
        }
    }

    fn decode(self, stored: &[u8], into: &mut [f32]) {
        match self {
            CodePacking::Whole(format) => format.decode(stored, into),
            CodePacking::E2m1 => {
                for (pair, byte) in into.chunks_mut(2).zip(stored) {
                    let nibbles = [byte & 0xf, byte >> 4];
                    pair.iter_mut().zip(nibbles).for_each(|(weight, code)| *weight = E2M1[usize::from(code)]);
                }
            }
            CodePacking::Integer(bits) => decode_fields(stored, bits, into, |field| signed(field, bits)),
            CodePacking::Unsigned(bits) => decode_fields(stored, bits, into, |field| field as f32),
        }
    }
}

/// Decodes fields of this many bits, which follow each other without gaps.
fn decode_fields(stored: &[u8], bits: usize, into: &mut [f32], value: impl Fn(u32) -> f32) {
    let words = stored.as_chunks::<4>().0;
    let word = |place: usize| u32::from_le_bytes(words[place]);
    for (place, weight) in into.iter_mut().enumerate() {
        *weight = value(bit_field(word, place * bits, bits));
    }
}

/// The value of a bit field of this many bits, with half of their range below zero.
fn signed(field: u32, bits: usize) -> f32 {
    field as f32 - (1_u32 << (bits - 1)) as f32
}

impl ZeroPoints {
    /// The rows of words that hold the zero points of these rows.
    fn packed_words(rows: &Range<usize>, bits: usize) -> Range<usize> {
        rows.start * bits / 32..words(rows.end, bits)
    }

    /// Reads the zero points for these rows in the order of the scales; `None` if all are 0.
    fn read(
        &self,
        rows: &Range<usize>,
        across: usize,
        packing: CodePacking,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<Vec<f32>>> {
        match (self, packing) {
            (ZeroPoints::Unpacked(grid), _) => grid.read(rows, scratch, "zero point").map(Some),
            (ZeroPoints::Packed(stored), CodePacking::Integer(bits)) => {
                let range = Self::packed_words(rows, bits);
                let mut words = Vec::new();
                stored.read_words(range.start * across..range.end * across, scratch, &mut words)?;
                let zero_point = |row: usize, block: usize| {
                    let word = |place: usize| words[(place - range.start) * across + block];
                    signed(bit_field(word, row * bits, bits), bits)
                };
                let zero_points = rows.clone().flat_map(|row| (0..across).map(move |block| (row, block)));
                Ok(Some(zero_points.map(|(row, block)| zero_point(row, block)).collect()))
            }
            _ => Ok(None),
        }
    }

    fn stored_bytes(&self, rows: &Range<usize>, across: usize, packing: CodePacking) -> u64 {
        match (self, packing) {
            (ZeroPoints::Unpacked(grid), _) => grid.stored_bytes(rows),
            (ZeroPoints::Packed(_), CodePacking::Integer(bits)) => {
                (Self::packed_words(rows, bits).len() * across * 4) as u64
            }
            _ => 0,
        }
    }
}

impl RowMajorMatrix {
    /// Reads the block of each column among the blocks across; `None` if columns are in order.
    fn read_blocks(&self, scratch: &mut Vec<u8>) -> Result<Option<Vec<usize>>> {
        let Some(order) = &self.order else { return Ok(None) };
        let mut words = Vec::new();
        order.read_words(0..self.features[1], scratch, &mut words)?;
        // Only -1 means that the columns are in order.
        if words.iter().all(|word| *word == u32::MAX) {
            return Ok(None);
        }
        super::input_groups::check_groups(order, &words, self.scales.across()).map(Some)
    }
}

impl WeightMatrix for RowMajorMatrix {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        let codes = (rows.len() * self.packing.row_bytes(self.features[1])) as u64;
        let zero_points = self.zero_points.stored_bytes(&rows, self.scales.across(), self.packing);
        let biases = self.biases.as_ref().map_or(0, |biases| biases.stored_bytes(&rows));
        codes
            + self.scales.stored_bytes(&rows)
            + zero_points
            + biases
            + self.order.as_ref().map_or(0, StoredTensor::length)
    }

    fn covering_ranges(&self, rows: Range<usize>) -> Vec<ByteRange<'_>> {
        let row_bytes = self.packing.row_bytes(self.features[1]);
        let zero_points = match &self.zero_points {
            ZeroPoints::None => None,
            ZeroPoints::Unpacked(grid) => Some(grid.tensor()),
            ZeroPoints::Packed(stored) => Some(stored),
        };
        let biases = self.biases.as_ref().map(BlockGrid::tensor);
        let others = [Some(self.scales.tensor()), zero_points, biases, self.order.as_ref()];
        let others = others.into_iter().flatten().filter_map(StoredTensor::whole);
        self.codes.bytes(rows.start * row_bytes..rows.end * row_bytes).into_iter().chain(others).collect()
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let (columns, across) = (self.features[1], self.scales.across());
        let [block_rows, block_columns] = self.scales.block();
        assert_fits(self, &rows, into);
        let scales = self.scales.read(&rows, scratch, "scale")?;
        let zero_points = self.zero_points.read(&rows, across, self.packing, scratch)?;
        let biases = self.biases.as_ref().map(|biases| biases.read(&rows, scratch, "bias")).transpose()?;
        let blocks = self.read_blocks(scratch)?;
        let first_block = self.scales.rows_of_blocks(&rows).start;

        let row_bytes = self.packing.row_bytes(columns);
        scratch.resize(rows.len() * row_bytes, 0);
        self.codes.read_at((rows.start * row_bytes) as u64, scratch)?;
        let mut weights = vec![0.0; columns];
        let stored = scratch.chunks_exact(row_bytes).zip(into.chunks_exact_mut(columns * 4));
        for (row, (stored, into)) in rows.zip(stored) {
            self.packing.decode(stored, &mut weights);
            let first = (row / block_rows - first_block) * across;
            let of_block = |block: usize| {
                let of = |numbers: &Option<Vec<f32>>| {
                    numbers.as_ref().map_or(0.0, |numbers| numbers[first + block])
                };
                (of(&zero_points), scales[first + block] * self.factor / self.divisor, of(&biases))
            };
            match &blocks {
                Some(blocks) => {
                    for (weight, block) in weights.iter_mut().zip(blocks) {
                        let (zero_point, scale, bias) = of_block(*block);
                        *weight = (*weight - zero_point) * scale + bias;
                    }
                }
                None => {
                    for (block, weights) in weights.chunks_mut(block_columns).enumerate() {
                        let (zero_point, scale, bias) = of_block(block);
                        weights.iter_mut().for_each(|weight| *weight = (*weight - zero_point) * scale + bias);
                    }
                }
            }
            Dtype::F32.encode(&weights, into);
        }
        Ok(())
    }
}
