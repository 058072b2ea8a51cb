//! Finds the attention of a model among its tensors, and every head's rows in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

use super::component::Component;
use super::family::{Blocks, Family, Held, KeysAsValues, Orientation, Role, StoredTensor, families};
use super::geometry::{Geometry, Layer, Size};
use super::parts::{Model, parts};
use super::section::Section;
use super::sizes::{Expected, LayerSizes, Position, Reader, Stored};
use super::stack::{Block, Contents, Pattern, Stack, stacks};
use super::{marks, names};
use crate::error::quote;
use crate::{Error, Result};

/// How deep a configuration within a configuration is looked for.
const DEPTH: usize = 4;

/// A matrix that holds attention weights of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module {
    /// The name of its tensor, without `.weight`.
    pub name: String,
    /// How the tensor is stored, if it is stored as such.
    pub orientation: Orientation,
    /// How many rows the matrix has.
    pub out_features: usize,
    /// How long a row is.
    pub in_features: usize,
}

/// One matrix of one head: rows of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slice<'a> {
    /// The place of the module in [`Attention::modules`].
    pub index: usize,
    /// The module.
    pub module: &'a Module,
    /// The head's rows.
    pub rows: Range<usize>,
}

/// Why a layer, or what looks like one, is not among those of the geometry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// What it is.
    pub what: String,
    /// Why it is left out.
    pub why: String,
}

/// A model's attention: its geometry, and where in the tensors every head is.
///
/// All of a layer's tensors are known to be there, in the shapes that the geometry demands.
#[derive(Debug)]
pub struct Attention {
    geometry: Geometry,
    owner_type: String,
    modules: Vec<Module>,
    /// For each layer where its queries, keys and values are.
    places: Vec<[Option<Place>; 3]>,
    left_out: Vec<LeftOut>,
}

/// Where the matrices of a role are within a module.
#[derive(Debug, Clone, Copy)]
struct Place {
    module: usize,
    /// How many rows a block has.
    block: usize,
    /// How many of these stand before the first matrix.
    before: usize,
    /// How many matrices a block has.
    share: usize,
    /// How many rows a matrix has.
    rows: usize,
}

impl Attention {
    /// Reads the geometry from `config`, the content of `config.json`, and finds all it promises in `contents`.
    /// `path` is what messages are about. Without a component it is the text decoder's attention that is found,
    /// else the encoder's, else that of the only tower there is.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the type of the model is in no family, if it has no such component, if the
    /// configuration lacks a key or contradicts itself or a tensor's shape, or if a tensor is missing.
    pub fn resolve(
        path: &Path,
        config: &Map<String, Value>,
        contents: &Contents<'_>,
        component: Option<Component>,
    ) -> Result<Self> {
        let families = families()?;
        resolve(families, config, contents, component).map_err(|problem| Error::model(path, problem))
    }

    /// How many heads of what size there are.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The type of the model whose attention it is: that of the model itself, or of one within.
    pub fn owner_type(&self) -> &str {
        &self.owner_type
    }

    /// The modules that hold the attention, layer by layer.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// What is not scanned although it is in the model, and why.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The weights of query head `index`, or of the keys or values of key/value group `index`, in the layer
    /// `geometry().layers[layer]`; nothing if the layer has no weights of that role.
    ///
    /// # Panics
    ///
    /// If there is no such layer, head or group.
    pub fn slice(&self, role: Role, layer: usize, index: usize) -> Option<Slice<'_>> {
        let sizes = &self.geometry.layers[layer];
        assert!(index < sizes.count(role), "there is no {} matrix {index}", role.name());
        let Place { module, block, before, share, rows } = self.places[layer][role as usize]?;
        let first = index / share * block + before + index % share * rows;
        Some(Slice { index: module, module: &self.modules[module], rows: first..first + rows })
    }
}

type Problem<T> = std::result::Result<T, String>;

