//! The geometry of an attention stack, layer by layer, and where in its tensors the heads are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::component::Component;
use super::find::{LeftOut, Module};
use super::geometry::{Layer, Size};
use super::layout_file::{Blocks, Held, KeysAsValues, Layout, Orientation, Role, StoredTensor};
use super::sizes::{Expected, LayerSizes, Position, Reader, Stored};
use super::stacks::{Block, Contents, Pattern};
use super::submodels::Model;
use super::{marks, names};
use crate::error::quote;

type Problem<T> = Result<T, String>;

/// Where the matrices of a role are within a module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) module: usize,
    /// How many rows a block has.
    pub(super) block: usize,
    /// How many of these stand before the first matrix.
    pub(super) before: usize,
    /// How many matrices a block has.
    pub(super) share: usize,
    /// How many rows a matrix has.
    pub(super) rows: usize,
}

/// The names of the layout's tensors, if all that a layer needs are in the block.
pub(super) fn spelling<'f>(layout: &'f Layout, block: &Block<'_>) -> Option<&'f [String]> {
    let needed = |names: &&Vec<String>| {
        let mut tensors = layout.tensors.iter().zip(names.iter());
        tensors.all(|(tensor, name)| layout.may_lack(tensor) || block.modules.contains_key(&**name))
    };
    layout.names.iter().find(needed).map(|names| &**names)
}

/// Makes the geometry, layer by layer.
pub(super) struct Builder<'m, 'c> {
    pub(super) contents: &'c Contents<'c>,
    pub(super) owner: &'m Model<'m>,
    pub(super) component: Component,
    pub(super) layout: &'static Layout,
    pub(super) modules: Vec<Module>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Where the queries, keys and values of a layer are.
pub(super) type Places = [Option<Place>; 3];

/// The blocks of all layers by their numbers.
pub(super) type Layers<'b, 'c> = BTreeMap<Vec<usize>, &'b Block<'c>>;

impl<'c> Builder<'_, 'c> {
    pub(super) fn layers(
        &mut self,
        pattern: &Pattern,
        stack: &Layers<'_, 'c>,
    ) -> Problem<(Vec<Layer>, Vec<Places>)> {
        let owner = self.owner;
        let reader = Reader::new(&self.layout.sizes, &owner.section, self.component)?;
        let staged = stack.keys().any(|numbers| numbers.len() > 1);
        let expected = reader.layers(staged)?;
        let count = expected.as_ref().map_or(stack.len(), |expected| expected.count);
        let stages = stack.keys().map(|numbers| numbers[0] + 1).max().unwrap_or(0);
        let is_hybrid = self.layout.is_hybrid(owner.model_type);
        let marks = marks::linear_attention(self.contents.tensors.keys().copied());
        let (mut layers, mut places) = (Vec::new(), Vec::new());
        let mut found = 0;
        // As many turns as there are layers at most, whatever the configuration says: the first one that
        // is missing ends it, unless layers with numbers above it show that it is there in another form.
        let last = stack.keys().next_back().map_or(0, |numbers| numbers[numbers.len() - 1] + 1);
        let turns = if staged { stack.len() + 1 } else { last + 1 };
        for number in 0..count.min(turns) {
            // Layers that come in stages are counted through all of these.
            let block = if staged { stack.iter().nth(number) } else { stack.get_key_value(&vec![number]) };
            let Some((numbers, block)) = block else {
                if is_hybrid {
                    self.leave_out(pattern, number);
                    continue;
                }
                return Err(self.missing(pattern, number, &self.layout.names[0][0], &expected));
            };
            found += 1;
            if let Some(mark) = marks.get(block.path) {
                let why = format!("{} beside it says that this is linear attention", quote(mark));
                self.left_out.push(LeftOut { what: format!("layer {number}"), why });
                continue;
            }
            let of_list = expected.as_ref().and_then(|expected| expected.stage_of(number));
            let (stage, stages) = of_list.filter(|_| !staged).unwrap_or((numbers[0], stages));
            let position = Position { layer: number, layers: count, stage, stages };
            let (layer, place) = self.layer(&reader, position, pattern, block, &expected)?;
            layers.push(layer);
            places.push(place);
        }
        if let (beyond @ 1.., Some(Expected { key, .. })) = (stack.len() - found, expected) {
            self.left_out.push(LeftOut {
                what: format!("{beyond} layers from number {count} on"),
                why: format!("the configuration says that there are {count} layers (`{key}`)"),
            });
        }
        if layers.is_empty() {
            return Err(format!("none of the {count} layers has softmax attention"));
        }
        Ok((layers, places))
    }

    /// Notes a layer that has something else in the place of attention.
    fn leave_out(&mut self, pattern: &Pattern, number: usize) {
        let prefix = pattern.prefix.replacen('#', &number.to_string(), 1);
        let parts = names::children(self.contents.tensors.keys().copied(), &prefix);
        let why = format!("it has no attention; its parts are {}", parts.join(", "));
        self.left_out.push(LeftOut { what: format!("layer {number}"), why });
    }

