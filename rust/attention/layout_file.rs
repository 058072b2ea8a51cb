//! Reads the layouts, which say how models store their attention, from the data files in `layouts/`.
//!
//! A new layout is a new file there and its name in `FILES`; "Adding a layout" in CONTRIBUTING.md says what to write.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use once_cell::race::OnceBox;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::types::{Component, OrProblem, Orientation, Role};
use crate::error::{Error, Result, quote};

/// How some models store their attention: the content of a data file in `layouts/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    pub(super) name: String,
    description: String,
    /// The model types of each component whose attention is stored so.
    model_types: BTreeMap<Component, Vec<String>>,
    /// The model types among them whose layers may have something else in place of attention.
    #[serde(default)]
    hybrids: Vec<String>,
    /// The paths that may stand between the number of the layer and a tensor's own name; `#` is one more number.
    pub(super) attention: Vec<String>,
    /// Parts of a name that stand for the numbers 0, 1 and so on. With `transformer` and `global_transformer`,
    /// the layers of `transformer` come first, and those of `global_transformer` after them.
    #[serde(default)]
    pub(super) counted: Vec<String>,
    pub(super) tensors: Vec<LayoutTensor>,
    /// Each list spells the tensors' own names, in the order of the tensors.
    pub(super) names: Vec<Vec<String>>,
    /// Where the sizes are given, if not under the usual keys of the configuration.
    #[serde(default)]
    pub(super) sizes: SizeSources,
    /// The key with the number of last layers that have no keys and values of their own.
    #[serde(default)]
    pub(super) layers_without_keys: Option<String>,
    #[serde(default)]
    pub(super) keys_as_values: KeysAsValues,
}

/// One of the tensors that store a layer's attention.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayoutTensor {
    #[serde(default)]
    pub(super) orientation: Orientation,
    /// The number of equal blocks that the `out` axis consists of.
    #[serde(default)]
    pub(super) blocks: Blocks,
    /// Whether its inputs may have another size than the hidden size.
    #[serde(default)]
    pub(super) any_inputs: bool,
    /// The matrices in each block, in this order: of each kind an equal share of the heads, head after head.
    pub(super) holds: Vec<MatrixKind>,
}

/// The number of blocks of a tensor.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Blocks {
    #[default]
    One,
    /// One block for each query head.
    QueryHeads,
    /// One block for each key/value group.
    KeyValueHeads,
    /// This many blocks in every model.
    Number(usize),
}

/// A kind of matrix in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MatrixKind {
    Query,
    Key,
    Value,
    /// The factors of a head's output: as many rows as a value, for every query head.
    Gate,
}

impl MatrixKind {
    pub(super) fn role(self) -> Option<Role> {
        match self {
            MatrixKind::Query => Some(Role::Query),
            MatrixKind::Key => Some(Role::Key),
            MatrixKind::Value => Some(Role::Value),
            MatrixKind::Gate => None,
        }
    }
}

/// Whether the keys of a layer that stores no values serve as values.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum KeysAsValues {
    #[default]
    Never,
    Always,
    /// In every layer without a tensor of values.
    WhereAbsent,
    /// In every layer without a tensor of values, if the configuration sets this flag.
    When(String),
}

/// Where the sizes of a layout are given, if not under the usual keys of the configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SizeSources {
    pub(super) layers: Option<SizeSource>,
    pub(super) query_heads: Option<SizeSource>,
    pub(super) key_value_heads: Option<SizeSource>,
    /// The size of a query. Without a source and a usual key it is the hidden size divided by the query heads.
    pub(super) head_size: Option<SizeSource>,
    /// The size of a key. Without a source it is that of a query.
    pub(super) key_size: Option<SizeSource>,
    /// The size of a value. Without a source it is that of a query.
    pub(super) value_size: Option<SizeSource>,
    pub(super) hidden_size: Option<SizeSource>,
}

