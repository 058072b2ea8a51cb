//! Groups tensor names that differ only in the number of the layer into stacks of layers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use once_cell::race::OnceBox;

use super::layout_file::{Layout, layouts};
use super::names::{last_part, number};
use super::types::{OrProblem, Orientation};
use crate::{Result, memory};

/// The names and shapes of the tensors of a checkpoint or a live model.
#[derive(Debug, Default)]
pub struct TensorShapes<'a> {
    /// Every stored tensor with its shape.
    pub stored: StoredShapes<'a>,
    /// The modules whose weights are computed from stored tensors, with their out and in features. A module has the
    /// name that its tensor would have, without `.weight`.
    pub computed: BTreeMap<&'a str, [usize; 2]>,
}

/// Shapes by name, in the order of the names.
#[derive(Debug, Default)]
pub struct StoredShapes<'a>(Vec<(&'a str, &'a [usize])>);

impl<'a> StoredShapes<'a> {
    /// The shapes of these tensors, of which no two have the same name.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::OutOfMemory`].
    pub fn new(shapes: impl Iterator<Item = (&'a str, &'a [usize])>) -> io::Result<Self> {
        let mut shapes = memory::collect(shapes)?;
        shapes.sort_unstable_by_key(|(name, _)| *name);
        Ok(Self(shapes))
    }

    /// The name, as it is kept, and the shape.
    pub(super) fn get(&self, name: &str) -> Option<(&'a str, &'a [usize])> {
        self.0.binary_search_by_key(&name, |(name, _)| name).ok().map(|place| self.0[place])
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(|(name, _)| *name)
    }

    /// The names that begin so.
    pub(super) fn names_with(&self, prefix: &str) -> impl Iterator<Item = &'a str> {
        let first = self.0.partition_point(|(name, _)| *name < prefix);
        self.0[first..].iter().map(|(name, _)| *name).take_while(move |name| name.starts_with(prefix))
    }
}

const WEIGHT: &str = ".weight";

/// The most layers of all stacks that follow one layout. The largest known models have some hundred.
const MOST_LAYERS: usize = 4096;

impl<'a> TensorShapes<'a> {
    /// The names of all modules that may be matrices of some layout's attention.
    pub(super) fn modules(&self) -> OrProblem<Vec<&'a str>> {
        let own_names = own_names().map_err(|error| error.to_string())?;
        let stored = self.stored.0.iter().filter(|(name, shape)| shape.len() > 1 || name.ends_with(WEIGHT));
        let stored = stored.map(|(name, _)| name.strip_suffix(WEIGHT).unwrap_or(name));
        let all = stored.chain(self.computed.keys().copied());
        let mut modules = memory::collect(all.filter(|name| own_names.contains_key(last_part(name))))
            .map_err(|error| error.to_string())?;
        modules.sort_unstable();
        modules.dedup();
        Ok(modules)
    }

    /// The stored tensor of a module, unless its weights are computed.
    pub fn tensor(&self, module: &str) -> Option<(&'a str, &'a [usize])> {
        if self.computed.contains_key(module) {
            return None;
        }
        let weight = format!("{module}{WEIGHT}");
        self.stored.get(&weight).or_else(|| self.stored.get(module))
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
    let is_of = |own: &&str| module.strip_suffix(*own).is_some_and(|path| path.ends_with('.'));
    Ok(own_names()?.get(last_part(module)).is_some_and(|own_names| own_names.iter().any(is_of)))
}

/// The names that layouts have for the modules of a layer's attention, by their last parts.
fn own_names() -> Result<&'static HashMap<&'static str, BTreeSet<&'static str>>> {
    static OWN_NAMES: OnceBox<HashMap<&str, BTreeSet<&str>>> = OnceBox::new();
    let layouts = layouts()?;
    Ok(OWN_NAMES.get_or_init(|| {
        let mut by_last_part: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for own in layouts.iter().flat_map(|layout| layout.names.iter().flatten()) {
            by_last_part.entry(last_part(own)).or_default().insert(own);
        }
        Box::new(by_last_part)
    }))
}

/// Finds all stacks that follow a layout.
pub(super) fn find_stacks<'a>(
    layout: &Layout,
    modules: impl IntoIterator<Item = &'a str>,
) -> OrProblem<BTreeMap<StackName, Stack<'a>>> {
    let mut layers = 0;
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
                let layer = stack.entry(numbers).or_insert_with(|| {
                    layers += 1;
                    LayerModules { modules: BTreeMap::new(), path }
                });
                if layers > MOST_LAYERS {
                    return Err(format!("expected at most {MOST_LAYERS} layers with attention, found more"));
                }
                layer.modules.insert(&module[path.len() + 1..], module);
            }
        }
    }
    Ok(stacks)
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
