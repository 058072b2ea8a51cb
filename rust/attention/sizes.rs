//! Where the sizes of a layer's attention are to be found, in the configuration or in the tensors.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use super::component::Component;
use super::layout_file::{Held, Role};
use super::section::{Section, show};
use crate::error::quote;

/// Where a layout has its sizes, if not under the usual keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sizes {
    layers: Option<Source>,
    query_heads: Option<Source>,
    key_value_heads: Option<Source>,
    /// Of queries; without a key of its own, the hidden size divided by the query heads.
    head_size: Option<Source>,
    /// As that of queries, if it is not said.
    key_size: Option<Source>,
    /// As that of queries, if it is not said.
    value_size: Option<Source>,
    hidden_size: Option<Source>,
}

/// Where a size is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Source {
    /// Under the first of these keys that the configuration has.
    Keys(Vec<String>),
    /// The sum of these.
    Sum(Vec<String>),
    /// The product of these.
    Product(Vec<String>),
    /// The first of these divided by the second, rounded down.
    Quotient(String, String),
    /// This number.
    Number(usize),
    /// The length of this tensor beside those of the attention.
    LengthOf(String),
    /// What the shapes of the tensors say.
    Stored,
    /// One if these flags of the configuration are so, else what is under the keys.
    OneIf { flags: BTreeMap<String, bool>, keys: Vec<String> },
    /// Under the key for what `layer_types` says that the layer is.
    ByKind(BTreeMap<String, String>),
}

/// The keys that configurations commonly have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    layers: Vec<String>,
    /// The layers of each stage, where layers come in stages.
    stages: Vec<String>,
    query_heads: Vec<String>,
    key_value_heads: Vec<String>,
    head_size: Vec<String>,
    hidden_size: Vec<String>,
}

/// The keys of any component, and before them those of one only.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsualKeys {
    any: Keys,
    of: BTreeMap<Component, Keys>,
}

fn usual_keys() -> Result<&'static UsualKeys, String> {
    static KEYS: OnceLock<Result<UsualKeys, String>> = OnceLock::new();
    let parse = || {
        serde_json::from_str(include_str!("config_keys.json"))
            .map_err(|error| format!("config_keys.json of this library: {error}"))
    };
    KEYS.get_or_init(parse).as_ref().map_err(Clone::clone)
}

/// The place of a layer among the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) layer: usize,
    pub(super) layers: usize,
    pub(super) stage: usize,
    pub(super) stages: usize,
}

/// How many layers there should be.
#[derive(Debug, Clone, Default)]
pub(super) struct Expected {
    pub(super) count: usize,
    /// The key that says so.
    pub(super) key: String,
    /// The layers of each stage, if the configuration counts by stage.
    stages: Vec<usize>,
}

impl Expected {
    /// The stage of a layer and the number of stages.
    pub(super) fn stage_of(&self, layer: usize) -> Option<(usize, usize)> {
        let mut before = 0;
        let stage = self.stages.iter().position(|layers| {
            before += layers;
            layer < before
        });
        stage.map(|stage| (stage, self.stages.len()))
    }
}

/// What the tensors of a layer say about its sizes.
pub(super) trait Stored {
    /// The out features of the tensor that holds this role, and all that it holds.
    fn holding(&self, role: Role) -> Option<(usize, &[Held])>;
    /// The length of a tensor of one dimension beside those of the attention.
    fn length_of(&self, name: &str) -> Option<usize>;
}

/// The sizes of a layer that can be read without looking at the features of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerSizes {
    pub(super) query_heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) query_size: usize,
    pub(super) key_size: usize,
    pub(super) value_size: usize,
    /// What all inputs should have, if that is known.
    pub(super) hidden_size: Option<usize>,
}

/// Reads sizes from one section of a configuration.
pub(super) struct Reader<'a> {
    sizes: &'a Sizes,
    section: &'a Section<'a>,
    component: Component,
    usual: &'static UsualKeys,
}

type Problem<T> = Result<T, String>;
type Field = fn(&Keys) -> &Vec<String>;