fn resolve(
    families: &'static [Family],
    config: &Map<String, Value>,
    contents: &Contents<'_>,
    component: Option<Component>,
) -> Problem<Attention> {
    let model = read_model(families, config, contents)?;
    let modules = contents.modules();
    let candidates = candidates(families, &model, &modules)?;
    let chosen = choose(&model, &candidates, component).map_err(|problem| {
        format!("{problem}; {}", names::describe_attention(contents.tensors.keys().copied()))
    })?;
    let first = *chosen.first().ok_or("there is no candidate")?;
    let (owner, component, family) = (first.owner, first.component, first.family);
    let mut stack = Layers::new();
    for candidate in &chosen {
        if candidate.pattern.prefix != first.pattern.prefix
            || candidate.stack.keys().any(|numbers| stack.contains_key(numbers))
        {
            let prefixes: Vec<String> = chosen.iter().map(|candidate| candidate.place()).collect();
            return Err(format!(
                "there are {} attention stacks that could be the {component}'s: {}; {}",
                chosen.len(),
                list(&prefixes),
                names::describe_attention(contents.tensors.keys().copied())
            ));
        }
        stack.extend(candidate.stack.iter().map(|(numbers, block)| (numbers.clone(), block)));
    }
    let mut builder =
        Builder { contents, owner, component, family, modules: Vec::new(), left_out: Vec::new() };
    let (layers, places) = builder.layers(&first.pattern, &stack)?;
    let Builder { modules, mut left_out, .. } = builder;
    left_out.extend(candidates.iter().filter(|other| !chosen.iter().any(|one| one.is(other))).map(|other| {
        LeftOut {
            what: format!("{} ({} layers)", other.place(), other.stack.len()),
            why: format!("it is the attention of the {}", other.component),
        }
    }));
    let geometry =
        Geometry { model_type: model.model_type.to_owned(), family: family.name.clone(), component, layers };
    Ok(Attention { geometry, owner_type: owner.model_type.to_owned(), modules, places, left_out })
}

/// The configuration as models, all of known types.
fn read_model<'a>(
    families: &[Family],
    config: &'a Map<String, Value>,
    contents: &Contents<'_>,
) -> Problem<Model<'a>> {
    let found = || names::describe_attention(contents.tensors.keys().copied());
    let section = Section::whole(config);
    let Some(model_type) = section.model_type()? else {
        return Err(format!("the configuration has no `model_type`; {}; {}", found(), advice(families)));
    };
    let model = Model::read(families, section, model_type, DEPTH)?;
    let wraps =
        |model: &Model<'_>| Ok::<_, String>(parts()?.model_types().any(|known| known == model.model_type));
    if model.components.is_empty() && !wraps(&model)? {
        if let Some(reason) = parts()?.without_heads(model_type) {
            return Err(format!(
                "a model of type {} has no heads that could be scanned: {reason}",
                quote(model_type)
            ));
        }
        let problem = format!("the model type {} is in no known family", quote(model_type));
        return Err(format!("{problem}; {}; {}", found(), advice(families)));
    }
    Ok(model)
}

/// Layers that may be what is looked for.
struct Candidate<'m, 'a> {
    owner: &'m Model<'m>,
    component: Component,
    family: &'static Family,
    pattern: Pattern,
    stack: Stack<'a>,
}

impl Candidate<'_, '_> {
    /// How the names of its modules begin.
    fn place(&self) -> String {
        let attention = &self.family.attention[self.pattern.path];
        let dot = if attention.is_empty() { "" } else { "." };
        format!("{}{dot}{attention}", self.pattern.prefix)
    }

    fn is(&self, other: &Self) -> bool {
        self.component == other.component
            && self.pattern.prefix == other.pattern.prefix
            && self.place() == other.place()
    }
}

