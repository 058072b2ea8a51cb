//! The models within a model: which part of the configuration, and which names, are whose.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::component::Component;
use super::layout_file::Layout;
use super::section::Section;

/// What is known about models that have models within, and about their names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parts {
    /// Parts of a name by which these components are known, whatever the model.
    towers: BTreeMap<Component, Vec<String>>,
    /// Parts of a name by which tensors are known that no component has.
    elsewhere: Vec<String>,
    /// The models within, the most important first: what is scanned of several that have a component.
    parts: Vec<Part>,
    /// Other names of the models within, by the type of the model around them and by key.
    names: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// The types of the models that have no attention but that of the models within.
    model_types: Vec<String>,
    /// The types of the models that have no softmax attention, or none whose rows are heads, and why.
    without_heads: BTreeMap<String, Vec<String>>,
}

/// A model within a model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    /// The key under which the configuration of the outer model has that of the inner one.
    key: String,
    /// The parts of a name by which its tensors are known; if there are none, what no other part is known by.
    names: Vec<String>,
    /// Whether it decodes, whatever its type does elsewhere.
    #[serde(default)]
    decodes: bool,
}

/// What older configurations leave out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Defaults {
    /// The types of the models within this one.
    parts: BTreeMap<String, String>,
    /// The values of the keys of this one, where it is within another.
    values: Map<String, Value>,
}

pub(super) fn parts() -> Result<&'static Parts, String> {
    static PARTS: OnceLock<Result<Parts, String>> = OnceLock::new();
    let parse = || {
        serde_json::from_str(include_str!("submodels.json"))
            .map_err(|error| format!("parts.json of this library: {error}"))
    };
    PARTS.get_or_init(parse).as_ref().map_err(Clone::clone)
}

fn defaults() -> Result<&'static BTreeMap<String, Defaults>, String> {
    static DEFAULTS: OnceLock<Result<BTreeMap<String, Defaults>, String>> = OnceLock::new();
    let parse = || {
        serde_json::from_str(include_str!("submodel_defaults.json"))
            .map_err(|error| format!("defaults.json of this library: {error}"))
    };
    DEFAULTS.get_or_init(parse).as_ref().map_err(Clone::clone)
}

impl Parts {
    /// Why models of this type have no heads, if they have none.
    pub(super) fn without_heads(&self, model_type: &str) -> Option<&str> {
        let mut reasons = self.without_heads.iter();
        let has = |types: &[String]| types.iter().any(|known| known == model_type);
        reasons.find(|(_, types)| has(types)).map(|(reason, _)| &**reason)
    }

    pub(super) fn model_types(&self) -> impl Iterator<Item = &str> {
        self.model_types.iter().map(|model_type| &**model_type)
    }

    /// The component that a part of a name gives away.
    fn tower(&self, part: &str) -> Option<Component> {
        let mut towers = self.towers.iter();
        towers
            .find(|(_, words)| words.iter().any(|word| matches(word, part)))
            .map(|(component, _)| *component)
    }

    fn is_elsewhere(&self, part: &str) -> bool {
        self.elsewhere.iter().any(|word| matches(word, part))
    }
}

/// Whether a word with at most one `*`, which stands for anything, is this part of a name.
fn matches(word: &str, part: &str) -> bool {
    match word.split_once('*') {
        Some((start, end)) => {
            part.len() >= start.len() + end.len() && part.starts_with(start) && part.ends_with(end)
        }
        None => word == part,
    }
}

/// A model, with the models within.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) section: Section<'a>,
    pub(super) model_type: &'a str,
    /// The components that it has besides those of the models within.
    pub(super) components: Vec<Component>,
    /// Whether its decoder is what its type has as an encoder elsewhere.
    decodes: bool,
    inner: Vec<(&'static [String], Model<'a>)>,
}