impl Sizes {
    pub(super) fn check(&self) -> Problem<()> {
        let by_shape = |source: &Option<Source>| matches!(source, Some(Source::Stored));
        if by_shape(&self.query_heads) && by_shape(&self.head_size) {
            return Err("shapes cannot say both the number of heads and their size".to_owned());
        }
        if [&self.key_size, &self.value_size, &self.hidden_size].into_iter().any(by_shape) {
            return Err("only heads, the size of a head and the number of layers can be as stored".to_owned());
        }
        Ok(())
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(sizes: &'a Sizes, section: &'a Section<'a>, component: Component) -> Problem<Self> {
        Ok(Reader { sizes, section, component, usual: usual_keys()? })
    }

    /// The number of layers; nothing if only the tensors can tell.
    pub(super) fn layers(&self, staged: bool) -> Problem<Option<Expected>> {
        let section = self.section;
        let field: Field = if staged { |keys| &keys.stages } else { |keys| &keys.layers };
        let keys: Vec<&String> = match &self.sizes.layers {
            Some(Source::Stored) => return Ok(None),
            Some(Source::Keys(keys)) => keys.iter().collect(),
            None => self.usual(field).collect(),
            source => {
                let (key, count) = self.optional(source, field, None)?.unwrap_or_default();
                return Ok(Some(Expected { count, key, stages: Vec::new() }));
            }
        };
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, section.given(key)?))) else {
            return Err(self.lacks("the number of layers", &keys));
        };
        let key = key.clone();
        let Value::Array(list) = value else {
            return Ok(Some(Expected { count: section.size(&key, value)?, key, stages: Vec::new() }));
        };
        // A list has the kind of every layer, or the number of layers of every stage.
        if list.iter().all(Value::is_string) {
            return Ok(Some(Expected { count: list.len(), key, stages: Vec::new() }));
        }
        let stages: Vec<usize> =
            list.iter().map(|stage| section.size(&key, stage)).collect::<Problem<_>>()?;
        let count = stages.iter().fold(0_usize, |sum, stage| sum.saturating_add(*stage));
        Ok(Some(Expected { count, key, stages }))
    }

    /// The sizes of one layer.
    pub(super) fn of_layer(&self, position: Position, stored: &dyn Stored) -> Problem<LayerSizes> {
        let at = Some(position);
        let place = &self.section.place;
        let sizes = self.sizes;
        let hidden =
            self.optional(&sizes.hidden_size, |keys| &keys.hidden_size, at)?.map(|(_, hidden)| hidden);
        let by_shape = |source: &Option<Source>| matches!(source, Some(Source::Stored));
        let read_heads =
            || self.read(&sizes.query_heads, |keys| &keys.query_heads, "the number of heads", at);
        let divided = |what: &str, features: usize, by: usize| match features.checked_div(by) {
            Some(count @ 1..) if features.is_multiple_of(by) => Ok(count),
            _ => Err(format!("{features} {what} features are not a multiple of {by}")),
        };
        let alone = |role: Role| match stored.holding(role) {
            Some((features, [_])) => Ok(features),
            _ => Err(format!("no tensor holds nothing but the {} weights", role.name())),
        };

        let (query_heads, query_size) = if by_shape(&sizes.query_heads) {
            let size = self.explicit_size(stored, at)?.ok_or_else(|| self.lacks_size(""))?;
            (divided("query", alone(Role::Query)?, size)?, size)
        } else {
            let heads = read_heads()?;
            let size = if by_shape(&sizes.head_size) {
                // Where a tensor holds more than queries, there are as many keys and values.
                match stored.holding(Role::Query) {
                    Some((features, held)) => divided("query", features, heads.saturating_mul(held.len()))?,
                    None => return Err("there is no tensor of queries".to_owned()),
                }
            } else {
                match (self.explicit_size(stored, at)?, hidden) {
                    (Some(size), _) => size,
                    (None, Some(hidden)) if hidden.is_multiple_of(heads) => hidden / heads,
                    (None, Some(hidden)) => {
                        return Err(self.lacks_size(&format!(
                            ", and gives a hidden size of {hidden}, which is not a multiple of the {heads} query heads"
                        )));
                    }
                    (None, None) => return Err(self.lacks_size("")),
                }
            };
            (heads, size)
        };
        let own_size = |source: &Option<Source>| match source {
            None => Ok(query_size),
            source => self.read(source, |keys| &keys.head_size, "the size of a head", at),
        };
        let (key_size, value_size) = (own_size(&sizes.key_size)?, own_size(&sizes.value_size)?);
        let key_value_heads = match &sizes.key_value_heads {
            Some(Source::Stored) => match stored.holding(Role::Key) {
                Some(_) => divided("key", alone(Role::Key)?, key_size)?,
                None => query_heads,
            },
            source => self
                .optional(source, |keys| &keys.key_value_heads, at)?
                .map_or(query_heads, |(_, groups)| groups),
        };
        if !query_heads.is_multiple_of(key_value_heads) {
            return Err(format!(
                "{place} says that {query_heads} query heads share {key_value_heads} key/value heads, but \
                 {query_heads} is not a multiple of {key_value_heads}"
            ));
        }
        Ok(LayerSizes { query_heads, key_value_heads, query_size, key_size, value_size, hidden_size: hidden })
    }

    /// The size of a head, if something other than the hidden size says it.
    fn explicit_size(&self, stored: &dyn Stored, at: Option<Position>) -> Problem<Option<usize>> {
        match &self.sizes.head_size {
            Some(Source::LengthOf(name)) => match stored.length_of(name) {
                Some(length) => Ok(Some(length)),
                None => Err(format!(
                    "there is no tensor {} of one dimension, which has the size of a head",
                    quote(name)
                )),
            },
            source => Ok(self.optional(source, |keys| &keys.head_size, at)?.map(|(_, size)| size)),
        }
    }

    /// That the hidden size is needed but not said.
    pub(super) fn lacks_hidden_size(&self) -> String {
        let keys: Vec<&String> = self.usual(|keys| &keys.hidden_size).collect();
        self.lacks("the hidden size", &keys)
    }

    fn lacks_size(&self, more: &str) -> String {
        let keys: Vec<&String> = self.usual(|keys| &keys.head_size).collect();
        format!("{}{more}: the size of a head is unknown", self.lacks("the size of a head", &keys))
    }

    fn lacks(&self, what: &str, keys: &[&String]) -> String {
        let keys: Vec<String> = keys.iter().map(|key| quote(key)).collect();
        format!("{} does not say {what} (under {})", self.section.place, keys.join(" or "))
    }

    fn usual(&self, field: Field) -> impl Iterator<Item = &'static String> {
        self.usual.of.get(&self.component).map(field).into_iter().chain([field(&self.usual.any)]).flatten()
    }

    fn read(
        &self,
        source: &Option<Source>,
        field: Field,
        what: &str,
        at: Option<Position>,
    ) -> Problem<usize> {
        let (_, size) = self.optional(source, field, at)?.ok_or_else(|| {
            let keys: Vec<&String> = match source {
                Some(Source::Keys(keys)) => keys.iter().collect(),
                _ => self.usual(field).collect(),
            };
            self.lacks(what, &keys)
        })?;
        Ok(size)
    }

    /// The size and the key that says it, from the source or else from the usual keys.
    fn optional(
        &self,
        source: &Option<Source>,
        field: Field,
        at: Option<Position>,
    ) -> Problem<Option<(String, usize)>> {
        let keys: Vec<&String> = match source {
            Some(Source::Keys(keys)) => keys.iter().collect(),
            Some(Source::OneIf { flags, keys }) => {
                let mut all = true;
                for (flag, wanted) in flags {
                    all &= self.section.flag(flag)? == *wanted;
                }
                if all {
                    return Ok(Some((flags.keys().cloned().collect::<Vec<_>>().join("`, `"), 1)));
                }
                keys.iter().collect()
            }
            Some(Source::Sum(keys)) => {
                let sum = self.combine(keys, |left, right| left.checked_add(right), at)?;
                return Ok(Some((keys.join("` + `"), sum)));
            }
            Some(Source::Product(keys)) => {
                let product = self.combine(keys, |left, right| left.checked_mul(right), at)?;
                return Ok(Some((keys.join("` x `"), product)));
            }
            Some(Source::Quotient(dividend, divisor)) => {
                let keys = [dividend.clone(), divisor.clone()];
                let quotient =
                    self.combine(&keys, |left, right| left.checked_div(right).filter(|it| *it > 0), at)?;
                return Ok(Some((keys.join("` / `"), quotient)));
            }
            Some(Source::Number(number)) => return Ok(Some((number.to_string(), *number))),
            Some(Source::ByKind(kinds)) => vec![self.key_of_kind(kinds, at)?],
            Some(Source::Stored | Source::LengthOf(_)) | None => self.usual(field).collect(),
        };
        for key in keys {
            if let Some(value) = self.value(key, at) {
                return Ok(Some((key.clone(), self.at_layer(key, value, at)?)));
            }
        }
        Ok(None)
    }

    /// The key for a layer of its kind.
    fn key_of_kind<'k>(
        &self,
        kinds: &'k BTreeMap<String, String>,
        at: Option<Position>,
    ) -> Problem<&'k String> {
        let types = self.section.given("layer_types").and_then(Value::as_array);
        let kind = at.and_then(|at| types?.get(at.layer)?.as_str());
        kind.and_then(|kind| kinds.get(kind)).ok_or_else(|| {
            let known: Vec<&str> = kinds.keys().map(|kind| &**kind).collect();
            format!(
                "`layer_types` in {} should say of every layer that it is one of {}",
                self.section.place,
                known.join(", ")
            )
        })
    }

    /// The value of a key, in which a layer may differ from the rest of the model.
    fn value(&self, key: &str, at: Option<Position>) -> Option<&'a Value> {
        let of_layer = at.and_then(|at| {
            let layers = self.section.given("per_layer_config")?.as_object()?;
            let (_, values) = layers.iter().find(|(number, _)| number.parse() == Ok(at.layer))?;
            values.get(key).filter(|value| !value.is_null())
        });
        of_layer.or_else(|| self.section.given(key))
    }

    /// A number, or that of the layer or its stage in a list of numbers.
    fn at_layer(&self, key: &str, value: &Value, at: Option<Position>) -> Problem<usize> {
        let (Value::Array(list), Some(at)) = (value, at) else { return self.section.size(key, value) };
        let index = match list.len() {
            length if length == at.layers => at.layer,
            length if length == at.stages => at.stage,
            length => {
                return Err(format!(
                    "`{key}` in {} is a list of {length} values for {} layers",
                    self.section.place, at.layers
                ));
            }
        };
        match list.get(index) {
            Some(value) => self.section.size(key, value),
            None => Err(format!("`{key}` in {} is {}", self.section.place, show(value))),
        }
    }

    fn combine(
        &self,
        keys: &[String],
        with: fn(usize, usize) -> Option<usize>,
        at: Option<Position>,
    ) -> Problem<usize> {
        let mut total = None;
        for key in keys {
            let value = self
                .value(key, at)
                .ok_or_else(|| format!("{} has no `{key}`, which is needed", self.section.place))?;
            // Of a sum, a part may be 0.
            let size = match value {
                Value::Array(_) => self.at_layer(key, value, at)?,
                _ => self.section.count(key, value)?,
            };
            total = match total {
                None => Some(size),
                Some(total) => with(total, size),
            };
            if total.is_none() {
                return Err(format!("`{}` in {} make no size", keys.join("`, `"), self.section.place));
            }
        }
        let known = total.filter(|total| *total > 0);
        known.ok_or_else(|| format!("`{}` in {} make no size", keys.join("`, `"), self.section.place))
    }
}
