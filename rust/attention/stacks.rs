//! Attention stacks among the names of tensors: layers of one name, but for their number.

use std::collections::{BTreeMap, BTreeSet};

use super::layout_file::{Layout, layouts};
use crate::Result;

/// What a checkpoint, or a live model, holds.
#[derive(Debug, Default)]
pub struct Contents<'a> {
    /// Every stored tensor with its shape.
    pub tensors: BTreeMap<&'a str, &'a [usize]>,
    /// The modules whose weights are not stored as such but computed, with their out and in features. A module
    /// is named as its tensor would be, without `.weight`.
    pub computed: BTreeMap<&'a str, [usize; 2]>,
}

const WEIGHT: &str = ".weight";

impl<'a> Contents<'a> {
    /// The names of everything that may be a matrix, without `.weight`.
    pub(super) fn modules(&self) -> BTreeSet<&'a str> {
        let stored = self.tensors.iter().filter(|(name, shape)| shape.len() > 1 || name.ends_with(WEIGHT));
        let stored = stored.map(|(name, _)| name.strip_suffix(WEIGHT).unwrap_or(name));
        stored.chain(self.computed.keys().copied()).collect()
    }

    /// The stored tensor of a module, unless its weights are computed.
    pub fn tensor(&self, module: &str) -> Option<(&'a str, &'a [usize])> {
        if self.computed.contains_key(module) {
            return None;
        }
        let weight = format!("{module}{WEIGHT}");
        let found = self.tensors.get_key_value(&*weight).or_else(|| self.tensors.get_key_value(module));
        found.map(|(name, shape)| (*name, *shape))
    }
}

/// What stands around the numbers in the names of a stack, and the place of its path in the layout's list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    /// All before the attention's own path, with `#` for each number.
    pub(super) prefix: String,
    pub(super) path: usize,
}

/// The attention of one layer.
#[derive(Debug)]
pub(super) struct Block<'a> {
    /// The names of the modules, by their own names.
    pub(super) modules: BTreeMap<&'a str, &'a str>,
    /// What stands before these: `model.layers.0.self_attn`.
    pub(super) path: &'a str,
}

/// Layers of one pattern, by their numbers: the last of these counts layers, those before it count stages.
pub(super) type Stack<'a> = BTreeMap<Vec<usize>, Block<'a>>;

/// Whether a module of this name may hold attention weights of some layout.
///
/// # Errors
///
/// As of [`layouts`].
pub fn may_be_attention(module: &str) -> Result<bool> {
    let own_names = layouts()?.iter().flat_map(|layout| layout.names.iter().flatten());
    let is_of = |own: &String| module.strip_suffix(&**own).is_some_and(|path| path.ends_with('.'));
    Ok(own_names.into_iter().any(is_of))
}

/// All stacks that are stored in the way of a layout.
pub(super) fn stacks<'a>(
    layout: &Layout,
    modules: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<Pattern, Stack<'a>> {
    let own_names: BTreeSet<&str> = layout.names.iter().flatten().map(|name| &**name).collect();
    let last_parts: BTreeSet<&str> = own_names.iter().map(|name| last_part(name)).collect();
    let mut stacks: BTreeMap<Pattern, Stack<'a>> = BTreeMap::new();
    for module in modules {
        if !last_parts.contains(last_part(module)) {
            continue;
        }
        for own in &own_names {
            let Some(path) = module.strip_suffix(own).and_then(|path| path.strip_suffix('.')) else {
                continue;
            };
            for (index, attention) in layout.attention.iter().enumerate() {
                let Some((layer, mut inner)) = strip_path(path, attention) else { continue };
                let Some((prefix, mut numbers)) = template(layer, &layout.counted) else { continue };
                numbers.append(&mut inner);
                let stack = stacks.entry(Pattern { prefix, path: index }).or_default();
                let block = stack.entry(numbers).or_insert_with(|| Block { modules: BTreeMap::new(), path });
                block.modules.insert(&module[path.len() + 1..], module);
            }
        }
    }
    stacks
}

fn last_part(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// What stands before an attention path, and the numbers within it.
fn strip_path<'a>(path: &'a str, attention: &str) -> Option<(&'a str, Vec<usize>)> {
    let mut rest = path;
    let mut numbers = Vec::new();
    for expected in attention.rsplit('.').filter(|part| !part.is_empty()) {
        let (before, part) = rest.rsplit_once('.')?;
        match expected {
            "#" => numbers.insert(0, number(part)?),
            _ if expected == part => {}
            _ => return None,
        }
        rest = before;
    }
    Some((rest, numbers))
}

/// The text with `#` for its numbers and all that counts as one, if it ends in a number.
fn template(layer: &str, counted: &[String]) -> Option<(String, Vec<usize>)> {
    number(last_part(layer))?;
    let mut numbers = Vec::new();
    let counts = |part: &str| number(part).or_else(|| counted.iter().position(|name| name == part));
    let parts = layer.split('.').map(|part| match counts(part) {
        Some(number) => {
            numbers.push(number);
            "#"
        }
        None => part,
    });
    let prefix = parts.collect::<Vec<_>>().join(".");
    Some((prefix, numbers))
}

/// The number that a part of a name is, if it is written in the usual way.
pub(super) fn number(part: &str) -> Option<usize> {
    let is_usual = part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    if is_usual { part.parse().ok() } else { None }
}
