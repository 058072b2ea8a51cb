//! Reads the configuration as a tree of models, and finds the model that a tensor name belongs to.

use std::collections::BTreeMap;

use once_cell::race::OnceBox;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config_section::ConfigSection;
use super::layout_file::{Layout, parse_embedded};
use super::types::{Component, OrProblem};

/// The content of `submodels.json`: models within models, and the names of their tensors. A `word` is a part of a
/// tensor name, with at most one `*` for any text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmodelTable {
    /// The words that mark the tensors of a component in every model.
    towers: BTreeMap<Component, Vec<String>>,
    /// The words that mark tensors of no component.
    elsewhere: Vec<String>,
    /// The models within models. If several have the wanted component, the first of them is scanned.
    parts: Vec<Submodel>,
    /// Other words for the models within, by the type of the outer model and by key.
    names: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// The types of the models that have only the attention of the models within.
    #[serde(rename = "model_types")]
    composite_types: Vec<String>,
    /// The types of the models without heads that could be scanned, by the reason.
    without_heads: BTreeMap<String, Vec<String>>,
}

/// A model within a model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Submodel {
    /// The key of its section in the configuration of the outer model.
    key: String,
    /// The words that mark its tensors; without any it has the tensors that are not marked as those of others.
    names: Vec<String>,
    /// Whether its encoder serves as the decoder of the outer model.
    #[serde(default)]
    decodes: bool,
}

/// What older configurations of a model type leave out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigDefaults {
    /// The types of the models within this one, by key.
    parts: BTreeMap<String, String>,
    /// The values of keys of this model where it is within another.
    values: Map<String, Value>,
}

pub(super) fn submodel_table() -> OrProblem<&'static SubmodelTable> {
    static TABLE: OnceBox<OrProblem<SubmodelTable>> = OnceBox::new();
    parse_embedded(&TABLE, "submodels.json", include_str!("submodels.json"))
}

fn defaults() -> OrProblem<&'static BTreeMap<String, ConfigDefaults>> {
    static DEFAULTS: OnceBox<OrProblem<BTreeMap<String, ConfigDefaults>>> = OnceBox::new();
    parse_embedded(&DEFAULTS, "submodel_defaults.json", include_str!("submodel_defaults.json"))
}

impl SubmodelTable {
    /// Why models of this type have no heads, if they have none.
    pub(super) fn without_heads(&self, model_type: &str) -> Option<&str> {
        let mut reasons = self.without_heads.iter();
        let (reason, _) = reasons.find(|(_, types)| types.iter().any(|known| known == model_type))?;
        Some(reason)
    }

    /// Whether models of this type have only the attention of the models within.
    pub(super) fn is_composite(&self, model_type: &str) -> bool {
        self.composite_types.iter().any(|known| known == model_type)
    }

    /// The component that a part of a name marks.
    fn tower(&self, part: &str) -> Option<Component> {
        let mut towers = self.towers.iter();
        towers.find(|(_, words)| matches_any(words, part)).map(|(component, _)| *component)
    }
}

/// The tower, such as one for images, that a part of a tensor's or module's name marks in every model.
pub fn tower_of(part: &str) -> Option<Component> {
    submodel_table().ok()?.tower(part)
}

/// Whether a part of a tensor's or module's name marks what belongs to no component, such as the layers that predict
/// further tokens.
pub fn is_of_no_component(part: &str) -> bool {
    submodel_table().is_ok_and(|table| matches_any(&table.elsewhere, part))
}

/// Whether models of this type have a decoder of their own.
fn is_decoder(layouts: &[Layout], model_type: &str) -> bool {
    layouts.iter().any(|layout| layout.has(Component::Decoder, model_type))
}

/// Whether one of these words matches this part of a name.
fn matches_any(words: &[String], part: &str) -> bool {
    words.iter().any(|word| match word.split_once('*') {
        Some((start, end)) => {
            part.len() >= start.len() + end.len() && part.starts_with(start) && part.ends_with(end)
        }
        None => word == part,
    })
}

/// The configuration of a model, with those of the models within.
#[derive(Debug)]
pub(super) struct ModelConfig<'a> {
    pub(super) section: ConfigSection<'a>,
    pub(super) model_type: &'a str,
    /// The components of the model itself, without those of the models within.
    pub(super) components: Vec<Component>,
    /// Whether its decoder is the encoder of its model type.
    decodes: bool,
    /// The models within, with the words that mark their tensors.
    inner: Vec<(&'static [String], ModelConfig<'a>)>,
}

