//! The layouts of storage, read from the data files in `layouts/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;

use super::component::Component;
use super::sizes::Sizes;
use crate::error::quote;
use crate::{Error, Result};

/// Which of a head's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// What the head looks for; one per query head.
    Query,
    /// What is found; one per key/value group.
    Key,
    /// What is carried on; one per key/value group.
    Value,
}

impl Role {
    /// Every role, in the order in which a head's weights are written one after the other.
    pub const ALL: [Role; 3] = [Role::Query, Role::Key, Role::Value];

    /// The name of the role.
    pub fn name(self) -> &'static str {
        match self {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
        }
    }
}

/// How a matrix from `in` features to `out` features is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// `[out, in]`, as torch's `Linear` does: a head owns rows.
    #[default]
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D` does: a head owns columns.
    InOut,
}

/// One way in which models store their attention: a data file in `layouts/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    pub(super) name: String,
    pub(super) description: String,
    /// The model types that store the attention of a component in this way.
    pub(super) model_types: BTreeMap<Component, Vec<String>>,
    /// Those of them in which a layer may have something else in the place of attention.
    #[serde(default)]
    pub(super) hybrids: Vec<String>,
    /// What may stand between the number of the layer and a tensor's own name; `#` is one more number.
    pub(super) attention: Vec<String>,
    /// Parts of a name that count as the numbers 0, 1 and so on: stacks that follow each other.
    #[serde(default)]
    pub(super) counted: Vec<String>,
    pub(super) tensors: Vec<StoredTensor>,
    /// The tensors' own names, in their order: each list is one way to spell them.
    pub(super) names: Vec<Vec<String>>,
    /// Where the sizes are to be found, if not where most configurations have them.
    #[serde(default)]
    pub(super) sizes: Sizes,
    /// The key that says how many of the last layers have no keys and values of their own.
    #[serde(default)]
    pub(super) layers_without_keys: Option<String>,
    #[serde(default)]
    pub(super) keys_as_values: KeysAsValues,
}

/// One of the tensors that a layer's attention is stored in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredTensor {
    #[serde(default)]
    pub(super) orientation: Orientation,
    /// Into how many equal blocks the `out` axis falls.
    #[serde(default)]
    pub(super) blocks: Blocks,
    /// Whether it need not take inputs of the hidden size.
    #[serde(default)]
    pub(super) any_inputs: bool,
    /// What lies one after the other within a block; of each, an equal share of the heads, head after head.
    pub(super) holds: Vec<Held>,
}

/// How many blocks a tensor falls into.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Blocks {
    #[default]
    One,
    /// One for each query head.
    QueryHeads,
    /// One for each key/value group.
    KeyValueHeads,
    /// So many, whatever the model.
    Number(usize),
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Held {
    Query,
    Key,
    Value,
    /// What a head's output is multiplied by: as many rows as a value, for every query head.
    Gate,
}

impl Held {
    pub(super) fn role(self) -> Option<Role> {
        match self {
            Held::Query => Some(Role::Query),
            Held::Key => Some(Role::Key),
            Held::Value => Some(Role::Value),
            Held::Gate => None,
        }
    }
}

/// Whether a layer that stores no values takes its keys for them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum KeysAsValues {
    #[default]
    Never,
    Always,
    /// In every layer that has no tensor of values.
    WhereAbsent,
    /// In these, if the configuration says so under this key.
    When(String),
}

impl Layout {
    /// The name of the layout.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line about it.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The values of `model_type` whose attention of a component is read in this way.
    pub fn model_types(&self) -> impl Iterator<Item = (Component, &str)> {
        self.model_types
            .iter()
            .flat_map(|(component, types)| types.iter().map(|model_type| (*component, &**model_type)))
    }

    pub(super) fn has(&self, component: Component, model_type: &str) -> bool {
        self.model_types.get(&component).is_some_and(|types| types.iter().any(|known| known == model_type))
    }

    pub(super) fn is_hybrid(&self, model_type: &str) -> bool {
        self.hybrids.iter().any(|known| known == model_type)
    }