/// Where a size is given.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum SizeSource {
    /// Under the first of these keys that the configuration has.
    Keys(Vec<String>),
    /// As the sum of the values of these keys.
    Sum(Vec<String>),
    /// As the product of the values of these keys.
    Product(Vec<String>),
    /// As the value of the first key divided by that of the second, rounded down.
    Quotient(String, String),
    /// It is this number.
    Number(usize),
    /// It is the length of this tensor, which is beside those of the attention.
    LengthOf(String),
    /// It follows from the shapes of the tensors.
    #[serde(rename = "stored")]
    FromShapes,
    /// It is one if the flags of the configuration have these values, else it is given under the keys.
    OneIf { flags: BTreeMap<String, bool>, keys: Vec<String> },
    /// Under the key for the kind that `layer_types` gives for the layer.
    ByKind(BTreeMap<String, String>),
}

impl SizeSources {
    fn check(&self) -> OrProblem<()> {
        let Self { layers, query_heads, key_value_heads, head_size, key_size, value_size, hidden_size } =
            self;
        let is_from_shapes = |source: &Option<SizeSource>| *source == Some(SizeSource::FromShapes);
        if is_from_shapes(query_heads) && is_from_shapes(head_size) {
            return Err("shapes cannot say both the number of heads and their size".to_owned());
        }
        if [key_size, value_size, hidden_size].into_iter().any(is_from_shapes) {
            return Err("only heads, the size of a head and the number of layers can be as stored".to_owned());
        }
        let is_length = |source: &&Option<SizeSource>| matches!(source, Some(SizeSource::LengthOf(_)));
        let others = [layers, query_heads, key_value_heads, key_size, value_size, hidden_size];
        if others.iter().any(is_length) {
            return Err("only the size of a head can be the length of a tensor".to_owned());
        }
        Ok(())
    }
}

impl Layout {
    /// The name of the layout.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The description of the layout, in one line.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The model types whose attention is stored so, each with the component.
    pub fn model_types(&self) -> impl Iterator<Item = (Component, &str)> {
        self.model_types
            .iter()
            .flat_map(|(component, types)| types.iter().map(|model_type| (*component, &**model_type)))
    }

    /// Whether models of this type store the attention of this component so.
    pub(super) fn has(&self, component: Component, model_type: &str) -> bool {
        self.model_types.get(&component).is_some_and(|types| types.iter().any(|known| known == model_type))
    }

    pub(super) fn is_hybrid(&self, model_type: &str) -> bool {
        self.hybrids.iter().any(|known| known == model_type)
    }

    /// The first spelling of the tensors' names under which a layer has every tensor that it needs.
    pub(super) fn spelling(&self, has: impl Fn(&str) -> bool) -> Option<&[String]> {
        let is_complete = |names: &&Vec<String>| {
            self.tensors.iter().zip(*names).all(|(tensor, name)| self.is_optional(tensor) || has(name))
        };
        self.names.iter().find(is_complete).map(|names| &**names)
    }

    /// Whether some layers may lack this tensor.
    fn is_optional(&self, tensor: &LayoutTensor) -> bool {
        let held = &tensor.holds;
        let may_lack_values =
            matches!(self.keys_as_values, KeysAsValues::When(_) | KeysAsValues::WhereAbsent);
        may_lack_values && *held == [MatrixKind::Value]
            || self.layers_without_keys.is_some() && !held.contains(&MatrixKind::Query)
    }

    fn parse(text: &str) -> OrProblem<Self> {
        let layout: Layout = serde_json::from_str(text).map_err(|error| error.to_string())?;
        layout.check()?;
        Ok(layout)
    }

    fn check(&self) -> OrProblem<()> {
        if self.model_types.values().all(Vec::is_empty) {
            return Err("there is no model type".to_owned());
        }
        for types in self.model_types.values() {
            check_unique("model type", types)?;
        }
        check_unique("attention", &self.attention)?;
        check_unique("hybrid", &self.hybrids)?;
        let known =
            |model_type: &String| self.model_types.values().flatten().any(|known| known == model_type);
        if let Some(unknown) = self.hybrids.iter().find(|hybrid| !known(hybrid)) {
            return Err(format!("the hybrid {} is none of the model types", quote(unknown)));
        }
        if self.attention.is_empty() {
            return Err("there is no `attention`".to_owned());
        }
        if let Some(path) =
            self.attention.iter().find(|path| !path.is_empty() && path.split('.').any(str::is_empty))
        {
            return Err(format!("{} in `attention` has an empty part", quote(path)));
        }
        self.check_tensors()?;
        self.sizes.check()
    }

