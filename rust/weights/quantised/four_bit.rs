//! Reads bitsandbytes' nf4 and fp4: codes for a table of 16 values, scaled by blocks of the flattened weights.

use std::ops::Range;

use serde::Deserialize;

use super::method::Method;
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::checkpoint::ByteRange;
use crate::error::{Result, quote, shorten};
use crate::number_format::{CodeFormat, Dtype};
use crate::weights::{WeightMatrix, assert_fits};

/// Weights table\[code\] * scale, with the scale of the weight's block.
#[derive(Debug)]
pub(super) struct FourBitMatrix {
    /// Two codes in a byte, the first in the upper half, row after row without gaps.
    codes: StoredTensor,
    /// The out and in features of the weights.
    features: [usize; 2],
    table: [f32; 16],
    scales: BlockScales,
    /// The number of weights that share a scale.
    block: usize,
}

#[derive(Debug)]
enum BlockScales {
    Unquantised(StoredTensor),
    /// The scales are quantised themselves: scale = table\[code\] * outer scale + offset.
    Nested {
        codes: StoredTensor,
        table: Vec<f32>,
        scales: StoredTensor,
        block: usize,
        offset: f32,
    },
}

/// The parameters of the quantisation, stored as JSON in a tensor of bytes.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: [usize; 2],
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Opens the module whose codes are `codes` and whose scales are `absmax`.
pub(super) fn open(
    module: &QuantisedModule<'_>,
    codes: StoredTensor,
    absmax: StoredTensor,
) -> Result<(Scheme, FourBitMatrix)> {
    let kinds = [("nf4", Scheme::Nf4), ("fp4", Scheme::Fp4)].map(|(kind, scheme)| {
        let state = module.tensor(&format!("weight.quant_state.bitsandbytes__{kind}"));
        state.map(|state| (kind, scheme, state))
    });
    let [(kind, scheme, stored)] = <[_; 1]>::try_from(kinds.into_iter().flatten().collect::<Vec<_>>())
        .map_err(|_| {
            absmax.refusal(
                "should have one tensor `quant_state.bitsandbytes__nf4` or `quant_state.bitsandbytes__fp4` beside \
                 it, but has none or both",
            )
        })?;
    match &module.config.method {
        Method::Unstated => {}
        Method::BitsAndBytes(config) if config.load_in_4bit || !config.load_in_8bit => {}
        _ => return Err(module.contradiction(scheme)),
    }

    let state: QuantState = serde_json::from_slice(&stored.read_small()?).map_err(|error| {
        stored.refusal(format!(
            "should be the quantisation's parameters as JSON: {}",
            shorten(&error.to_string(), 300)
        ))
    })?;
    if state.quant_type != kind {
        return Err(stored
            .refusal(format!("says that `quant_type` is {}; expected `{kind}`", quote(&state.quant_type))));
    }
    let [out, inputs] = state.shape;
    let entries = out.checked_mul(inputs).filter(|entries| *entries > 0);
    let Some(entries) = entries.filter(|entries| entries.div_ceil(2) as u64 == codes.length()) else {
        return Err(codes.refusal(format!(
            "has {} bytes; expected half as many as there are entries in the `shape` {:?} of its quant_state",
            codes.length(),
            state.shape
        )));
    };
    let blocks = |entries: usize, block: usize, key: &str| match block {
        0 => Err(stored.refusal(format!("says that `{key}` is 0; a block cannot be empty"))),
        _ => Ok(entries.div_ceil(block)),
    };
    let count = blocks(entries, state.blocksize, "blocksize")?;
    let table = read_table(&module.require("weight.quant_map")?, 16)?;
    let table = <[f32; 16]>::try_from(table).map_err(|_| stored.refusal("has a table of another length"))?;
    absmax.check_shape(&[count], &format!("{entries} weights in blocks of {}", state.blocksize))?;
    let scales = match (module.tensor("weight.nested_absmax"), state.nested_blocksize, state.nested_offset) {
        (None, None, None) => {
            absmax.check_dtype(safetensors::Dtype::F32)?;
            BlockScales::Unquantised(absmax)
        }
        (Some(scales), Some(block), Some(offset)) => {
            absmax.check_dtype(safetensors::Dtype::U8)?;
            let outer = blocks(count, block, "nested_blocksize")?;
            let reason = format!("{count} scales in blocks of {block}");
            scales.check(safetensors::Dtype::F32, &[outer], &reason)?;
            let offset = offset as f32;
            if !offset.is_finite() {
                return Err(
                    stored.refusal(format!("says that `nested_offset` is {offset}; it has to be finite"))
                );
            }
            let table = read_table(&module.require("weight.nested_quant_map")?, 256)?;
            BlockScales::Nested { codes: absmax, table, scales, block, offset }
        }
        _ => {
            return Err(stored.refusal(
                "should have all or none of `nested_blocksize`, `nested_offset` and a tensor `nested_absmax` beside it",
            ));
        }
    };
    let (features, block) = (state.shape, state.blocksize);
    Ok((scheme, FourBitMatrix { codes, features, table, scales, block }))
}

fn read_table(stored: &StoredTensor, length: usize) -> Result<Vec<f32>> {
    stored.check(safetensors::Dtype::F32, &[length], "a value for each code")?;
    stored.read_finite(CodeFormat::Float(Dtype::F32), 0..length, &mut Vec::new(), "value")
}

impl BlockScales {
    fn read(&self, blocks: Range<usize>, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        match self {
            BlockScales::Unquantised(scales) => scales.read_scales(blocks, scratch),
            BlockScales::Nested { codes, table, scales, block, offset } => {
                let outer = outer_blocks(&blocks, *block);
                let first = outer.start;
                let scales = scales.read_scales(outer, scratch)?;
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
            BlockScales::Unquantised(_) => blocks.len() as u64 * 4,
            BlockScales::Nested { block, .. } => {
                (blocks.len() + outer_blocks(&blocks, *block).len() * 4) as u64
            }
        }
    }
}

fn outer_blocks(blocks: &Range<usize>, size: usize) -> Range<usize> {
    blocks.start / size..blocks.end.div_ceil(size)
}

impl FourBitMatrix {
    /// The positions of these rows among the flattened weights.
    fn entries(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.features[1]..rows.end * self.features[1]
    }
}

impl WeightMatrix for FourBitMatrix {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        let entries = self.entries(&rows);
        let codes = (entries.start / 2..entries.end.div_ceil(2)).len() as u64;
        codes + self.scales.stored_bytes(outer_blocks(&entries, self.block))
    }

    fn covering_ranges(&self, rows: Range<usize>) -> Vec<ByteRange<'_>> {
        let entries = self.entries(&rows);
        let codes = self.codes.bytes(entries.start / 2..entries.end.div_ceil(2));
        let scales = match &self.scales {
            BlockScales::Unquantised(scales) => [scales.whole(), None],
            BlockScales::Nested { codes, scales, .. } => [codes.whole(), scales.whole()],
        };
        codes.into_iter().chain(scales.into_iter().flatten()).collect()
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
