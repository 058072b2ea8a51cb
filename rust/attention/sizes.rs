//! Reads the sizes of a layer's attention from the configuration (`num_attention_heads`, `head_dim` and their other names),
//! or from the shapes of its tensors.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use once_cell::race::OnceBox;
use serde::Deserialize;
use serde_json::Value;

use super::config_section::{ConfigSection, show};
use super::layer_stacks::TensorShapes;
use super::layout_file::{Blocks, LayoutTensor, MatrixKind, SizeSource, SizeSources, parse_embedded};
use super::types::{Component, OrProblem, Role};
use crate::error::quote;

/// The keys under which configurations commonly give sizes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SizeKeys {
    layers: Vec<String>,
    /// The numbers of layers of all stages, where layers come in stages.
    stages: Vec<String>,
    query_heads: Vec<String>,
    key_value_heads: Vec<String>,
    /// `head_dim` in most configurations.
    head_size: Vec<String>,
    hidden_size: Vec<String>,
}

/// The content of `config_keys.json`. The keys of a component precede those of any component.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsualKeys {
    any: SizeKeys,
    of: BTreeMap<Component, SizeKeys>,
}

fn usual_keys() -> OrProblem<&'static UsualKeys> {
    static KEYS: OnceBox<OrProblem<UsualKeys>> = OnceBox::new();
    parse_embedded(&KEYS, "config_keys.json", include_str!("config_keys.json"))
}

/// The position of a layer among the layers and stages of the model.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerPosition {
    pub(super) layer: usize,
    pub(super) layers: usize,
    pub(super) stage: usize,
    pub(super) stages: usize,
}

/// The number of layers that the configuration gives.
#[derive(Debug)]
pub(super) struct LayerCount {
    pub(super) count: usize,
    /// The key that gives it.
    pub(super) key: String,
    /// The number of layers of each stage, if the configuration counts by stage.
    stages: Vec<usize>,
}

impl LayerCount {
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

/// The attention tensors of one layer.
pub(super) struct LayerTensors<'p, 'a> {
    pub(super) shapes: &'a TensorShapes<'a>,
    pub(super) path: &'p str,
    /// The tensors of the layout that the layer has, with the names of their modules.
    pub(super) present: Vec<(&'static LayoutTensor, &'a str)>,
}

impl LayerTensors<'_, '_> {
    /// The tensor that holds a role, with the name of its module.
    pub(super) fn of_role(&self, role: Role) -> Option<(&'static LayoutTensor, &str)> {
        let holds = |tensor: &LayoutTensor| tensor.holds.iter().any(|kind| kind.role() == Some(role));
        self.present.iter().find(|(tensor, _)| holds(tensor)).copied()
    }

    /// The out features of the tensor that holds a role, and the kinds of all matrices in it.
    fn out_features(&self, role: Role) -> Option<(usize, &'static [MatrixKind])> {
        let (tensor, module) = self.of_role(role)?;
        let [out, _] = self.shapes.features(module, tensor.orientation)?;
        Some((out, &*tensor.holds))
    }

    /// The out features of a tensor that holds one role only.
    fn own_out_features(&self, role: Role) -> OrProblem<usize> {
        match self.out_features(role) {
            Some((features, [_])) => Ok(features),
            _ => Err(format!("no tensor holds nothing but the {} weights", role.name())),
        }
    }

    /// The length of a tensor of one dimension beside those of the attention.
    fn length_of(&self, name: &str) -> Option<usize> {
        match self.shapes.stored.get(&format!("{}.{name}", self.path))? {
            (_, [length]) => Some(*length),
            _ => None,
        }
    }
}

/// The numbers and sizes of the heads of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadSizes {
    pub(super) query_heads: usize,
    pub(super) key_value_heads: usize,
    query_size: usize,
    key_size: usize,
    value_size: usize,
    /// The in features of the tensors, if the configuration gives them.
    pub(super) hidden_size: Option<usize>,
}

impl HeadSizes {
    /// The number of matrices of a kind, and the number of rows of each.
    pub(super) fn matrices(&self, kind: MatrixKind) -> (usize, usize) {
        match kind {
            MatrixKind::Query => (self.query_heads, self.query_size),
            MatrixKind::Key => (self.key_value_heads, self.key_size),
            MatrixKind::Value => (self.key_value_heads, self.value_size),
            MatrixKind::Gate => (self.query_heads, self.value_size),
        }
    }