    /// Whether some layers may do without this tensor.
    pub(super) fn may_lack(&self, tensor: &StoredTensor) -> bool {
        let held = &tensor.holds;
        let optional = matches!(self.keys_as_values, KeysAsValues::When(_) | KeysAsValues::WhereAbsent);
        let no_values = optional && *held == [Held::Value];
        no_values || self.layers_without_keys.is_some() && !held.contains(&Held::Query)
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let layout: Layout = serde_json::from_str(text).map_err(|error| error.to_string())?;
        layout.check()?;
        Ok(layout)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.model_types.values().all(Vec::is_empty) {
            return Err("there is no model type".to_owned());
        }
        for types in self.model_types.values() {
            refuse_repetition("model type", types)?;
        }
        refuse_repetition("attention", &self.attention)?;
        refuse_repetition("hybrid", &self.hybrids)?;
        let known =
            |model_type: &String| self.model_types.values().flatten().any(|known| known == model_type);
        if let Some(stranger) = self.hybrids.iter().find(|hybrid| !known(hybrid)) {
            return Err(format!("the hybrid {} is none of the model types", quote(stranger)));
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

    fn check_tensors(&self) -> std::result::Result<(), String> {
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
            refuse_repetition("tensor", names)?;
            if names.len() != self.tensors.len() {
                return Err(format!("{} names are given for {} tensors", names.len(), self.tensors.len()));
            }
        }
        Ok(())
    }
}

fn refuse_repetition(what: &str, list: &[String]) -> std::result::Result<(), String> {
    let mut seen = BTreeSet::new();
    match list.iter().find(|item| !seen.insert(*item)) {
        Some(repeated) => Err(format!("the {what} {} appears twice", quote(repeated))),
        None => Ok(()),
    }
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("layouts/", $name)))),*]
    };
}

/// The data files, embedded at build.
const FILES: &[(&str, &str)] = embedded![
    "albert.json",
    "codegen.json",
    "concatenated.json",
    "concatenated_staged.json",
    "consolidated.json",
    "convbert.json",
    "cross.json",
    "deepseek_v4.json",
    "gate_first.json",
    "gated.json",
    "inkling.json",
    "interleaved.json",
    "keys_for_values.json",
    "latent.json",
    "latent_gated.json",
    "longcat.json",
    "lxmert.json",
    "mimo.json",
    "mllama_vision.json",
    "mobilevit.json",
    "query_apart.json",
    "separate.json",
    "separate_by_shape.json",
    "shared.json",
    "transposed.json",
    "videoprism.json",
    "xlm.json",
    "xlnet.json",
    "zamba.json",
];

/// Every known layout, in order of name.
///
/// # Errors
///
/// [`Error::Model`] if one of the data files that this library was built with is not well-formed.
pub fn layouts() -> Result<&'static [Layout]> {
    static FAMILIES: OnceLock<std::result::Result<Vec<Layout>, (&str, String)>> = OnceLock::new();
    match FAMILIES.get_or_init(|| parse_all(FILES)) {
        Ok(layouts) => Ok(layouts),
        Err((file, problem)) => Err(Error::model(&Path::new("rust/attention/layouts").join(file), problem)),
    }
}

fn parse_all<'a>(files: &[(&'a str, &str)]) -> std::result::Result<Vec<Layout>, (&'a str, String)> {
    let mut layouts: Vec<Layout> = Vec::new();
    for (file, text) in files {
        let layout = Layout::parse(text).map_err(|problem| (*file, problem))?;
        if *file != format!("{}.json", layout.name) {
            return Err((file, format!("the layout's name is {}, not the file's", quote(&layout.name))));
        }
        layouts.push(layout);
    }
    Ok(layouts)
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
    fn every_embedded_family_is_well_formed_and_in_order_of_name() {
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
        assert_eq!(found, FILES.iter().map(|(file, _)| *file).collect::<Vec<_>>());
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
    }
}
