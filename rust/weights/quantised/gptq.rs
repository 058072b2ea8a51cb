//! Opens GPTQ: integers of a few bits packed down the input features, scaled by groups of them.

use safetensors::Dtype;

use super::bit_field::words;
use super::input_groups::InputGroups;
use super::input_major::{InputMajorMatrix, WordPacking};
use super::method::GptqConfig;
use super::tensor::StoredTensor;
use super::{QuantisedModule, Scheme};
use crate::error::Result;

/// Opens the module whose codes are `codes`, I32 [words, out].
pub(super) fn open(
    module: &QuantisedModule<'_>,
    codes: StoredTensor,
    config: &GptqConfig,
) -> Result<(Scheme, InputMajorMatrix)> {
    let format = config.format();
    // AutoGPTQ stores zero points minus 1, the second version of GPTQModel stores them unchanged.
    let zero_point_offset = match &*format {
        "gptq" => 1,
        "gptq_v2" => 0,
        other => return Err(module.unsupported(format!("is packed in the format `{other}` of GPTQ"))),
    };
    codes.check_dtype(Dtype::I32)?;
    let [packed, out] = codes.matrix()?;
    let order = module.tensor("g_idx");
    let is_overridden = config.dynamic.as_ref().is_some_and(|dynamic| !dynamic.is_empty());
    // Codes fill words without gaps: 32 input features take as many words as a code has bits.
    let inputs = match &order {
        Some(order) => order.shape().first().copied().unwrap_or_default(),
        None => packed.saturating_mul(32) / config.bits.max(1),
    };
    let bits = [2, 3, 4, 8].into_iter().find(|bits| Some(packed * 32) == inputs.checked_mul(*bits));
    let Some(bits) = bits.filter(|bits| *bits == config.bits || is_overridden) else {
        return Err(codes.refusal(format!(
            "has {packed} words for {inputs} input features; expected as many as codes of `bits` {} need (2, 3, 4 or \
             8; {})",
            config.bits, module.config.source
        )));
    };
    let features = [out, inputs];
    let size = (!is_overridden).then_some(config.group_size);
    let groups = InputGroups::new(module.require("scales")?, features, size, order)?;
    let zero_points = module.require("qzeros")?;
    let reason = format!("{} groups, {out} codes of {bits} bits", groups.count);
    zero_points.check(Dtype::I32, &[groups.count, words(out, bits)], &reason)?;
    let packing = WordPacking::Gptq { bits, zero_point_offset };
    Ok((Scheme::Gptq { bits }, InputMajorMatrix { codes, zero_points, groups, packing, features }))
}