    fn missing(&self, pattern: &Pattern, number: usize, own: &str, expected: &Option<Expected>) -> String {
        let prefix = pattern.prefix.replacen('#', &number.to_string(), 1);
        let attention = &self.layout.attention[pattern.path];
        let dot = if attention.is_empty() { "" } else { "." };
        let Expected { count, key, .. } = expected.clone().unwrap_or_default();
        format!(
            "tensor {} is missing, although {} says that there are {count} layers (`{key}`), all of which have \
             attention in a model of type {}; {}",
            quote(&format!("{prefix}{dot}{attention}.{own}.weight")),
            self.owner.section.place,
            quote(self.owner.model_type),
            names::describe_attention(self.contents.tensors.keys().copied())
        )
    }

    fn layer(
        &mut self,
        reader: &Reader<'_>,
        position: Position,
        pattern: &Pattern,
        block: &Block<'c>,
        expected: &Option<Expected>,
    ) -> Problem<(Layer, Places)> {
        let (layout, section) = (self.layout, &self.owner.section);
        let Some(names) = spelling(layout, block) else {
            let names = &layout.names;
            let closest = names
                .iter()
                .max_by_key(|names| names.iter().filter(|name| block.modules.contains_key(&***name)).count());
            let absent =
                closest.and_then(|names| names.iter().find(|name| !block.modules.contains_key(&***name)));
            let own = absent.unwrap_or(&names[0][0]);
            return Err(self.missing(pattern, position.layer, own, expected));
        };
        let without_keys = match &layout.layers_without_keys {
            Some(key) => match section.given(key) {
                Some(value) => position.layer >= position.layers.saturating_sub(section.count(key, value)?),
                None => false,
            },
            None => false,
        };
        let mut held: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
        for (index, (tensor, name)) in layout.tensors.iter().zip(names).enumerate() {
            if without_keys && !tensor.holds.contains(&Held::Query) {
                continue;
            }
            if let Some(module) = block.modules.get(&**name) {
                held.insert(index, (self.modules.len() + held.len(), module));
            }
        }
        let has = |role: Role| {
            layout.tensors.iter().enumerate().any(|(index, tensor)| {
                held.contains_key(&index) && tensor.holds.iter().any(|held| held.role() == Some(role))
            })
        };
        let keys_are_values = !has(Role::Value)
            && has(Role::Key)
            && match &layout.keys_as_values {
                KeysAsValues::Never => false,
                KeysAsValues::Always | KeysAsValues::WhereAbsent => true,
                KeysAsValues::When(key) => section.flag(key)?,
            };
        let complete = without_keys || has(Role::Key) && (has(Role::Value) || keys_are_values);
        if !complete {
            let absent =
                layout.tensors.iter().zip(names).enumerate().find(|(index, _)| !held.contains_key(index));
            let own = absent.map_or(&names[0], |(_, (_, name))| name);
            return Err(self.missing(pattern, position.layer, own, expected));
        }
        let view = View { contents: self.contents, layout, block, held: &held };
        let sizes = reader
            .of_layer(position, &view)
            .map_err(|problem| format!("{problem} (layer {}, {})", position.layer, quote(block.path)))?;
        let mut places: Places = [None; 3];
        let mut columns = [0; 3];
        for (index, (module_index, name)) in &held {
            let tensor = &layout.tensors[*index];
            let features = self.check(reader, tensor, name, &sizes)?;
            self.modules.push(Module {
                name: (*name).to_owned(),
                orientation: tensor.orientation,
                out_features: features[0],
                in_features: features[1],
            });
            let blocks = blocks(tensor, &sizes);
            let mut before = 0;
            for held in &tensor.holds {
                let (count, rows) = size(*held, &sizes);
                if let Some(role) = held.role() {
                    let (module, block) = (*module_index, features[0] / blocks);
                    places[role as usize] =
                        Some(Place { module, block, before, share: count / blocks, rows });
                    columns[role as usize] = features[1];
                }
                before += count / blocks * rows;
            }
        }
        if keys_are_values {
            places[Role::Value as usize] = places[Role::Key as usize];
            columns[Role::Value as usize] = columns[Role::Key as usize];
        }
        let size = |role: Role| {
            places[role as usize].map(|place| Size { rows: place.rows, columns: columns[role as usize] })
        };
        let layer = Layer {
            number: position.layer,
            query_heads: sizes.query_heads,
            key_value_heads: sizes.key_value_heads,
            query: size(Role::Query).ok_or("a layer has no queries")?,
            key: size(Role::Key),
            value: size(Role::Value),
            keys_are_values,
        };
        Ok((layer, places))
    }

