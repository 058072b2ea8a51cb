//! bitsandbytes' nf4 and fp4: codes into a table of 16 values, scaled by blocks of the flattened weights.

use std::ops::Range;

use serde::Deserialize;

use super::config::Method;
use super::number::Number;
use super::stored::Stored;
use super::{Module, Scheme};
use crate::error::{Result, quote, shorten};
use crate::weights::{WeightMatrix, assert_fits};

/// weight = table[code] * scale, with the scale of the block that it is in.
#[derive(Debug)]
pub(super) struct FourBit {
    /// Two codes in a byte, the first in the upper half, row after row without a gap.
    codes: Stored,
    /// Of the weights: out, in.
    features: [usize; 2],
    table: [f32; 16],
    scales: Scales,
    /// Weights that share a scale.
    block: usize,
}

#[derive(Debug)]
enum Scales {
    Plain(Stored),
    /// Quantised themselves: scale = table[code] * outer scale + offset.
    Nested {
        codes: Stored,
        table: Vec<f32>,
        scales: Stored,
        block: usize,
        offset: f32,
    },
}

/// What is not a tensor, stored as JSON in a tensor of bytes.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: [usize; 2],
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// The module whose codes are `codes` and whose scales are `absmax`.
pub(super) fn open(module: &Module<'_>, codes: Stored, absmax: Stored) -> Result<(Scheme, FourBit)> {
    let kinds = [("nf4", Scheme::Nf4), ("fp4", Scheme::Fp4)].map(|(kind, scheme)| {
        let state = module.part(&format!("weight.quant_state.bitsandbytes__{kind}"));
        state.map(|state| (kind, scheme, state))
    });
    let [(kind, scheme, stored)] = <[_; 1]>::try_from(kinds.into_iter().flatten().collect::<Vec<_>>())
        .map_err(|_| {
            absmax.refuse(
                "should have one tensor `quant_state.bitsandbytes__nf4` or `quant_state.bitsandbytes__fp4` beside \
                 it, but has none or both",
            )
        })?;
    match &module.config.method {
        Method::Unstated => {}
        Method::BitsAndBytes(config) if config.load_in_4bit || !config.load_in_8bit => {}
        _ => return Err(module.contradiction(scheme)),
    }

    let state: State = serde_json::from_slice(&stored.read_small()?).map_err(|error| {
        stored.refuse(format!(
            "should be the quantisation's parameters as JSON: {}",
            shorten(&error.to_string(), 300)
        ))
    })?;
    if state.quant_type != kind {
        return Err(stored
            .refuse(format!("says that `quant_type` is {}; expected `{kind}`", quote(&state.quant_type))));
    }
    let [out, inputs] = state.shape;
    let entries = out.checked_mul(inputs).filter(|entries| *entries > 0);
    let Some(entries) = entries.filter(|entries| entries.div_ceil(2) as u64 == codes.length()) else {
        return Err(codes.refuse(format!(
            "has {} bytes; expected half as many as there are entries in the `shape` {:?} of its quant_state",
            codes.length(),
            state.shape
        )));
    };
    let blocks = |entries: usize, block: usize, key: &str| match block {
        0 => Err(stored.refuse(format!("says that `{key}` is 0; a block cannot be empty"))),
        _ => Ok(entries.div_ceil(block)),
    };
    let count = blocks(entries, state.blocksize, "blocksize")?;
    let table = table(&module.require("weight.quant_map")?, 16)?;
    let table = <[f32; 16]>::try_from(table).map_err(|_| stored.refuse("has a table of another length"))?;
    absmax.expect_shape(&[count], &format!("{entries} weights in blocks of {}", state.blocksize))?;
    let scales = match (module.part("weight.nested_absmax"), state.nested_blocksize, state.nested_offset) {
        (None, None, None) => {
            absmax.expect_dtype(safetensors::Dtype::F32)?;
            Scales::Plain(absmax)
        }
        (Some(scales), Some(block), Some(offset)) => {
            absmax.expect_dtype(safetensors::Dtype::U8)?;
            let outer = blocks(count, block, "nested_blocksize")?;
            scales.expect_dtype(safetensors::Dtype::F32)?;
            scales.expect_shape(&[outer], &format!("{count} scales in blocks of {block}"))?;
            let offset = offset as f32;
            if !offset.is_finite() {
                return Err(
                    stored.refuse(format!("says that `nested_offset` is {offset}; it has to be finite"))
                );
            }
            let table = self::table(&module.require("weight.nested_quant_map")?, 256)?;
            Scales::Nested { codes: absmax, table, scales, block, offset }
        }
        _ => {
            return Err(stored.refuse(
                "should have all or none of `nested_blocksize`, `nested_offset` and a tensor `nested_absmax` beside it",
            ));
        }
    };
    let (features, block) = (state.shape, state.blocksize);
    Ok((scheme, FourBit { codes, features, table, scales, block }))
}

