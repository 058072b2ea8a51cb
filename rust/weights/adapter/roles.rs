//! Finds the weights of an attention module that has another name, or a tensor of its own, only when it runs.
//!
//! Since version 5, transformers renames and splits tensors when it loads a model: ViT's
//! `encoder.layer.0.attention.attention.query` becomes `layers.0.attention.q_proj`, and queries, keys and values
//! that are one tensor on disk become three. What is left in common is the layer's number and the role.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::attention::{Attention, Module, Orientation, Role};

/// What stands between a layer's number and the name of a projection of its self-attention.
const SELF_ATTENTION: [&str; 6] = ["attention", "attn", "mixer", "self", "self_attention", "self_attn"];

/// Words before a layer's number that name no part of a model.
const LAYERS: [&str; 7] = ["block", "blocks", "encoder", "h", "layer", "layers", "model"];

/// The module of the base, and its rows, that a module of the running model stands for, if that is certain.
pub(super) fn find<'a>(attention: &'a Attention, name: &str) -> Option<(&'a Module, Range<usize>)> {
    let (prefix, number, within) = around_layer(name)?;
    let [middle @ .., last] = &within[..] else { return None };
    let role = match *last {
        "q_proj" | "query" | "query_proj" | "q" => Role::Query,
        "k_proj" | "key" | "key_proj" | "k" => Role::Key,
        "v_proj" | "value" | "value_proj" | "v" => Role::Value,
        _ => return None,
    };
    let index = attention.geometry().layers.iter().position(|layer| layer.number == number)?;
    let count = attention.geometry().layers[index].count(role);
    let slices: Vec<_> = (0..count).map_while(|matrix| attention.slice(role, index, matrix)).collect();
    let (first, last) = (slices.first()?, slices.last()?);
    let (on_disk, same_number, _) = around_layer(&first.module.name)?;
    let certain = same_number == number
        && (prefix.is_subset(&on_disk) || on_disk.is_subset(&prefix))
        && middle.iter().all(|part| SELF_ATTENTION.contains(part))
        && slices.windows(2).all(|pair| pair[0].rows.end == pair[1].rows.start)
        && first.module.orientation == Orientation::OutIn;
    certain.then_some((first.module, first.rows.start..last.rows.end))
}

/// The number of the layer, if there is only one number in the name, with what stands before and after it.
fn around_layer(name: &str) -> Option<(BTreeSet<&str>, usize, Vec<&str>)> {
    let parts: Vec<&str> = name.split('.').collect();
    let mut numbers = parts.iter().enumerate().filter_map(|(place, part)| Some((place, part.parse().ok()?)));
    let (place, number) = numbers.next()?;
    if numbers.next().is_some() {
        return None;
    }
    let before = parts[..place].iter().copied().filter(|part| !LAYERS.contains(part)).collect();
    Some((before, number, parts[place + 1..].to_vec()))
}