    fn check_tensors(&self) -> OrProblem<()> {
        if self.tensors.iter().any(|tensor| tensor.holds.is_empty()) {
            return Err("a tensor holds nothing".to_owned());
        }
        if self.tensors.iter().any(|tensor| matches!(tensor.blocks, Blocks::Number(0))) {
            return Err("a tensor falls into 0 blocks".to_owned());
        }
        for role in Role::ALL {
            let held = self.tensors.iter().flat_map(|tensor| &tensor.holds);
            let count = held.filter(|held| held.role() == Some(role)).count();
            let expected = match (role, &self.keys_as_values) {
                (Role::Value, KeysAsValues::Always) => 0,
                _ => 1,
            };
            if count != expected {
                return Err(format!(
                    "the tensors hold the role {} {count} times instead of {expected}",
                    role.name()
                ));
            }
        }
        if self.names.is_empty() {
            return Err("there are no `names`".to_owned());
        }
        for names in &self.names {
            check_unique("tensor", names)?;
            if names.len() != self.tensors.len() {
                return Err(format!("{} names are given for {} tensors", names.len(), self.tensors.len()));
            }
        }
        Ok(())
    }
}

fn check_unique(what: &str, list: &[String]) -> OrProblem<()> {
    let mut seen = BTreeSet::new();
    match list.iter().find(|item| !seen.insert(*item)) {
        Some(repeated) => Err(format!("the {what} {} appears twice", quote(repeated))),
        None => Ok(()),
    }
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("layouts/", $name, ".json")))),*]
    };
}

/// The data files by the names of their layouts, embedded at build.
#[rustfmt::skip]
const FILES: &[(&str, &str)] = embedded![
    "albert", "chatglm", "codegen", "concatenated", "concatenated_staged", "consolidated", "convbert", "cross",
    "deepseek_v4", "gate_first", "gated", "inkling", "interleaved", "keys_for_values", "latent", "latent_gated",
    "longcat", "lxmert", "mimo", "mllama_vision", "mobilevit", "query_apart", "separate", "separate_by_layer",
    "separate_by_shape", "separate_in_layer", "shared", "telechat", "transposed", "videoprism", "xlm", "xlnet",
    "zamba",
];

/// Every known layout, in order of name.
///
/// # Errors
///
/// [`Error::Model`] if one of the data files that this library was built with is not well-formed.
pub fn layouts() -> Result<&'static [Layout]> {
    static LAYOUTS: OnceBox<std::result::Result<Vec<Layout>, (&str, String)>> = OnceBox::new();
    let parse_all = || FILES.iter().map(|(name, text)| parse(name, text).map_err(|problem| (*name, problem)));
    match LAYOUTS.get_or_init(|| Box::new(parse_all().collect())) {
        Ok(layouts) => Ok(layouts),
        Err((name, problem)) => {
            Err(Error::model(&Path::new("rust/attention/layouts").join(format!("{name}.json")), problem))
        }
    }
}

fn parse(name: &str, text: &str) -> OrProblem<Layout> {
    let layout = Layout::parse(text)?;
    if layout.name != name {
        return Err(format!("the layout's name is {}, not the file's", quote(&layout.name)));
    }
    Ok(layout)
}