fn table(stored: &Stored, length: usize) -> Result<Vec<f32>> {
    stored.expect_dtype(safetensors::Dtype::F32)?;
    stored.expect_shape(&[length], "a value for each code")?;
    stored.read_finite(Number::F32, 0..length, &mut Vec::new(), "value")
}

impl Scales {
    fn read(&self, blocks: Range<usize>, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        match self {
            Scales::Plain(scales) => scales.read_finite(Number::F32, blocks, scratch, "scale"),
            Scales::Nested { codes, table, scales, block, offset } => {
                let outer = outer_blocks(&blocks, *block);
                let first = outer.start;
                let scales = scales.read_finite(Number::F32, outer, scratch, "scale")?;
                scratch.resize(blocks.len(), 0);
                codes.read_at(blocks.start as u64, scratch)?;
                let scale = |(at, code): (usize, &u8)| {
                    table[usize::from(*code)] * scales[at / block - first] + offset
                };
                Ok(blocks.zip(scratch.iter()).map(scale).collect())
            }
        }
    }

    fn stored_bytes(&self, blocks: Range<usize>) -> u64 {
        match self {
            Scales::Plain(_) => blocks.len() as u64 * 4,
            Scales::Nested { block, .. } => (blocks.len() + outer_blocks(&blocks, *block).len() * 4) as u64,
        }
    }
}

fn outer_blocks(blocks: &Range<usize>, size: usize) -> Range<usize> {
    blocks.start / size..blocks.end.div_ceil(size)
}

impl FourBit {
    /// The weights, counted row after row, that these rows are.
    fn entries(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.features[1]..rows.end * self.features[1]
    }
}

impl WeightMatrix for FourBit {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        let entries = self.entries(&rows);
        let codes = (entries.start / 2..entries.end.div_ceil(2)).len() as u64;
        codes + self.scales.stored_bytes(outer_blocks(&entries, self.block))
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let entries = self.entries(&rows);
        assert_fits(self, &rows, into);
        let blocks = outer_blocks(&entries, self.block);
        let first_block = blocks.start;
        let scales = self.scales.read(blocks, scratch)?;

        let first_byte = entries.start / 2;
        scratch.resize(entries.end.div_ceil(2) - first_byte, 0);
        self.codes.read_at(first_byte as u64, scratch)?;
        let into = into.as_chunks_mut::<4>().0;
        for (block, scale) in (first_block..).zip(scales) {
            let table = self.table.map(|value| (value * scale).to_le_bytes());
            let of_block = block * self.block..(block + 1) * self.block;
            for entry in of_block.start.max(entries.start)..of_block.end.min(entries.end) {
                let byte = scratch[entry / 2 - first_byte];
                let code = if entry % 2 == 0 { byte >> 4 } else { byte & 0xf };
                into[entry - entries.start] = table[usize::from(code)];
            }
        }
        Ok(())
    }
}