    /// The out and in features of a module, which are as its sizes demand.
    fn check(
        &self,
        reader: &Reader<'_>,
        tensor: &StoredTensor,
        module: &str,
        sizes: &LayerSizes,
    ) -> Problem<[usize; 2]> {
        let too_large = || {
            format!("no tensor is as large as {} would have to be ({})", quote(module), reason(tensor, sizes))
        };
        let out = tensor.holds.iter().try_fold(0_usize, |sum, held| {
            let (count, rows) = size(*held, sizes);
            sum.checked_add(count.checked_mul(rows)?)
        });
        let out = out.ok_or_else(too_large)?;
        let blocks = blocks(tensor, sizes);
        if tensor.holds.iter().any(|held| !size(*held, sizes).0.is_multiple_of(blocks)) {
            return Err(format!(
                "{} should fall into {blocks} equal blocks, which {} cannot",
                quote(module),
                reason(tensor, sizes)
            ));
        }
        let (name, found, stored) = match self.contents.tensor(module) {
            Some((name, shape)) => (name, features(tensor.orientation, shape), Some(shape)),
            None => (module, self.contents.computed.get(module).copied(), None),
        };
        let hidden = if tensor.any_inputs {
            None
        } else {
            Some(sizes.hidden_size.ok_or_else(|| reader.lacks_hidden_size())?)
        };
        let columns = hidden.or(found.map(|[_, columns]| columns)).unwrap_or(0);
        out.checked_mul(columns).ok_or_else(too_large)?;
        if found == Some([out, columns]) && columns > 0 {
            return Ok([out, columns]);
        }
        let columns = hidden.map_or("any".to_owned(), |columns| columns.to_string());
        let expected = match tensor.orientation {
            Orientation::InOut if stored.is_some() => format!("[{columns}, {out}]"),
            _ => format!("[{out}, {columns}]"),
        };
        let found = match (stored, found) {
            (Some(shape), _) => format!("{shape:?}"),
            (None, found) => format!("{:?}", found.unwrap_or_default()),
        };
        Err(format!(
            "tensor {} should have the shape {expected} by {} ({}), but has the shape {found}",
            quote(name),
            self.owner.section.place,
            reason(tensor, sizes)
        ))
    }
}

/// The out and in features of a tensor of this shape, if it is a matrix.
fn features(orientation: Orientation, shape: &[usize]) -> Option<[usize; 2]> {
    match (orientation, shape) {
        (Orientation::OutIn, [out, columns, rest @ ..]) if rest.iter().all(|size| *size == 1) => {
            Some([*out, *columns])
        }
        (Orientation::InOut, [columns, out @ ..]) if !out.is_empty() => out
            .iter()
            .try_fold(1_usize, |product, size| product.checked_mul(*size))
            .map(|out| [out, *columns]),
        _ => None,
    }
}

/// What one layer's tensors say about its sizes.
struct View<'v, 'c> {
    contents: &'c Contents<'c>,
    layout: &'static Layout,
    block: &'v Block<'c>,
    held: &'v BTreeMap<usize, (usize, &'c str)>,
}

impl Stored for View<'_, '_> {
    fn holding(&self, role: Role) -> Option<(usize, &[Held])> {
        let holds = |index: usize| &*self.layout.tensors[index].holds;
        let mut held = self.held.iter();
        let (index, (_, module)) =
            held.find(|(index, _)| holds(**index).iter().any(|held| held.role() == Some(role)))?;
        let found = match self.contents.tensor(module) {
            Some((_, shape)) => features(self.layout.tensors[*index].orientation, shape),
            None => self.contents.computed.get(module).copied(),
        };
        found.map(|[out, _]| (out, holds(*index)))
    }

    fn length_of(&self, name: &str) -> Option<usize> {
        let name = format!("{}.{name}", self.block.path);
        match self.contents.tensors.get(&*name)? {
            [length] => Some(*length),
            _ => None,
        }
    }
}

/// How many matrices of this kind a layer has, and how many rows each.
fn size(held: Held, sizes: &LayerSizes) -> (usize, usize) {
    match held {
        Held::Query => (sizes.query_heads, sizes.query_size),
        Held::Key => (sizes.key_value_heads, sizes.key_size),
        Held::Value => (sizes.key_value_heads, sizes.value_size),
        Held::Gate => (sizes.query_heads, sizes.value_size),
    }
}

fn blocks(tensor: &StoredTensor, sizes: &LayerSizes) -> usize {
    match tensor.blocks {
        Blocks::One => 1,
        Blocks::QueryHeads => sizes.query_heads,
        Blocks::KeyValueHeads => sizes.key_value_heads,
        Blocks::Number(number) => number,
    }
}

/// Where the shape comes from, in words.
fn reason(tensor: &StoredTensor, sizes: &LayerSizes) -> String {
    let mut text = String::new();
    for held in &tensor.holds {
        let kind = match held {
            Held::Query => "query",
            Held::Key | Held::Value if tensor.holds.len() == 1 => "key/value",
            Held::Key => "key",
            Held::Value => "value",
            Held::Gate => "gate",
        };
        let (count, rows) = size(*held, sizes);
        let heads = if count == 1 { "head" } else { "heads" };
        // Writing to a text cannot fail.
        let _ = write!(text, "{count} {kind} {heads} of size {rows}, ");
    }
    match sizes.hidden_size.filter(|_| !tensor.any_inputs) {
        Some(hidden) => text + &format!("hidden size {hidden}"),
        None => text.trim_end_matches(", ").to_owned(),
    }
}
