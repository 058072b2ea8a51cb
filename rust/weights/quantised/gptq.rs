//! GPTQ: integers of a few bits packed down the input features, scaled by groups of them.

use std::ops::Range;

use safetensors::Dtype;

use super::columns::Groups;
use super::config::Gptq as Config;
use super::field::{field, words};
use super::stored::Stored;
use super::{Module, Scheme};
use crate::error::Result;
use crate::weights::{WeightMatrix, assert_fits};

/// weight = (code - zero point) * scale, with the scale and zero point of the group of the input feature.
#[derive(Debug)]
pub(super) struct Gptq {
    /// I32 [words, out].
    codes: Stored,
    /// I32 [groups, words].
    zero_points: Stored,
    groups: Groups,
    bits: usize,
    /// Of the weights: out, in.
    features: [usize; 2],
    /// What was taken from the zero points before they were stored.
    less: u32,
}

/// The module whose codes are `codes`.
pub(super) fn open(module: &Module<'_>, codes: Stored, config: &Config) -> Result<(Scheme, Gptq)> {
    let format = config.format();
    // AutoGPTQ stores zero points less one, GPTQModel's second version as they are.
    let less = match &*format {
        "gptq" => 1,
        "gptq_v2" => 0,
        other => return Err(module.unsupported(format!("is packed in the format `{other}` of GPTQ"))),
    };
    codes.expect_dtype(Dtype::I32)?;
    let [packed, out] = codes.matrix()?;
    let order = module.part("g_idx");
    let is_overridden = config.dynamic.as_ref().is_some_and(|dynamic| !dynamic.is_empty());
    // Words hold all their bits: 32 input features take as many words as a code has bits.
    let inputs = match &order {
        Some(order) => order.shape().first().copied().unwrap_or_default(),
        None => packed.saturating_mul(32) / config.bits.max(1),
    };
    let bits = [2, 3, 4, 8].into_iter().find(|bits| Some(packed * 32) == inputs.checked_mul(*bits));
    let Some(bits) = bits.filter(|bits| *bits == config.bits || is_overridden) else {
        return Err(codes.refuse(format!(
            "has {packed} words for {inputs} input features; expected as many as codes of `bits` {} need (2, 3, 4 or \
             8; quantization_config in config.json)",
            config.bits
        )));
    };
    let features = [out, inputs];
    let size = (!is_overridden).then_some(config.group_size);
    let groups = Groups::new(module.require("scales")?, features, size, order)?;
    let zero_points = module.require("qzeros")?;
    zero_points.expect_dtype(Dtype::I32)?;
    let packed_zero_points = [groups.count, words(out, bits)];
    zero_points
        .expect_shape(&packed_zero_points, &format!("{} groups, {out} codes of {bits} bits", groups.count))?;
    Ok((Scheme::Gptq { bits }, Gptq { codes, zero_points, groups, bits, features, less }))
}

impl Gptq {
    /// The words of a group that hold the zero points of these output features.
    fn zero_point_words(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.bits / 32..words(rows.end, self.bits)
    }

    /// The zero points of these output features: groups x rows.
    fn read_zero_points(&self, rows: &Range<usize>, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        let (bits, range) = (self.bits, self.zero_point_words(rows));
        let across = words(self.features[0], bits);
        let mut zero_points = Vec::with_capacity(self.groups.count * rows.len());
        let mut words = Vec::new();
        for group in 0..self.groups.count {
            words.clear();
            let start = group * across;
            self.zero_points.read_words(start + range.start..start + range.end, scratch, &mut words)?;
            let word = |place: usize| words[place - range.start];
            let mask = (1 << bits) - 1; // 0 less one is all bits
            zero_points
                .extend(rows.clone().map(|row| ((field(word, row * bits, bits) + self.less) & mask) as f32));
        }
        Ok(zero_points)
    }
}

impl WeightMatrix for Gptq {
    fn features(&self) -> [usize; 2] {
        self.features
    }

    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        let codes = words(self.features[1], self.bits) * rows.len() * 4;
        let zero_points = self.groups.count * self.zero_point_words(&rows).len() * 4;
        (codes + zero_points) as u64 + self.groups.stored_bytes(rows.len())
    }

    fn is_scattered(&self) -> bool {
        true
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], scratch: &mut Vec<u8>) -> Result<()> {
        let ([out, inputs], bits, count) = (self.features, self.bits, rows.len());
        assert_fits(self, &rows, into);
        let scales = self.groups.read_scales(&rows, scratch)?;
        let zero_points = self.read_zero_points(&rows, scratch)?;
        let groups = self.groups.of_inputs(scratch)?;

        // The fewest rows of words that no code leaves.
        let step = if bits == 3 { 3 } else { 1 };
        let inputs_in_step = step * 32 / bits;
        let mut words = Vec::new();
        for (place, groups) in groups.chunks(inputs_in_step).enumerate() {
            words.clear();
            for packed in place * step..(place + 1) * step {
                self.codes.read_words(
                    packed * out + rows.start..packed * out + rows.end,
                    scratch,
                    &mut words,
                )?;
            }
            let first = place * inputs_in_step;
            for (row, into) in into.chunks_exact_mut(inputs * 4).enumerate() {
                let into = into[first * 4..].as_chunks_mut::<4>().0;
                let word = |place: usize| words[place * count + row];
                for (input, (into, group)) in into.iter_mut().zip(groups).enumerate() {
                    let code = field(word, input * bits, bits) as f32;
                    let at = group * count + row;
                    *into = ((code - zero_points[at]) * scales[at]).to_le_bytes();
                }
            }
        }
        Ok(())
    }
}
