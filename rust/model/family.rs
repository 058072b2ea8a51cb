//! The families of storage, read from the data files in `layouts/`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::error::quote;
use crate::{Error, Result};

/// Which of a head's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    /// The name of the role, as the data files write it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
        }
    }
}

/// How a matrix from `in` features to `out` features is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// `[out, in]`, as torch's `Linear` does: a head owns rows.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D` does: a head owns columns.
    InOut,
}

/// One way in which models store their attention: a data file in `layouts/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) model_types: Vec<String>,
    /// All that may stand before `attention` in a name. Since nothing else may, the layers of other towers,
    /// which often end in the same parts, are not taken for those of the text model.
    pub(super) prefixes: Vec<String>,
    /// What stands between the prefix and a tensor's own name, with `{layer}` for the number of the layer.
    pub(super) attention: String,
    pub(super) tensors: Vec<StoredTensor>,
    pub(super) config: ConfigKeys,
}

/// A tensor that every layer of a family has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) orientation: Orientation,
    /// What lies one after the other along the `out` axis; within each, head after head.
    pub(super) holds: Vec<Role>,
}

/// Under which keys the configuration says how large the attention is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigKeys {
    pub(super) layers: String,
    pub(super) query_heads: String,
    /// If there is no such key, or the configuration leaves it out: as many as query heads.
    pub(super) key_value_heads: Option<String>,
    /// If there is no such key, or the configuration leaves it out: the hidden size divided by the query heads.
    pub(super) head_size: Option<String>,
    pub(super) hidden_size: String,
}

const LAYER: &str = "{layer}";

impl Family {
    /// The name of the family.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line about it.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The values of `model_type` that are read in this way.
    pub fn model_types(&self) -> impl ExactSizeIterator<Item = &str> {
        self.model_types.iter().map(|model_type| &**model_type)
    }

    pub(super) fn has(&self, model_type: &str) -> bool {
        self.model_types.iter().any(|known| known == model_type)
    }

    /// What stands before and after the number of the layer.
    pub(super) fn around_layer(&self) -> (&str, &str) {
        self.attention.split_once(LAYER).unwrap_or((&self.attention, ""))
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let family: Family = serde_json::from_str(text).map_err(|error| error.to_string())?;
        family.check()?;
        Ok(family)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let (before, after) = self.around_layer();
        if !before.ends_with('.') || !after.starts_with('.') || !after.ends_with('.') || after.contains(LAYER)
        {
            return Err(format!(
                "`attention` should be parts of a name, each followed by a dot, one of them {LAYER}, but is {}",
                quote(&self.attention)
            ));
        }
        if let Some(prefix) = self.prefixes.iter().find(|prefix| !prefix.is_empty() && !prefix.ends_with('.'))
        {
            return Err(format!("the prefix {} does not end in a dot", quote(prefix)));
        }
        for (what, list) in [("model type", &self.model_types), ("prefix", &self.prefixes)] {
            if list.is_empty() {
                return Err(format!("there is no {what}"));
            }
            if let Some(repeated) = first_repeated(list) {
                return Err(format!("the {what} {} appears twice", quote(repeated)));
            }
        }
        if let Some(repeated) = first_repeated(self.tensors.iter().map(|tensor| &tensor.name)) {
            return Err(format!("the tensor {} appears twice", quote(repeated)));
        }
        for role in Role::ALL {
            let count =
                self.tensors.iter().flat_map(|tensor| &tensor.holds).filter(|held| **held == role).count();
            if count != 1 {
                return Err(format!(
                    "the tensors hold the role {} {count} times instead of once",
                    role.name()
                ));
            }
        }
        match self.tensors.iter().find(|tensor| tensor.holds.is_empty()) {
            Some(tensor) => Err(format!("the tensor {} holds nothing", quote(&tensor.name))),
            None => Ok(()),
        }
    }
}

fn first_repeated<'a>(list: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
    let mut seen = std::collections::BTreeSet::new();
    list.into_iter().find(|item| !seen.insert(*item))
}

/// The data files, embedded at build.
const FILES: [(&str, &str); 3] = [
    ("bert.json", include_str!("layouts/bert.json")),
    ("gpt2.json", include_str!("layouts/gpt2.json")),
    ("separate.json", include_str!("layouts/separate.json")),
];

