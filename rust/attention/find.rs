//! Finds the attention of a model among its tensors, and every head's rows in them.

use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

use super::candidates::{candidates, choose};
use super::component::Component;
use super::geometry::Geometry;
use super::layers::{Builder, Layers, Place, Places};
use super::layout_file::{Layout, Orientation, Role, layouts};
use super::names;
use super::section::Section;
use super::stacks::Contents;
use super::submodels::{Model, parts};
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

impl Module {
    /// The shape of its tensor, if it is stored as such.
    pub fn stored_shape(&self) -> [usize; 2] {
        match self.orientation {
            Orientation::OutIn => [self.out_features, self.in_features],
            Orientation::InOut => [self.in_features, self.out_features],
        }
    }
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
    places: Vec<Places>,
    left_out: Vec<LeftOut>,
}

impl Attention {
    /// Reads the geometry from `config`, the content of `config.json`, and finds all it promises in `contents`.
    /// `path` is what messages are about. Without a component it is the text decoder's attention that is found,
    /// else the encoder's, else that of the only tower there is.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the type of the model is in no layout, if it has no such component, if the
    /// configuration lacks a key or contradicts itself or a tensor's shape, or if a tensor is missing.
    pub fn resolve(
        path: &Path,
        config: &Map<String, Value>,
        contents: &Contents<'_>,
        component: Option<Component>,
    ) -> Result<Self> {
        let layouts = layouts()?;
        resolve(layouts, config, contents, component).map_err(|problem| Error::model(path, problem))
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
    layouts: &'static [Layout],
    config: &Map<String, Value>,
    contents: &Contents<'_>,
    component: Option<Component>,
) -> Problem<Attention> {
    let model = read_model(layouts, config, contents)?;
    let modules = contents.modules();
    let (candidates, strangers) = candidates(layouts, &model, &modules)?;
    let chosen = choose(&model, &candidates, component).map_err(|problem| {
        format!("{problem}; {}", names::describe_attention(contents.tensors.keys().copied()))
    })?;
    let first = *chosen.first().ok_or("there is no candidate")?;
    let (owner, component, layout) = (first.owner, first.component, first.layout);
    let mut stack = Layers::new();
    for candidate in &chosen {
        if candidate.pattern.prefix != first.pattern.prefix
            || candidate.layout.name != first.layout.name
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
        Builder { contents, owner, component, layout, modules: Vec::new(), left_out: Vec::new() };
    let (layers, places) = builder.layers(&first.pattern, &stack)?;
    let Builder { modules, mut left_out, .. } = builder;
    left_out.extend(candidates.iter().filter(|other| !chosen.iter().any(|one| one.is(other))).map(|other| {
        LeftOut {
            what: format!("{} ({} layers)", other.place(), other.stack.len()),
            why: format!("it is the attention of the {}", other.component),
        }
    }));
    left_out.extend(strangers);
    let geometry =
        Geometry { model_type: model.model_type.to_owned(), layout: layout.name.clone(), component, layers };
    Ok(Attention { geometry, owner_type: owner.model_type.to_owned(), modules, places, left_out })
}

/// The configuration as models, all of known types.
fn read_model<'a>(
    layouts: &[Layout],
    config: &'a Map<String, Value>,
    contents: &Contents<'_>,
) -> Problem<Model<'a>> {
    let found = || names::describe_attention(contents.tensors.keys().copied());
    let section = Section::whole(config);
    let Some(model_type) = section.model_type()? else {
        return Err(format!("the configuration has no `model_type`; {}; {}", found(), advice(layouts)));
    };
    let model = Model::read(layouts, section, model_type, DEPTH)?;
    let wraps =
        |model: &Model<'_>| Ok::<_, String>(parts()?.model_types().any(|known| known == model.model_type));
    if model.components.is_empty() && !wraps(&model)? {
        if let Some(reason) = parts()?.without_heads(model_type) {
            return Err(format!(
                "a model of type {} has no heads that could be scanned: {reason}",
                quote(model_type)
            ));
        }
        let problem = format!("the model type {} is in no known layout", quote(model_type));
        return Err(format!("{problem}; {}; {}", found(), advice(layouts)));
    }
    Ok(model)
}

pub(super) fn list(items: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quote(item.as_ref())).collect();
    quoted.join(", ")
}

/// What to do about a model that is in no layout.
fn advice(layouts: &[Layout]) -> String {
    let known: Vec<&str> = layouts.iter().map(Layout::name).collect();
    format!(
        "the known layouts are {}; `alps layouts` lists their model types, and CONTRIBUTING.md says how to add a \
         layout, or a model type to one of them",
        list(&known)
    )
}