/// The content of a data file of this library, which is parsed once, or by several threads at the same time. No thread waits
/// for another one, which a child process does not have if the process forks meanwhile.
pub(super) fn parse_embedded<T: DeserializeOwned>(
    parsed: &'static OnceBox<OrProblem<T>>,
    file: &str,
    text: &str,
) -> OrProblem<&'static T> {
    let parse = || serde_json::from_str(text).map_err(|error| format!("{file} of this library: {error}"));
    parsed.get_or_init(|| Box::new(parse())).as_ref().map_err(Clone::clone)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn valid() -> Value {
        json!({
            "name": "a",
            "description": "An example.",
            "model_types": {"decoder": ["a", "b"], "encoder": ["a"]},
            "hybrids": ["b"],
            "attention": ["attention", "self_attn.#"],
            "tensors": [
                {"blocks": "query_heads", "holds": ["query", "gate"]},
                {"orientation": "in_out", "any_inputs": true, "holds": ["key", "value"]},
            ],
            "names": [["query", "both"], ["q", "kv"]],
            "sizes": {"head_size": "stored"},
        })
    }

    /// Why the valid layout is refused after this change of it.
    #[track_caller]
    fn refusal(at: &str, value: Value) -> String {
        let mut layout = valid();
        let (parent, key) = at.rsplit_once('/').unwrap();
        layout.pointer_mut(parent).unwrap()[key] = value;
        Layout::parse(&layout.to_string()).unwrap_err()
    }

    #[test]
    fn every_embedded_layout_is_well_formed_and_in_order_of_name() {
        let names: Vec<&str> = layouts().unwrap().iter().map(Layout::name).collect();
        assert!(names.is_sorted() && names.contains(&"separate"));
        Layout::parse(&valid().to_string()).unwrap();
    }

    #[test]
    fn every_data_file_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rust/attention/layouts");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, FILES.iter().map(|(name, _)| format!("{name}.json")).collect::<Vec<_>>());
    }

    #[test]
    fn unknown_keys_are_refused_at_every_depth() {
        for at in ["/extra", "/sizes/extra"] {
            assert!(refusal(at, json!("x")).starts_with("unknown field `extra`"), "{at}");
        }
        let tensors = json!([{"holds": ["query"], "extra": 1}]);
        assert!(refusal("/tensors", tensors).starts_with("unknown field `extra`"));
        let tensors = json!([{"holds": ["queries"]}]);
        assert!(refusal("/tensors", tensors).starts_with("unknown variant `queries`"));
        assert!(refusal("/sizes/head_size", json!({"key": []})).starts_with("unknown variant `key`"));
        assert!(refusal("/model_types", json!({"tower": ["a"]})).starts_with("unknown variant `tower`"));
    }

    #[test]
    fn what_does_not_make_sense_is_refused() {
        assert_eq!(refusal("/model_types", json!({"decoder": []})), "there is no model type");
        let repeated = json!({"decoder": ["b", "b"]});
        assert_eq!(refusal("/model_types", repeated), "the model type `b` appears twice");
        assert_eq!(refusal("/hybrids", json!(["c"])), "the hybrid `c` is none of the model types");
        assert_eq!(refusal("/attention", json!([])), "there is no `attention`");
        assert_eq!(refusal("/attention", json!(["a..b"])), "`a..b` in `attention` has an empty part");
        assert_eq!(refusal("/names", json!([])), "there are no `names`");
        assert_eq!(refusal("/names", json!([["a"]])), "1 names are given for 2 tensors");
        assert_eq!(refusal("/names", json!([["a", "a"]])), "the tensor `a` appears twice");
        let nothing = json!([{"holds": []}, {"holds": ["query", "key", "value"]}]);
        assert_eq!(refusal("/tensors", nothing), "a tensor holds nothing");
        let no_blocks = json!([{"blocks": {"number": 0}, "holds": ["query", "key"]}, {"holds": ["value"]}]);
        assert_eq!(refusal("/tensors", no_blocks), "a tensor falls into 0 blocks");
        let twice = json!([{"holds": ["query", "key"]}, {"holds": ["key", "value"]}]);
        assert_eq!(refusal("/tensors", twice), "the tensors hold the role key 2 times instead of 1");
        assert_eq!(
            refusal("/keys_as_values", json!("always")),
            "the tensors hold the role value 1 times instead of 0"
        );
        let problem = refusal("/sizes/query_heads", json!("stored"));
        assert_eq!(problem, "shapes cannot say both the number of heads and their size");
        for size in ["layers", "query_heads", "key_value_heads", "key_size", "value_size", "hidden_size"] {
            let problem = refusal(&format!("/sizes/{size}"), json!({"length_of": "q_norm.weight"}));
            assert_eq!(problem, "only the size of a head can be the length of a tensor", "{size}");
        }
    }
}