fn candidates<'m, 'a>(
    families: &'static [Family],
    model: &'m Model<'m>,
    modules: &BTreeSet<&'a str>,
) -> Problem<Vec<Candidate<'m, 'a>>> {
    let mut candidates = Vec::new();
    for family in families {
        let has =
            |model: &&Model<'_>| model.components.iter().any(|component| model.is_in(family, *component));
        if !model.all().iter().any(has) {
            continue;
        }
        for (pattern, stack) in stacks(family, modules.iter().copied()) {
            let parts: Vec<&str> = pattern.prefix.split('.').collect();
            let Some((owner, components)) = model.owner(&parts)? else { continue };
            let component = components.into_iter().find(|component| owner.is_in(family, *component));
            if let Some(component) = component {
                candidates.push(Candidate { owner, component, family, pattern, stack });
            }
        }
    }
    // A layer whose tensors one family knows all is not that of another family, which knows but some of them.
    let whole = |candidate: &Candidate<'_, '_>| {
        let spelled = |block: &Block<'_>| spelling(candidate.family, block).is_some();
        candidate.stack.values().any(spelled)
    };
    let (complete, partial): (Vec<_>, Vec<_>) = candidates.into_iter().partition(whole);
    let mut candidates = complete;
    for candidate in partial {
        if !candidates.iter().any(|other| other.component == candidate.component) {
            candidates.push(candidate);
        }
    }
    Ok(candidates)
}

/// The candidates of the component that is asked for, or of the first that there is.
fn choose<'c, 'm, 'a>(
    model: &'m Model<'m>,
    candidates: &'c [Candidate<'m, 'a>],
    component: Option<Component>,
) -> Problem<Vec<&'c Candidate<'m, 'a>>> {
    // Of several models within that have the component, it is that of the most important one.
    let of = |component: Component| -> Vec<&Candidate<'m, 'a>> {
        let of_model = |model: &Model<'_>| -> Vec<&Candidate<'m, 'a>> {
            let own = |one: &&Candidate<'_, '_>| one.component == component && std::ptr::eq(one.owner, model);
            candidates.iter().filter(own).collect()
        };
        model.all().into_iter().map(of_model).find(|found| !found.is_empty()).unwrap_or_default()
    };
    let promised =
        |component: &Component| model.all().iter().any(|model| model.components.contains(component));
    let there: Vec<&str> = Component::ALL
        .into_iter()
        .filter(|component| !of(*component).is_empty())
        .map(Component::name)
        .collect();
    let wanted = match component {
        Some(component) => component,
        None => match Component::ALL.into_iter().find(promised) {
            Some(component) => component,
            None => {
                let inner: Vec<&str> = model.all().iter().skip(1).map(|inner| inner.model_type).collect();
                return Err(format!(
                    "a model of type {} has only the attention of the models within, and of their types none is \
                     in a known family: {}",
                    quote(model.model_type),
                    if inner.is_empty() { "there are none".to_owned() } else { list(&inner) }
                ));
            }
        },
    };
    let chosen = of(wanted);
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let there = if there.is_empty() { "nothing else".to_owned() } else { there.join(", ") };
    let mut expected = Vec::new();
    for family in families().map_err(|error| error.to_string())? {
        if model.all().iter().any(|model| model.is_in(family, wanted)) {
            let names = family.names[0].iter().map(|own| format!("{}.{own}", family.attention[0]));
            expected.push(format!("{} (family {})", list(&names.collect::<Vec<_>>()), quote(&family.name)));
        }
    }
    if expected.is_empty() {
        return Err(format!(
            "a model of type {} has no attention stack {}; there is {there}",
            quote(model.model_type),
            quote(wanted.name())
        ));
    }
    Err(format!(
        "a model of type {} should have an attention stack {}, with tensors such as {}, but there is {there}",
        quote(model.model_type),
        quote(wanted.name()),
        expected.join(" or ")
    ))
}

/// The names of the family's tensors, if all that a layer needs are in the block.
fn spelling<'f>(family: &'f Family, block: &Block<'_>) -> Option<&'f [String]> {
    let needed = |names: &&Vec<String>| {
        let mut tensors = family.tensors.iter().zip(names.iter());
        tensors.all(|(tensor, name)| family.may_lack(tensor) || block.modules.contains_key(&**name))
    };
    family.names.iter().find(needed).map(|names| &**names)
}

/// Makes the geometry, layer by layer.
struct Builder<'m, 'c> {
    contents: &'c Contents<'c>,
    owner: &'m Model<'m>,
    component: Component,
    family: &'static Family,
    modules: Vec<Module>,
    left_out: Vec<LeftOut>,
}

type Places = [Option<Place>; 3];

/// The blocks of all layers by their numbers.
type Layers<'b, 'c> = BTreeMap<Vec<usize>, &'b Block<'c>>;

