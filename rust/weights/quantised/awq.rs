//! AWQ, packed for its GEMM kernel: 4-bit integers, eight output features in a word, out of order.

use std::ops::Range;

use safetensors::Dtype;

use super::columns::Groups;
use super::config::Awq as Config;
use super::stored::Stored;
use super::{Module, Scheme};
use crate::error::Result;
use crate::weights::{WeightMatrix, assert_fits};

/// Codes in a word.
const CODES: usize = 8;

/// Where in a word, counted by 4 bits from the lowest, the codes of eight output features are.
const PLACES: [usize; CODES] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Input features that are read before they are written, row by row: a line of the cache.
const STEP: usize = 16;

/// weight = (code - zero point) * scale, with the scale and zero point of the group of the input feature.
#[derive(Debug)]
pub(super) struct Awq {
    /// I32 [in, words].
    codes: Stored,
    /// I32 [groups, words].
    zero_points: Stored,
    groups: Groups,
    /// Of the weights: out, in.
    features: [usize; 2],
}

/// The module whose codes are `codes`.
pub(super) fn open(module: &Module<'_>, codes: Stored, config: &Config) -> Result<(Scheme, Awq)> {
    let format = config.format();
    if format != "gemm" {
        return Err(module.unsupported(format!("is packed in the format `{format}` of AWQ")));
    }
    if config.bits != 4 {
        return Err(module.unsupported(format!("is quantised by AWQ to {} bits", config.bits)));
    }
    codes.expect_dtype(Dtype::I32)?;
    let [inputs, packed] = codes.matrix()?;
    let features = [packed * CODES, inputs];
    let groups = Groups::new(module.require("scales")?, features, Some(config.group_size), None)?;
    let zero_points = module.require("qzeros")?;
    zero_points.expect_dtype(Dtype::I32)?;
    zero_points
        .expect_shape(&[groups.count, packed], &format!("{} groups, packed like the codes", groups.count))?;
    Ok((Scheme::Awq, Awq { codes, zero_points, groups, features }))
}

/// The words that hold the codes of these output features.
fn words_of(rows: &Range<usize>) -> Range<usize> {
    rows.start / CODES..rows.end.div_ceil(CODES)
}

/// The code of output feature `row` in `words`, of which the first is `first`.
fn code(words: &[u32], first: usize, row: usize) -> f32 {
    ((words[row / CODES - first] >> (PLACES[row % CODES] * 4)) & 0xf) as f32
}

impl WeightMatrix for Awq {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        let words = (self.features[1] + self.groups.count) * words_of(&rows).len();
        words as u64 * 4 + self.groups.stored_bytes(rows.len())
    }

    fn is_scattered(&self) -> bool {
        true
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let [out, inputs] = self.features;
        assert_fits(self, &rows, into);
        let (across, range) = (out / CODES, words_of(&rows));
        let strip = |line: usize| line * across + range.start..line * across + range.end;
        let scales = self.groups.read_scales(&rows, scratch)?;
        let mut words = Vec::new();
        for group in 0..self.groups.count {
            self.zero_points.read_words(strip(group), scratch, &mut words)?;
        }
        let zero_points: Vec<f32> = words
            .chunks_exact(range.len())
            .flat_map(|words| rows.clone().map(|row| code(words, range.start, row)))
            .collect();
        let groups = self.groups.of_inputs(scratch)?;

        for (place, groups) in groups.chunks(STEP).enumerate() {
            words.clear();
            for input in (place * STEP..).take(groups.len()) {
                self.codes.read_words(strip(input), scratch, &mut words)?;
            }
            for (place_of_row, (row, into)) in rows.clone().zip(into.chunks_exact_mut(inputs * 4)).enumerate()
            {
                let into = into[place * STEP * 4..].as_chunks_mut::<4>().0;
                for ((into, group), words) in into.iter_mut().zip(groups).zip(words.chunks_exact(range.len()))
                {
                    let at = group * rows.len() + place_of_row;
                    *into = ((code(words, range.start, row) - zero_points[at]) * scales[at]).to_le_bytes();
                }
            }
        }
        Ok(())
    }
}
