//! What the configuration says of the attention's size.

use std::ops::Range;

use serde_json::{Map, Value};

use super::family::{ConfigKeys, Family, Role};
use crate::error::quote;

/// How many heads of what size there are. Heads are numbered by query head.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// What the configuration calls the model.
    pub model_type: String,
    /// The name of the family of storage.
    pub family: String,
    /// The numbers of the layers that have attention, in ascending order.
    pub layers: Vec<usize>,
    /// The query heads of a layer.
    pub query_heads: usize,
    /// The key/value groups of a layer: a divisor of the query heads.
    pub key_value_heads: usize,
    /// The size of a query and of a key.
    pub head_size: usize,
    /// The size of a value.
    pub value_size: usize,
    /// The size of what queries, keys and values are computed from.
    pub hidden_size: usize,
}

impl Geometry {
    /// The key/value group that query head `head` reads: floor(head * groups / heads).
    pub fn group_of(&self, head: usize) -> usize {
        head / self.heads_per_group()
    }

    /// The query heads that read key/value group `group`.
    pub fn heads_of(&self, group: usize) -> Range<usize> {
        let size = self.heads_per_group();
        group * size..(group + 1) * size
    }

    /// How many matrices of this role a layer has.
    pub fn count(&self, role: Role) -> usize {
        match role {
            Role::Query => self.query_heads,
            Role::Key | Role::Value => self.key_value_heads,
        }
    }

    /// How many rows a matrix of this role has.
    pub fn rows(&self, role: Role) -> usize {
        match role {
            Role::Query | Role::Key => self.head_size,
            Role::Value => self.value_size,
        }
    }

    fn heads_per_group(&self) -> usize {
        self.query_heads / self.key_value_heads
    }
}

/// The largest number that is believed. Products of two of these do not overflow.
const MAX: u64 = 1 << 31;

/// The part of the configuration that is about the text model.
pub(super) struct Section<'a> {
    values: &'a Map<String, Value>,
    /// What to call it in a message.
    pub(super) place: &'static str,
}

impl<'a> Section<'a> {
    /// Finds it: `text_config` where there is one, else the whole.
    pub(super) fn of(config: &'a Map<String, Value>) -> Result<Self, String> {
        match config.get("text_config") {
            None | Some(Value::Null) => Ok(Section { values: config, place: "the configuration" }),
            Some(Value::Object(values)) => {
                Ok(Section { values, place: "`text_config` in the configuration" })
            }
            Some(other) => Err(format!("`text_config` should be an object, but is {}", show(other))),
        }
    }

    /// The type of the model that the section is about, if the section says it.
    pub(super) fn model_type(&self) -> Result<Option<&'a str>, String> {
        match self.given("model_type") {
            None => Ok(None),
            Some(Value::String(model_type)) => Ok(Some(model_type)),
            Some(other) => {
                Err(format!("`model_type` in {} should be a text, but is {}", self.place, show(other)))
            }
        }
    }

    fn given(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        let place = self.place;
        self.optional_size(key)?.ok_or_else(|| format!("{place} has no `{key}`, which is needed"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.given(key) else { return Ok(None) };
        match value.as_u64().filter(|size| (1..=MAX).contains(size)).map(usize::try_from) {
            Some(Ok(size)) => Ok(Some(size)),
            _ => Err(format!(
                "`{key}` in {} should be a whole number from 1 to {MAX}, but is {}",
                self.place,
                show(value)
            )),
        }
    }

    /// Reads the geometry, with the number of layers instead of their list, which only the tensors can vouch for.
    pub(super) fn read(&self, family: &Family, model_type: &str) -> Result<(Geometry, usize), String> {
        let place = self.place;
        // Sizes that differ from layer to layer can have equal products, which shapes would not give away.
        let uniform = match self.given("per_layer_config") {
            None => true,
            Some(Value::Object(layers)) => layers.is_empty(),
            Some(_) => false,
        };
        if !uniform {
            return Err(format!(
                "`per_layer_config` in {place} gives layers sizes of their own, which the family {} does not have",
                quote(&family.name)
            ));
        }
        let ConfigKeys { layers, query_heads, key_value_heads, head_size, hidden_size } = &family.config;
        let layer_count = self.size(layers)?;
        let heads = self.size(query_heads)?;
        let hidden = self.size(hidden_size)?;
        let optional = |key: &Option<String>| match key {
            Some(key) => self.optional_size(key),
            None => Ok(None),
        };
        let groups = optional(key_value_heads)?.unwrap_or(heads);
        if !heads.is_multiple_of(groups) {
            return Err(format!(
                "{place} says that {heads} query heads (`{query_heads}`) share {groups} key/value heads (`{}`), \
                 but {heads} is not a multiple of {groups}",
                key_value_heads.as_deref().unwrap_or(query_heads)
            ));
        }
        let size = match optional(head_size)? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let absent =
                    head_size.as_ref().map(|key| format!("has no `{key}`, and ")).unwrap_or_default();
                return Err(format!(
                    "{place} {absent}gives a hidden size (`{hidden_size}`) of {hidden}, which is not a multiple \
                     of the {heads} query heads (`{query_heads}`): the size of a head is unknown"
                ));
            }
        };
        let geometry = Geometry {
            model_type: model_type.to_owned(),
            family: family.name.clone(),
            layers: Vec::new(),
            query_heads: heads,
            key_value_heads: groups,
            head_size: size,
            value_size: size,
            hidden_size: hidden,
        };
        Ok((geometry, layer_count))
    }
}

/// A value of the configuration, fit for a message.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => quote(&scalar.to_string()),
    }
}