impl<'a> ModelConfig<'a> {
    /// Reads the configuration of a model and of the models within, down to `depth` levels.
    pub(super) fn read(
        layouts: &[Layout],
        section: ConfigSection<'a>,
        model_type: &'a str,
        depth: usize,
    ) -> OrProblem<Self> {
        let (table, defaults) = (submodel_table()?, defaults()?);
        let default = defaults.get(model_type);
        let mut inner = Vec::new();
        for Submodel { key, names, decodes } in table.parts.iter().filter(|_| depth > 0) {
            let by_default = default.and_then(|default| default.parts.get(key)).map(|name| &**name);
            let part = match section.inner(key)? {
                Some(part) => part,
                // A flat configuration has the keys of its decoder beside those of the whole model.
                None if by_default.is_some_and(|part| is_decoder(layouts, part)) => section.clone(),
                None => continue,
            };
            // Some releases of transformers wrote the type of a whole model, this one or another, for its parts.
            let is_part = |name: &&str| {
                by_default.is_none()
                    || !table.is_composite(name)
                    || table.parts.iter().any(|inner| part.value(&inner.key).is_some())
            };
            let is_flat = part.is_same(&section);
            let own_type = if is_flat { None } else { part.model_type()? };
            if let Some(part_type) = own_type.filter(is_part).or(by_default) {
                let part = part.with_defaults(defaults.get(part_type).map(|default| &default.values));
                let mut model =
                    ModelConfig::read(layouts, part, part_type, if is_flat { 0 } else { depth - 1 })?;
                if *decodes && !model.components.contains(&Component::Decoder) {
                    model.decodes = true;
                    let encoder = model.components.iter_mut().find(|it| **it == Component::Encoder);
                    encoder.into_iter().for_each(|component| *component = Component::Decoder);
                }
                let special = table.names.get(model_type).and_then(|names| names.get(key));
                inner.push((&**special.unwrap_or(names), model));
            }
        }
        let has = |component: &Component| layouts.iter().any(|layout| layout.has(*component, model_type));
        let components = Component::ALL.into_iter().filter(has).collect();
        Ok(ModelConfig { section, model_type, components, decodes: false, inner })
    }

    /// This model and all models within: the outermost first, then in the order of the table.
    pub(super) fn all(&self) -> Vec<&ModelConfig<'a>> {
        let inner = self.inner.iter().flat_map(|(_, model)| model.all());
        [self].into_iter().chain(inner).collect()
    }

    /// Whether a layout stores this component of the model.
    pub(super) fn has_layout(&self, layout: &Layout, component: Component) -> bool {
        let of_type = match component {
            Component::Decoder if self.decodes => Component::Encoder,
            component => component,
        };
        self.components.contains(&component) && layout.has(of_type, self.model_type)
    }

    /// The model that owns the attention under a name, and the components that it may be. `name` has the parts of
    /// the name up to the number of the layer.
    pub(super) fn owner(&self, name: &[&str]) -> OrProblem<Option<(&ModelConfig<'a>, Vec<Component>)>> {
        let table = submodel_table()?;
        if name.iter().any(|part| matches_any(&table.elsewhere, part)) {
            return Ok(None);
        }
        let marked = name.iter().enumerate().find_map(|(place, part)| {
            let (_, model) = self.inner.iter().find(|(words, _)| matches_any(words, part))?;
            Some((place, model))
        });
        if let Some((place, model)) = marked {
            return model.owner(&name[place + 1..]);
        }
        let unmarked = self.inner.iter().find(|(words, _)| words.is_empty());
        if let Some((_, model)) = unmarked.filter(|_| self.components.is_empty()) {
            return model.owner(name);
        }
        let tower = name.iter().find_map(|part| table.tower(part));
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
        // An encoder that attends to another encoder has no decoder beside it: its name says nothing.
        let named = if has(Encoder) && has(Decoder) {
            name.iter().find_map(|part| match (part.contains("decoder"), part.contains("encoder")) {
                (true, _) => Some(vec![Decoder, Cross]),
                (_, true) => Some(vec![Encoder]),
                _ => None,
            })
        } else {
            None
        };
        named.unwrap_or_else(|| self.components.clone())
    }
}