/// Every known family, in order of name.
///
/// # Errors
///
/// [`Error::Model`] if one of the data files that this library was built with is not well-formed.
pub fn families() -> Result<&'static [Family]> {
    static FAMILIES: OnceLock<std::result::Result<Vec<Family>, (&str, String)>> = OnceLock::new();
    match FAMILIES.get_or_init(|| parse_all(&FILES)) {
        Ok(families) => Ok(families),
        Err((file, problem)) => Err(Error::model(&Path::new("rust/model/layouts").join(file), problem)),
    }
}

fn parse_all<'a>(files: &[(&'a str, &str)]) -> std::result::Result<Vec<Family>, (&'a str, String)> {
    let mut families: Vec<Family> = Vec::new();
    let mut owners = BTreeMap::new();
    for (file, text) in files {
        let family = Family::parse(text).map_err(|problem| (*file, problem))?;
        if *file != format!("{}.json", family.name) {
            return Err((file, format!("the family's name is {}, not the file's", quote(&family.name))));
        }
        for model_type in &family.model_types {
            if let Some(owner) = owners.insert(model_type.clone(), *file) {
                return Err((file, format!("the model type {} is also in {owner}", quote(model_type))));
            }
        }
        families.push(family);
    }
    Ok(families)
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
            "model_types": ["a"],
            "prefixes": ["", "model."],
            "attention": "layers.{layer}.attention.",
            "tensors": [
                {"name": "query.weight", "orientation": "out_in", "holds": ["query"]},
                {"name": "both.weight", "orientation": "in_out", "holds": ["key", "value"]},
            ],
            "config": {"layers": "layers", "query_heads": "heads", "hidden_size": "width"},
        })
    }

    /// Why the valid family is refused after this change of it.
    #[track_caller]
    fn refusal(at: &str, value: Value) -> String {
        let mut family = valid();
        let (parent, key) = at.rsplit_once('/').unwrap();
        family.pointer_mut(parent).unwrap()[key] = value;
        Family::parse(&family.to_string()).unwrap_err()
    }

    #[test]
    fn every_embedded_family_is_well_formed_and_in_order_of_name() {
        let names: Vec<&str> = families().unwrap().iter().map(Family::name).collect();
        assert_eq!(names, ["bert", "gpt2", "separate"]);
        Family::parse(&valid().to_string()).unwrap();
    }

    #[test]
    fn every_data_file_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rust/model/layouts");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, FILES.map(|(file, _)| file));
    }

    #[test]
    fn unknown_keys_are_refused_at_every_depth() {
        for at in ["/extra", "/tensors/0/extra", "/config/extra"] {
            assert!(refusal(at, json!("x")).starts_with("unknown field `extra`"), "{at}");
        }
        assert!(refusal("/tensors/0/holds", json!(["gate"])).starts_with("unknown variant `gate`"));
        assert!(refusal("/tensors/0/orientation", json!("rows")).starts_with("unknown variant `rows`"));
    }

    #[test]
    fn what_does_not_make_sense_is_refused() {
        let repeated = json!(["x.", "x."]);
        assert_eq!(refusal("/prefixes", repeated), "the prefix `x.` appears twice");
        assert_eq!(refusal("/prefixes", json!(["x"])), "the prefix `x` does not end in a dot");
        assert_eq!(refusal("/prefixes", json!([])), "there is no prefix");
        assert_eq!(refusal("/model_types", json!([])), "there is no model type");
        assert_eq!(refusal("/model_types", json!(["b", "b"])), "the model type `b` appears twice");
        assert_eq!(
            refusal("/tensors/0/name", json!("both.weight")),
            "the tensor `both.weight` appears twice"
        );
        let missing = "the tensors hold the role query 0 times instead of once";
        assert_eq!(refusal("/tensors/0/holds", json!([])), missing);
        let twice = "the tensors hold the role key 2 times instead of once";
        assert_eq!(refusal("/tensors/0/holds", json!(["query", "key"])), twice);
        for attention in ["layers.", "layers.{layer}", "{layer}.a.", "x{layer}.a.", "a.{layer}.{layer}."] {
            let problem = refusal("/attention", json!(attention));
            assert!(problem.starts_with("`attention` should be"), "{problem}");
        }
    }

    #[test]
    fn a_model_type_belongs_to_one_family() {
        let first = valid().to_string();
        let second = first.replace(r#""name":"a""#, r#""name":"b""#);
        let problem = parse_all(&[("a.json", &first), ("b.json", &second)]).unwrap_err();
        assert_eq!(problem, ("b.json", "the model type `a` is also in a.json".to_owned()));
        let problem = parse_all(&[("c.json", &first)]).unwrap_err();
        assert_eq!(problem, ("c.json", "the family's name is `a`, not the file's".to_owned()));
    }
}