impl<'c> Builder<'_, 'c> {
    fn layers(&mut self, pattern: &Pattern, stack: &Layers<'_, 'c>) -> Problem<(Vec<Layer>, Vec<Places>)> {
        let owner = self.owner;
        let reader = Reader::new(&self.family.sizes, &owner.section, self.component)?;
        let staged = stack.keys().any(|numbers| numbers.len() > 1);
        let expected = reader.layers(staged)?;
        let count = expected.as_ref().map_or(stack.len(), |expected| expected.count);
        let stages = stack.keys().map(|numbers| numbers[0] + 1).max().unwrap_or(0);
        let is_hybrid = self.family.is_hybrid(owner.model_type);
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
                return Err(self.missing(pattern, number, &self.family.names[0][0], &expected));
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
        let attention = &self.family.attention[pattern.path];
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
        let (family, section) = (self.family, &self.owner.section);
        let Some(names) = spelling(family, block) else {
            let names = &family.names;
            let closest = names
                .iter()
                .max_by_key(|names| names.iter().filter(|name| block.modules.contains_key(&***name)).count());
            let absent =
                closest.and_then(|names| names.iter().find(|name| !block.modules.contains_key(&***name)));
            let own = absent.unwrap_or(&names[0][0]);
            return Err(self.missing(pattern, position.layer, own, expected));
        };
        let without_keys = match &family.layers_without_keys {
            Some(key) => match section.given(key) {
                Some(value) => position.layer >= position.layers.saturating_sub(section.count(key, value)?),
                None => false,
            },
            None => false,
        };
        let mut held: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
        for (index, (tensor, name)) in family.tensors.iter().zip(names).enumerate() {
            if without_keys && !tensor.holds.contains(&Held::Query) {
                continue;
            }
            if let Some(module) = block.modules.get(&**name) {
                held.insert(index, (self.modules.len() + held.len(), module));
            }
        }
        let has = |role: Role| {
            family.tensors.iter().enumerate().any(|(index, tensor)| {
                held.contains_key(&index) && tensor.holds.iter().any(|held| held.role() == Some(role))
            })
        };
        let keys_are_values = !has(Role::Value)
            && has(Role::Key)
            && match &family.keys_as_values {
                KeysAsValues::Never => false,
                KeysAsValues::Always | KeysAsValues::WhereAbsent => true,
                KeysAsValues::When(key) => section.flag(key)?,
            };
        let complete = without_keys || has(Role::Key) && (has(Role::Value) || keys_are_values);
        if !complete {
            let absent =
                family.tensors.iter().zip(names).enumerate().find(|(index, _)| !held.contains_key(index));
            let own = absent.map_or(&names[0], |(_, (_, name))| name);
            return Err(self.missing(pattern, position.layer, own, expected));
        }
        let view = View { contents: self.contents, family, block, held: &held };
        let sizes = reader
            .of_layer(position, &view)
            .map_err(|problem| format!("{problem} (layer {}, {})", position.layer, quote(block.path)))?;
        let mut places: Places = [None; 3];
        let mut columns = [0; 3];
        for (index, (module_index, name)) in &held {
            let tensor = &family.tensors[*index];
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
    family: &'static Family,
    block: &'v Block<'c>,
    held: &'v BTreeMap<usize, (usize, &'c str)>,
}

impl Stored for View<'_, '_> {
    fn holding(&self, role: Role) -> Option<(usize, &[Held])> {
        let holds = |index: usize| &*self.family.tensors[index].holds;
        let mut held = self.held.iter();
        let (index, (_, module)) =
            held.find(|(index, _)| holds(**index).iter().any(|held| held.role() == Some(role)))?;
        let found = match self.contents.tensor(module) {
            Some((_, shape)) => features(self.family.tensors[*index].orientation, shape),
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

fn list(items: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quote(item.as_ref())).collect();
    quoted.join(", ")
}

/// What to do about a model that is in no family.
fn advice(families: &[Family]) -> String {
    let known: Vec<&str> = families.iter().map(Family::name).collect();
    format!(
        "the known families are {}; `alps layouts` lists their model types, and CONTRIBUTING.md says how to add a \
         family, or a model type to one of them",
        list(&known)
    )
}