impl<'a> Model<'a> {
    /// Reads the configuration of a model and of those within, as deep as `depth`.
    pub(super) fn read(
        layouts: &[Layout],
        section: Section<'a>,
        model_type: &'a str,
        depth: usize,
    ) -> Result<Self, String> {
        let (parts, defaults) = (parts()?, defaults()?);
        let default = defaults.get(model_type);
        let mut inner = Vec::new();
        for Part { key, names, decodes } in parts.parts.iter().filter(|_| depth > 0) {
            let Some(part) = section.inner(key)? else { continue };
            let by_default = default.and_then(|default| default.parts.get(key)).map(|name| &**name);
            if let Some(part_type) = part.model_type()?.or(by_default) {
                let part = part.with_defaults(defaults.get(part_type).map(|default| &default.values));
                let mut model = Model::read(layouts, part, part_type, depth - 1)?;
                if *decodes && !model.components.contains(&Component::Decoder) {
                    model.decodes = true;
                    let encoder = model.components.iter_mut().find(|it| **it == Component::Encoder);
                    encoder.into_iter().for_each(|component| *component = Component::Decoder);
                }
                let special = parts.names.get(model_type).and_then(|names| names.get(key));
                inner.push((&**special.unwrap_or(names), model));
            }
        }
        let has = |component: &Component| layouts.iter().any(|layout| layout.has(*component, model_type));
        let components = Component::ALL.into_iter().filter(has).collect();
        Ok(Model { section, model_type, components, decodes: false, inner })
    }

    /// This model and all within: the outermost first, then the most important.
    pub(super) fn all(&self) -> Vec<&Model<'a>> {
        let inner = self.inner.iter().flat_map(|(_, model)| model.all());
        [self].into_iter().chain(inner).collect()
    }

    /// Whether a layout stores this component of the model.
    pub(super) fn is_in(&self, layout: &Layout, component: Component) -> bool {
        let of_type = match component {
            Component::Decoder if self.decodes => Component::Encoder,
            component => component,
        };
        self.components.contains(&component) && layout.has(of_type, self.model_type)
    }

    /// Whose attention is under a name, given what stands in it before the number of the layer.
    pub(super) fn owner(&self, name: &[&str]) -> Result<Option<(&Model<'a>, Vec<Component>)>, String> {
        let parts = parts()?;
        if name.iter().any(|part| parts.is_elsewhere(part)) {
            return Ok(None);
        }
        let named = name.iter().enumerate().find_map(|(place, part)| {
            let mut inner = self.inner.iter();
            let (_, model) = inner.find(|(words, _)| words.iter().any(|word| matches(word, part)))?;
            Some((place, model))
        });
        if let Some((place, model)) = named {
            return model.owner(&name[place + 1..]);
        }
        let unnamed = self.inner.iter().find(|(words, _)| words.is_empty());
        if let Some((_, model)) = unnamed.filter(|_| self.components.is_empty()) {
            return model.owner(name);
        }
        let tower = name.iter().find_map(|part| parts.tower(part));
        if tower.is_some_and(|tower| !self.components.contains(&tower)) {
            return Ok(None);
        }
        Ok(Some((self, self.components_of(tower, name))))
    }

    /// The components whose attention may be under a name.
    fn components_of(&self, tower: Option<Component>, name: &[&str]) -> Vec<Component> {
        use Component::{Cross, Decoder, Encoder};
        let has = |component: Component| self.components.contains(&component);
        if let Some(tower) = tower {
            return vec![tower];
        }
        if !(has(Encoder) && (has(Decoder) || has(Cross))) {
            return self.components.clone();
        }
        let side = |part: &&str| match (part.contains("decoder"), part.contains("encoder")) {
            (true, _) => Some(vec![Decoder, Cross]),
            (_, true) => Some(vec![Encoder]),
            _ => None,
        };
        // An encoder that was made to attend to another one has no decoder beside it.
        let sides = if has(Decoder) { name.iter().find_map(side) } else { None };
        sides.unwrap_or_else(|| self.components.clone())
    }
}