    /// The number of blocks of a tensor.
    pub(super) fn blocks(&self, tensor: &LayoutTensor) -> usize {
        match tensor.blocks {
            Blocks::One => 1,
            Blocks::QueryHeads => self.query_heads,
            Blocks::KeyValueHeads => self.key_value_heads,
            Blocks::Number(number) => number,
        }
    }

    /// Describes the matrices that a tensor consists of.
    pub(super) fn describe(&self, tensor: &LayoutTensor) -> String {
        let mut text = String::new();
        for kind in &tensor.holds {
            let name = match kind {
                MatrixKind::Query => "query",
                MatrixKind::Key | MatrixKind::Value if tensor.holds.len() == 1 => "key/value",
                MatrixKind::Key => "key",
                MatrixKind::Value => "value",
                MatrixKind::Gate => "gate",
            };
            let (count, rows) = self.matrices(*kind);
            let heads = if count == 1 { "head" } else { "heads" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{count} {name} {heads} of size {rows}, ");
        }
        match self.hidden_size.filter(|_| !tensor.any_inputs) {
            Some(hidden) => text + &format!("hidden size {hidden}"),
            None => text.trim_end_matches(", ").to_owned(),
        }
    }
}

/// Reads sizes from one section of a configuration, those of the whole model or those of one layer.
#[derive(Clone, Copy)]
pub(super) struct SizeReader<'a> {
    sources: &'a SizeSources,
    section: &'a ConfigSection<'a>,
    component: Component,
    usual: &'static UsualKeys,
    at: Option<LayerPosition>,
}

/// One of the lists of usual keys.
type Field = fn(&SizeKeys) -> &Vec<String>;

impl<'a> SizeReader<'a> {
    pub(super) fn new(
        sources: &'a SizeSources,
        section: &'a ConfigSection<'a>,
        component: Component,
    ) -> OrProblem<Self> {
        Ok(SizeReader { sources, section, component, usual: usual_keys()?, at: None })
    }

    /// A reader of the sizes of one layer.
    pub(super) fn at(self, position: LayerPosition) -> Self {
        SizeReader { at: Some(position), ..self }
    }

