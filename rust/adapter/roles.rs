//! Finds the weights of an attention module that has another name, or a tensor of its own, only when it runs.
//!
//! Since version 5, transformers renames and splits tensors when it loads a model: ViT's
//! `encoder.layer.0.attention.attention.query` becomes `layers.0.attention.q_proj`, and queries, keys and values
//! that are one tensor on disk become three. What is left in common is the layer's number and the role.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::model::{Attention, Module, Orientation, Role};

/// The module of the base, and its rows, that a module of the running model stands for, if that is certain.
pub(super) fn find<'a>(attention: &'a Attention, name: &str) -> Option<(&'a Module, Range<usize>)> {
    let role = match name.rsplit('.').next()? {
        "q_proj" | "query" | "query_proj" | "q" => Role::Query,
        "k_proj" | "key" | "key_proj" | "k" => Role::Key,
        "v_proj" | "value" | "value_proj" | "v" => Role::Value,
        _ => return None,
    };
    let (prefix, number) = layer(name)?;
    let index = attention.geometry().layers.iter().position(|layer| layer.number == number)?;
    let count = attention.geometry().layers[index].count(role);
    let slices: Vec<_> = (0..count).map_while(|matrix| attention.slice(role, index, matrix)).collect();
    let (first, last) = (slices.first()?, slices.last()?);
    let contiguous = slices.windows(2).all(|pair| pair[0].rows.end == pair[1].rows.start);
    let (on_disk, same_number) = layer(&first.module.name)?;
    let alike = prefix.is_subset(&on_disk) || on_disk.is_subset(&prefix);
    (contiguous && alike && same_number == number && first.module.orientation == Orientation::OutIn)
        .then_some((first.module, first.rows.start..last.rows.end))
}

/// The number of the layer, if there is only one number in the name, and what stands before it, but for words
/// that name no part of a model.
fn layer(name: &str) -> Option<(BTreeSet<&str>, usize)> {
    const WORDS: [&str; 7] = ["block", "blocks", "encoder", "h", "layer", "layers", "model"];
    let mut numbers =
        name.split('.').enumerate().filter_map(|(place, part)| Some((place, part.parse().ok()?)));
    let (place, number) = numbers.next()?;
    let prefix = name.split('.').take(place).filter(|part| !WORDS.contains(part)).collect();
    numbers.next().is_none().then_some((prefix, number))
}
