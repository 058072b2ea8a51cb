//! Groups tensor names that differ only in the number of the layer into stacks of layers.

use std::collections::{BTreeMap, BTreeSet};

use super::layout_file::{Layout, layouts};
use super::names::{last_part, number};
use super::types::Orientation;
use crate::Result;

/// The names and shapes of the tensors of a checkpoint or a live model.
#[derive(Debug, Default)]
pub struct TensorShapes<'a> {
    /// Every stored tensor with its shape.
    pub stored: BTreeMap<&'a str, &'a [usize]>,
    /// The modules whose weights are computed from stored tensors, with their out and in features. A module has the
    /// name that its tensor would have, without `.weight`.
    pub computed: BTreeMap<&'a str, [usize; 2]>,
}

const WEIGHT: &str = ".weight";

impl<'a> TensorShapes<'a> {
    /// The names of all modules that may be matrices.
    pub(super) fn modules(&self) -> BTreeSet<&'a str> {
        let stored = self.stored.iter().filter(|(name, shape)| shape.len() > 1 || name.ends_with(WEIGHT));
        let stored = stored.map(|(name, _)| name.strip_suffix(WEIGHT).unwrap_or(name));
        stored.chain(self.computed.keys().copied()).collect()
    }

    /// The stored tensor of a module, unless its weights are computed.
    pub fn tensor(&self, module: &str) -> Option<(&'a str, &'a [usize])> {
        if self.computed.contains_key(module) {
            return None;
        }
        let weight = format!("{module}{WEIGHT}");
        let found = self.stored.get_key_value(&*weight).or_else(|| self.stored.get_key_value(module));
        found.map(|(name, shape)| (*name, *shape))
    }

    /// The out and in features of a module, if it is a matrix.
    pub(super) fn features(&self, module: &str, orientation: Orientation) -> Option<[usize; 2]> {
        let Some((_, shape)) = self.tensor(module) else { return self.computed.get(module).copied() };
        match (orientation, shape) {
            (Orientation::OutIn, [out, columns, rest @ ..]) if rest.iter().all(|size| *size == 1) => {
                Some([*out, *columns])
            }
            (Orientation::InOut, [columns, out @ ..]) if !out.is_empty() => {
                let out = out.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))?;
                Some([out, *columns])
            }
            _ => None,
        }
    }
}

/// The name that the layers of a stack have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StackName {
    /// The name up to the attention path, with `#` for each number.
    pub(super) prefix: String,
    /// The position of the attention path in [`Layout::attention`].
    path: usize,
}

impl StackName {
    /// The prefix of one layer, whose number replaces the first `#`.
    pub(super) fn prefix_of(&self, layer: usize) -> String {
        self.prefix.replacen('#', &layer.to_string(), 1)
    }

    /// The attention path after this prefix.
    pub(super) fn path_after(&self, prefix: &str, layout: &Layout) -> String {
        match &*layout.attention[self.path] {
            "" => prefix.to_owned(),
            attention => format!("{prefix}.{attention}"),
        }
    }
}

/// The attention modules of one layer.
#[derive(Debug)]
pub(super) struct LayerModules<'a> {
    /// The full names of the modules, by the names that follow the path.
    pub(super) modules: BTreeMap<&'a str, &'a str>,
    /// The path of the attention, such as `model.layers.0.self_attn`.
    pub(super) path: &'a str,
}

impl LayerModules<'_> {
    /// The names of the layout's tensors in the spelling of this layer, if it has all that it needs.
    pub(super) fn spelling<'l>(&self, layout: &'l Layout) -> Option<&'l [String]> {
        layout.spelling(|name| self.modules.contains_key(name))
    }
}

/// Layers of one name, by their numbers: the last number counts layers, those before it count stages.
pub(super) type Stack<'a> = BTreeMap<Vec<usize>, LayerModules<'a>>;

/// Whether a module of this name may hold attention weights of some layout.
///
/// # Errors
///
/// Those of [`layouts`].
pub fn may_be_attention(module: &str) -> Result<bool> {
    let own_names = layouts()?.iter().flat_map(|layout| layout.names.iter().flatten());
    let is_of = |own: &String| module.strip_suffix(&**own).is_some_and(|path| path.ends_with('.'));
    Ok(own_names.into_iter().any(is_of))
}

/// Finds all stacks that follow a layout.
pub(super) fn find_stacks<'a>(
    layout: &Layout,
    modules: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<StackName, Stack<'a>> {
    let own_names: BTreeSet<&str> = layout.names.iter().flatten().map(|name| &**name).collect();
    let last_parts: BTreeSet<&str> = own_names.iter().map(|name| last_part(name)).collect();
    let mut stacks: BTreeMap<StackName, Stack<'a>> = BTreeMap::new();
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
                let Some((prefix, mut numbers)) = strip_numbers(layer, &layout.counted) else { continue };
                numbers.append(&mut inner);
                let stack = stacks.entry(StackName { prefix, path: index }).or_default();
                let layer =
                    stack.entry(numbers).or_insert_with(|| LayerModules { modules: BTreeMap::new(), path });
                layer.modules.insert(&module[path.len() + 1..], module);
            }
        }
    }
    stacks
}

/// The name before an attention path, and the numbers within the path.
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

/// The name of a layer with `#` for each number and each `counted` part, and these numbers; `None` if it does not
/// end in a number.
fn strip_numbers(layer: &str, counted: &[String]) -> Option<(String, Vec<usize>)> {
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