    /// The number of layers; `None` if it follows from the tensors only.
    pub(super) fn layer_count(&self, is_staged: bool) -> OrProblem<Option<LayerCount>> {
        let section = self.section;
        let field: Field = if is_staged { |keys| &keys.stages } else { |keys| &keys.layers };
        let keys = match &self.sources.layers {
            Some(SizeSource::FromShapes) => return Ok(None),
            source @ (None | Some(SizeSource::Keys(_))) => self.keys(source, field),
            source => {
                let (key, count) = self.find(source, field)?.unwrap_or_default();
                return Ok(Some(LayerCount { count, key, stages: Vec::new() }));
            }
        };
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, section.value(key)?))) else {
            return Err(self.lacks("the number of layers", &keys));
        };
        let key = key.clone();
        let Value::Array(entries) = value else {
            return Ok(Some(LayerCount { count: section.size(&key, value)?, key, stages: Vec::new() }));
        };
        // A list holds the kind of every layer, or the number of layers of every stage.
        if entries.iter().all(Value::is_string) {
            return Ok(Some(LayerCount { count: entries.len(), key, stages: Vec::new() }));
        }
        let stages: Vec<usize> =
            entries.iter().map(|stage| section.size(&key, stage)).collect::<OrProblem<_>>()?;
        let count = stages.iter().fold(0_usize, |sum, stage| sum.saturating_add(*stage));
        Ok(Some(LayerCount { count, key, stages }))
    }

    /// The sizes of the heads of one layer.
    pub(super) fn head_sizes(&self, tensors: &LayerTensors<'_, '_>) -> OrProblem<HeadSizes> {
        let sources = self.sources;
        let hidden_size = self.find_size(&sources.hidden_size, |keys| &keys.hidden_size)?;
        let (query_heads, query_size) = self.query_sizes(tensors, hidden_size)?;
        let own_size = |source: &Option<SizeSource>| match source {
            None => Ok(query_size),
            source => self.require(source, |keys| &keys.head_size, "the size of a head"),
        };
        let (key_size, value_size) = (own_size(&sources.key_size)?, own_size(&sources.value_size)?);
        let key_value_heads = match &sources.key_value_heads {
            Some(SizeSource::FromShapes) => match tensors.out_features(Role::Key) {
                Some(_) => divide("key", tensors.own_out_features(Role::Key)?, key_size)?,
                None => query_heads,
            },
            source => self.find_size(source, |keys| &keys.key_value_heads)?.unwrap_or(query_heads),
        };
        if !query_heads.is_multiple_of(key_value_heads) {
            return Err(format!(
                "{} says that {query_heads} query heads share {key_value_heads} key/value heads, but {query_heads} is \
                 not a multiple of {key_value_heads}",
                self.section.name
            ));
        }
        Ok(HeadSizes { query_heads, key_value_heads, query_size, key_size, value_size, hidden_size })
    }

    /// The number of query heads, and the number of rows of each.
    fn query_sizes(
        &self,
        tensors: &LayerTensors<'_, '_>,
        hidden_size: Option<usize>,
    ) -> OrProblem<(usize, usize)> {
        let sources = self.sources;
        if sources.query_heads == Some(SizeSource::FromShapes) {
            let size = self.head_size(tensors)?.ok_or_else(|| self.lacks_head_size(""))?;
            return Ok((divide("query", tensors.own_out_features(Role::Query)?, size)?, size));
        }
        let heads = self.require(&sources.query_heads, |keys| &keys.query_heads, "the number of heads")?;
        if sources.head_size == Some(SizeSource::FromShapes) {
            // A fused tensor has as many rows of keys and of values as of queries.
            let (features, held) =
                tensors.out_features(Role::Query).ok_or("there is no tensor of queries")?;
            return Ok((heads, divide("query", features, heads.saturating_mul(held.len()))?));
        }
        match (self.head_size(tensors)?, hidden_size) {
            (Some(size), _) => Ok((heads, size)),
            (None, Some(hidden)) if hidden.is_multiple_of(heads) => Ok((heads, hidden / heads)),
            (None, Some(hidden)) => Err(self.lacks_head_size(&format!(
                ", and gives a hidden size of {hidden}, which is not a multiple of the {heads} query heads"
            ))),
            (None, None) => Err(self.lacks_head_size("")),
        }
    }

    /// The size of a head, if something other than the hidden size gives it.
    fn head_size(&self, tensors: &LayerTensors<'_, '_>) -> OrProblem<Option<usize>> {
        match &self.sources.head_size {
            Some(SizeSource::LengthOf(name)) => match tensors.length_of(name) {
                Some(length) => Ok(Some(length)),
                None => Err(format!(
                    "there is no tensor {} of one dimension, which has the size of a head",
                    quote(name)
                )),
            },
            source => self.find_size(source, |keys| &keys.head_size),
        }
    }

    /// The problem that the hidden size is needed but not given.
    pub(super) fn lacks_hidden_size(&self) -> String {
        self.lacks("the hidden size", &self.keys(&None, |keys| &keys.hidden_size))
    }

    fn lacks_head_size(&self, more: &str) -> String {
        let keys = self.keys(&None, |keys| &keys.head_size);
        format!("{}{more}: the size of a head is unknown", self.lacks("the size of a head", &keys))
    }

    fn lacks(&self, what: &str, keys: &[&String]) -> String {
        let keys: Vec<String> = keys.iter().map(|key| quote(key)).collect();
        format!("{} does not say {what} (under {})", self.section.name, keys.join(" or "))
    }

    /// The keys of the source, or else the usual ones.
    fn keys<'k>(&self, source: &'k Option<SizeSource>, field: Field) -> Vec<&'k String> {
        if let Some(SizeSource::Keys(keys)) = source {
            return keys.iter().collect();
        }
        let of_component = self.usual.of.get(&self.component).map(field);
        of_component.into_iter().chain([field(&self.usual.any)]).flatten().collect()
    }

    fn require(&self, source: &Option<SizeSource>, field: Field, what: &str) -> OrProblem<usize> {
        self.find_size(source, field)?.ok_or_else(|| self.lacks(what, &self.keys(source, field)))
    }

    fn find_size(&self, source: &Option<SizeSource>, field: Field) -> OrProblem<Option<usize>> {
        Ok(self.find(source, field)?.map(|(_, size)| size))
    }

    /// The size, with the keys that give it, if the configuration gives it.
    fn find(&self, source: &Option<SizeSource>, field: Field) -> OrProblem<Option<(String, usize)>> {
        let keys: Vec<&String> = match source {
            Some(SizeSource::Number(number)) => return Ok(Some((number.to_string(), *number))),
            Some(SizeSource::Sum(keys)) => return self.combine(keys, "+", usize::checked_add).map(Some),
            Some(SizeSource::Product(keys)) => {
                return self.combine(keys, "x", usize::checked_mul).map(Some);
            }
            Some(SizeSource::Quotient(dividend, divisor)) => {
                let keys = [dividend.clone(), divisor.clone()];
                return self.combine(&keys, "/", usize::checked_div).map(Some);
            }
            Some(SizeSource::OneIf { flags, keys }) => {
                let mut all = true;
                for (flag, wanted) in flags {
                    all &= self.section.flag(flag)? == *wanted;
                }
                if all {
                    return Ok(Some((flags.keys().cloned().collect::<Vec<_>>().join("`, `"), 1)));
                }
                keys.iter().collect()
            }
            Some(SizeSource::ByKind(kinds)) => vec![self.key_of_kind(kinds)?],
            source => self.keys(source, field),
        };
        let found = keys.into_iter().find_map(|key| Some((key, self.value(key)?)));
        found.map(|(key, value)| Ok((key.clone(), self.at_layer(key, value)?))).transpose()
    }

    /// The key for the kind of a layer.
    fn key_of_kind<'k>(&self, kinds: &'k BTreeMap<String, String>) -> OrProblem<&'k String> {
        let types = self.section.value("layer_types").and_then(Value::as_array);
        let kind = self.at.and_then(|at| types?.get(at.layer)?.as_str());
        kind.and_then(|kind| kinds.get(kind)).ok_or_else(|| {
            let known: Vec<&str> = kinds.keys().map(|kind| &**kind).collect();
            format!(
                "`layer_types` in {} should say of every layer that it is one of {}",
                self.section.name,
                known.join(", ")
            )
        })
    }

    /// The value of a key, which `per_layer_config` may give for a single layer.
    fn value(&self, key: &str) -> Option<&'a Value> {
        let of_layer = self.at.and_then(|at| {
            let layers = self.section.value("per_layer_config")?.as_object()?;
            layers.get(&at.layer.to_string())?.get(key).filter(|value| !value.is_null())
        });
        of_layer.or_else(|| self.section.value(key))
    }

    /// Reads a size. Of a list, takes the entry of this layer or of its stage.
    fn at_layer(&self, key: &str, value: &Value) -> OrProblem<usize> {
        let (Value::Array(entries), Some(at)) = (value, self.at) else {
            return self.section.size(key, value);
        };
        let index = match entries.len() {
            length if length == at.layers => at.layer,
            length if length == at.stages => at.stage,
            length => {
                return Err(format!(
                    "`{key}` in {} is a list of {length} values for {} layers",
                    self.section.name, at.layers
                ));
            }
        };
        match entries.get(index) {
            Some(value) => self.section.size(key, value),
            None => Err(format!("`{key}` in {} is {}", self.section.name, show(value))),
        }
    }

    /// The value of the first key combined with those of the others, and the keys joined by the sign.
    fn combine(
        &self,
        keys: &[String],
        sign: &str,
        combine: fn(usize, usize) -> Option<usize>,
    ) -> OrProblem<(String, usize)> {
        let no_size = || format!("`{}` in {} make no size", keys.join("`, `"), self.section.name);
        let mut total = None;
        for key in keys {
            let value = self
                .value(key)
                .ok_or_else(|| format!("{} has no `{key}`, which is needed", self.section.name))?;
            // A term of a sum may be 0.
            let size = match value {
                Value::Array(_) => self.at_layer(key, value)?,
                _ => self.section.count(key, value)?,
            };
            total = Some(match total {
                None => size,
                Some(total) => combine(total, size).ok_or_else(no_size)?,
            });
        }
        let total = total.filter(|total| *total > 0).ok_or_else(no_size)?;
        Ok((keys.join(&format!("` {sign} `")), total))
    }
}

/// The number of matrices of `rows` rows in so many features.
fn divide(what: &str, features: usize, rows: usize) -> OrProblem<usize> {
    match features.checked_div(rows) {
        Some(count @ 1..) if features.is_multiple_of(rows) => Ok(count),
        _ => Err(format!("{features} {what} features are not a multiple of {rows}")),
    }
}
