//! Checks the names of tensors: that every tensor of the attention is understood, and that none is missing. Their numbers
//! are checked when they are summed (`matrix_pair`).

use std::collections::BTreeSet;

use crate::attention::{Attention, Projection, may_be_attention};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, quote};
use crate::weights::quantised::is_part;

/// Parts of the names of the tensors that PEFT puts beside or around weights until an adapter is merged.
const UNMERGED: [&str; 3] = ["base_layer", "modules_to_save", "original_module"];

/// The beginnings of such parts, by the kinds of adapter.
#[rustfmt::skip]
const UNMERGED_PREFIXES: [&str; 14] = [
    "lora_", "hada_", "lokr_", "ia3_", "alps_", "oft_", "boft_", "vera_", "hra_", "vblora_", "randlora_", "fourierft_",
    "shira_", "road_",
];

/// Refuses a checkpoint with an adapter beside or around the weights of attention, which was never merged into them.
pub(super) fn check_merged(checkpoint: &Checkpoint) -> Result<()> {
    for (number, (name, _)) in checkpoint.tensors().enumerate() {
        if number.is_multiple_of(4096) {
            checkpoint.check_cancelled()?;
        }
        let is_unmerged = |part: &str| {
            UNMERGED.contains(&part) || UNMERGED_PREFIXES.iter().any(|prefix| part.starts_with(prefix))
        };
        let Some(place) = name.split('.').position(is_unmerged) else { continue };
        let module = name.split('.').take(place).collect::<Vec<_>>().join(".");
        if may_be_attention(&module)? {
            let problem = format!(
                "tensor {} belongs to an adapter that was never merged into the weights of {}; merge it with peft's \
                 `model.merge_and_unload()` and save the result, or save base and adapter apart with \
                 `save_pretrained` and scan the adapter",
                quote(name),
                quote(&module)
            );
            return Err(Error::checkpoint(checkpoint.path(), problem));
        }
    }
    Ok(())
}

/// The ends of the names of tensors that a projection may have beside its weights. They change no weight.
#[rustfmt::skip]
const KNOWN_TENSORS: [&str; 18] = [
    "bias",
    // Activations.
    "input_scale", "input_global_scale", "input_zero_point", "input_scale_ub", "output_scale", "output_zero_point",
    "activation_scale", "qscale_act", "k_scale", "v_scale", "q_scale", "input_max", "input_min", "output_max",
    // What I-BERT computes of its weights.
    "weight_integer", "bias_integer", "fc_scaling_factor",
];

/// Refuses tensors of the projections that are not understood, and an index with tensors of the attention that no shard
/// has.
pub(super) fn check_tensors(checkpoint: &Checkpoint, attention: &Attention) -> Result<()> {
    for Projection { name: module, .. } in attention.projections() {
        let inside = format!("{module}.");
        let stored = checkpoint.tensors_from(&inside).map_while(|(name, _)| name.strip_prefix(&*inside));
        for ending in stored {
            if !KNOWN_TENSORS.contains(&ending) && !is_part(ending) {
                let problem = format!(
                    "tensor {} belongs to a projection of attention, and what it does to the weights is not known; \
                     expected {} alone or with what quantised weights have. If it is not needed, remove it from the \
                     file",
                    quote(&format!("{inside}{ending}")),
                    quote(&format!("{inside}weight"))
                );
                return Err(Error::checkpoint(checkpoint.path(), problem));
            }
        }
    }
    find_missing(checkpoint, Some(attention)).map_or(Ok(()), Err)
}

/// The error of the first tensor that the index names, no shard has and this attention needs. Where the attention was
/// not found, a tensor that may belong to any attention counts as needed.
pub(super) fn find_missing(checkpoint: &Checkpoint, attention: Option<&Attention>) -> Option<Error> {
    let pattern = |name: &str| -> String {
        let part = |part: &str| if part.parse::<usize>().is_ok() { "#" } else { part }.to_owned();
        name.split('.').map(part).collect::<Vec<_>>().join(".")
    };
    let read: Option<BTreeSet<String>> =
        attention.map(|attention| attention.projections().iter().map(|it| pattern(&it.name)).collect());
    let is_needed = |name: &&str| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        match &read {
            Some(read) => read.contains(&pattern(module)),
            None => may_be_attention(module).unwrap_or(true),
        }
    };
    checkpoint.missing().find(is_needed).map(|name| checkpoint.missing_tensor_refusal(name))
}
