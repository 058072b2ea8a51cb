//! The models within a model: which part of the configuration, and which names, are whose.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::component::Component;
use super::family::Family;
use super::section::Section;

/// What is known about models that have models within, and about their names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parts {
    /// Parts of a name by which these components are known, whatever the model.
    towers: BTreeMap<Component, Vec<String>>,
    /// Parts of a name by which tensors are known that no component has.
    elsewhere: Vec<String>,
    /// The keys under which a configuration has those of the models within, and the parts of a name by which
    /// their tensors are known; those of a key without any are known by no name.
    parts: BTreeMap<String, Vec<String>>,
    /// The types of the models that have no attention but that of the models within.
    model_types: Vec<String>,
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
        serde_json::from_str(include_str!("parts.json"))
            .map_err(|error| format!("parts.json of this library: {error}"))
    };
    PARTS.get_or_init(parse).as_ref().map_err(Clone::clone)
}

fn defaults() -> Result<&'static BTreeMap<String, Defaults>, String> {
    static DEFAULTS: OnceLock<Result<BTreeMap<String, Defaults>, String>> = OnceLock::new();
    let parse = || {
        serde_json::from_str(include_str!("defaults.json"))
            .map_err(|error| format!("defaults.json of this library: {error}"))
    };
    DEFAULTS.get_or_init(parse).as_ref().map_err(Clone::clone)
}

impl Parts {
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
    inner: Vec<(&'static str, &'static [String], Model<'a>)>,
}

impl<'a> Model<'a> {
    /// Reads the configuration of a model and of those within, as deep as `depth`.
    pub(super) fn read(
        families: &[Family],
        section: Section<'a>,
        model_type: &'a str,
        depth: usize,
    ) -> Result<Self, String> {
        let parts = parts()?;
        let default = defaults()?.get(model_type);
        let mut inner = Vec::new();
        for (key, words) in parts.parts.iter().filter(|_| depth > 0) {
            let Some(part) = section.inner(key)? else { continue };
            let by_default = default.and_then(|default| default.parts.get(key)).map(|name| &**name);
            if let Some(part_type) = part.model_type()?.or(by_default) {
                let values = defaults()?.get(part_type).map(|default| &default.values);
                let model = Model::read(families, part.with_defaults(values), part_type, depth - 1)?;
                inner.push((&**key, &**words, model));
            }
        }
        let has = |component: &Component| families.iter().any(|family| family.has(*component, model_type));
        let components = Component::ALL.into_iter().filter(has).collect();
        Ok(Model { section, model_type, components, inner })
    }

    /// This model and all within, from the outermost.
    pub(super) fn all(&self) -> Vec<&Model<'a>> {
        let inner = self.inner.iter().flat_map(|(_, _, model)| model.all());
        [self].into_iter().chain(inner).collect()
    }

    /// Whose attention is under a name, given what stands in it before the number of the layer.
    pub(super) fn owner(&self, name: &[&str]) -> Result<Option<(&Model<'a>, Vec<Component>)>, String> {
        let parts = parts()?;
        if name.iter().any(|part| parts.is_elsewhere(part)) {
            return Ok(None);
        }
        let named = name.iter().enumerate().find_map(|(place, part)| {
            let mut inner = self.inner.iter();
            let (_, _, model) = inner.find(|(_, words, _)| words.iter().any(|word| matches(word, part)))?;
            Some((place, model))
        });
        if let Some((place, model)) = named {
            return model.owner(&name[place + 1..]);
        }
        if let Some((_, _, model)) = self.inner.iter().find(|(_, words, _)| words.is_empty()) {
            if self.components.is_empty() {
                return model.owner(name);
            }
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
