//! What `quantization_config` in `config.json` says.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result, quote, shorten};

/// How the checkpoint was quantised, as its configuration has it.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) method: Method,
    /// The modules that were left as they are.
    pub(super) skipped: Vec<String>,
}

/// What wrote the tensors.
#[derive(Clone, Debug)]
pub(super) enum Method {
    /// The configuration says nothing.
    Unstated,
    Fp8(Fp8),
    FbgemmFp8,
    CompressedTensors(Vec<Weights>),
    BitsAndBytes(BitsAndBytes),
    Gptq(Gptq),
    Awq(Awq),
    /// Another one, of this name.
    Other(String),
}

impl Method {
    /// What `quant_method` calls it.
    pub(super) fn name(&self) -> &str {
        match self {
            Method::Unstated => "absent",
            Method::Fp8(_) => "fp8",
            Method::FbgemmFp8 => "fbgemm_fp8",
            Method::CompressedTensors(_) => "compressed-tensors",
            Method::BitsAndBytes(_) => "bitsandbytes",
            Method::Gptq(_) => "gptq",
            Method::Awq(_) => "awq",
            Method::Other(name) => name,
        }
    }
}

/// `quant_method` `fp8`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Fp8 {
    /// Rows and columns of a block.
    pub(super) weight_block_size: Option<[usize; 2]>,
}

/// `quant_method` `bitsandbytes`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct BitsAndBytes {
    #[serde(default)]
    pub(super) load_in_8bit: bool,
    #[serde(default)]
    pub(super) load_in_4bit: bool,
}

/// `quant_method` `gptq`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Gptq {
    pub(super) bits: usize,
    /// Input features that share a scale; -1 for all.
    pub(super) group_size: i64,
    checkpoint_format: Option<String>,
    format: Option<String>,
    /// Modules that were quantised otherwise, by pattern.
    pub(super) dynamic: Option<Map<String, Value>>,
}

/// `quant_method` `awq`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Awq {
    pub(super) bits: usize,
    /// Input features that share a scale; -1 for all.
    pub(super) group_size: i64,
    version: Option<String>,
    format: Option<String>,
}

impl Gptq {
    /// How the tensors are packed, under whichever of its names it is given.
    pub(super) fn format(&self) -> String {
        let format = self.checkpoint_format.as_deref().or(self.format.as_deref());
        format.unwrap_or("gptq").to_lowercase()
    }
}

impl Awq {
    /// How the tensors are packed, under whichever of its names it is given.
    pub(super) fn format(&self) -> String {
        let format = self.version.as_deref().or(self.format.as_deref());
        format.unwrap_or("gemm").to_lowercase()
    }
}

/// How one group of modules is quantised by compressed-tensors.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Weights {
    pub(super) num_bits: usize,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    #[serde(default = "yes")]
    pub(super) symmetric: bool,
    strategy: Option<Strategy>,
    group_size: Option<i64>,
    block_structure: Option<[usize; 2]>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Int,
    Float,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Strategy {
    Tensor,
    Channel,
    Group,
    Block,
    TensorGroup,
}

fn yes() -> bool {
    true
}

impl Weights {
    /// Rows and columns of the blocks that share a scale, in weights of these features.
    fn block(&self, [rows, columns]: [usize; 2]) -> Option<[usize; 2]> {
        let group = || self.group_size.and_then(|size| usize::try_from(size).ok());
        let strategy = self.strategy.unwrap_or(match self.group_size {
            None => Strategy::Tensor,
            Some(1..) => Strategy::Group,
            Some(_) => Strategy::Channel,
        });
        let block = match strategy {
            Strategy::Tensor => [rows, columns],
            Strategy::Channel => [1, columns],
            Strategy::Group | Strategy::TensorGroup => [1, group()?],
            Strategy::Block => self.block_structure?,
        };
        (!block.contains(&0)).then_some(block)
    }
}

/// The blocks that share a scale in weights of these features, by all of `groups` for which `fits`.
pub(super) fn stated_blocks(
    groups: &[Weights],
    features: [usize; 2],
    fits: impl Fn(&Weights) -> bool,
) -> Vec<[usize; 2]> {
    groups.iter().filter(|group| fits(group)).filter_map(|group| group.block(features)).collect()
}

#[derive(Deserialize)]
struct CompressedTensors {
    config_groups: Map<String, Value>,
    #[serde(default)]
    sparsity_config: Option<Map<String, Value>>,
    #[serde(default)]
    transform_config: Option<Map<String, Value>>,
}

impl Config {
    /// Reads the part of `config`, the content of `config.json`, that is about quantisation. `path` is what
    /// messages are about.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if it makes no sense.
    pub(super) fn read(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let refuse =
            |problem: String| Error::model(path, format!("quantization_config in config.json: {problem}"));
        // A model around a text model may say it of that one only.
        let places = [Some(config), config.get("text_config").and_then(Value::as_object)];
        let section = places.into_iter().flatten().find_map(|place| {
            ["quantization_config", "compression_config"]
                .iter()
                .filter_map(|key| place.get(*key))
                .find(|section| !section.is_null())
        });
        let section = match section {
            None => return Ok(Self { method: Method::Unstated, skipped: Vec::new() }),
            Some(Value::Object(section)) => section,
            Some(other) => {
                let found = shorten(&other.to_string(), 100);
                return Err(refuse(format!("expected a JSON object, found {found}")));
            }
        };
        Ok(Self { method: method(section).map_err(refuse)?, skipped: skipped(section) })
    }
}

fn method(section: &Map<String, Value>) -> std::result::Result<Method, String> {
    let named = |key: &str| section.get(key).and_then(Value::as_str).map(str::to_lowercase);
    let Some(name) = named("quant_method") else {
        // Older files of bitsandbytes do not name it.
        let is_set = |key: &str| section.get(key).and_then(Value::as_bool) == Some(true);
        return match is_set("load_in_8bit") || is_set("load_in_4bit") {
            true => parse(section).map(Method::BitsAndBytes),
            false => Ok(Method::Other("unnamed".into())), // as MLX writes it
        };
    };
    match &*name {
        "fp8" => {
            let fp8: Fp8 = parse(section)?;
            match fp8.weight_block_size {
                Some(block) if block.contains(&0) => {
                    Err(format!("`weight_block_size` is {block:?}; a block cannot be empty"))
                }
                _ => Ok(Method::Fp8(fp8)),
            }
        }
        "fbgemm_fp8" => Ok(Method::FbgemmFp8),
        "compressed-tensors" => compressed_tensors(section),
        "bitsandbytes" => parse(section).map(Method::BitsAndBytes),
        "gptq" => parse(section).map(Method::Gptq),
        "awq" => parse(section).map(Method::Awq),
        _ => Ok(Method::Other(name)),
    }
}

fn compressed_tensors(section: &Map<String, Value>) -> std::result::Result<Method, String> {
    let parsed: CompressedTensors = parse(section)?;
    let sparse =
        parsed.sparsity_config.as_ref().and_then(|sparse| sparse.get("format")).and_then(Value::as_str);
    if let Some(format) = sparse.filter(|format| *format != "dense") {
        return Ok(Method::Other(format!("compressed-tensors, sparse ({format})")));
    }
    let transforms = parsed.transform_config.as_ref().and_then(|transform| transform.get("config_groups"));
    if transforms.and_then(Value::as_object).is_some_and(|groups| !groups.is_empty()) {
        return Ok(Method::Other("compressed-tensors with rotated weights (transform_config)".into()));
    }
    let mut groups = Vec::new();
    for (name, group) in &parsed.config_groups {
        match group.get("weights") {
            None | Some(Value::Null) => {} // only activations
            Some(weights) => groups.push(
                Weights::deserialize(weights)
                    .map_err(|error| format!("`weights` of the group {}: {error}", quote(name)))?,
            ),
        }
    }
    Ok(Method::CompressedTensors(groups))
}

fn parse<T: DeserializeOwned>(section: &Map<String, Value>) -> std::result::Result<T, String> {
    T::deserialize(Value::Object(section.clone())).map_err(|error| shorten(&error.to_string(), 300))
}

/// The names in whichever list of skipped modules there is.
fn skipped(section: &Map<String, Value>) -> Vec<String> {
    let lists = ["ignore", "modules_to_not_convert", "llm_int8_skip_modules"];
    let names = lists.iter().filter_map(|key| section.get(*key)?.as_array()).flatten();
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<Config> {
        Config::read(Path::new("model"), config.as_object().unwrap())
    }

    #[test]
    fn nothing_said_is_nothing_stated() {
        for config in [json!({}), json!({"quantization_config": null}), json!({"text_config": null})] {
            assert!(matches!(read(config).unwrap().method, Method::Unstated));
        }
    }

    #[test]
    fn the_text_model_may_say_it() {
        let config = json!({"text_config": {"quantization_config": {"quant_method": "fbgemm_fp8"}}});
        assert!(matches!(read(config).unwrap().method, Method::FbgemmFp8));
    }

    #[test]
    fn bitsandbytes_need_not_be_named() {
        let config = json!({"quantization_config": {"load_in_4bit": true, "load_in_8bit": false}});
        assert!(matches!(read(config).unwrap().method, Method::BitsAndBytes(of) if of.load_in_4bit));
    }

    #[test]
    fn blocks_are_those_of_the_strategy() {
        let features = [64, 96];
        let cases = [
            (json!({"strategy": "tensor"}), Some([64, 96])),
            (json!({"strategy": "channel"}), Some([1, 96])),
            (json!({"strategy": "group", "group_size": 32}), Some([1, 32])),
            (json!({"strategy": "tensor_group", "group_size": 16}), Some([1, 16])),
            (json!({"strategy": "block", "block_structure": [128, 64]}), Some([128, 64])),
            (json!({}), Some([64, 96])),
            (json!({"group_size": 32}), Some([1, 32])),
            (json!({"group_size": -1}), Some([1, 96])),
            (json!({"strategy": "group", "group_size": 0}), None),
            (json!({"strategy": "group"}), None),
            (json!({"strategy": "block", "block_structure": [0, 64]}), None),
        ];
        for (mut weights, expected) in cases {
            weights
                .as_object_mut()
                .unwrap()
                .extend(json!({"num_bits": 8, "type": "int"}).as_object().unwrap().clone());
            let parsed = Weights::deserialize(&weights).unwrap();
            assert_eq!(parsed.block(features), expected, "{weights}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        let cases = [
            (json!([]), "expected a JSON object, found []"),
            (
                json!({"quant_method": "fp8", "weight_block_size": [0, 128]}),
                "`weight_block_size` is [0, 128]",
            ),
            (json!({"quant_method": "fp8", "weight_block_size": [128]}), "invalid length 1"),
            (
                json!({"quant_method": "gptq", "bits": "four", "group_size": 1}),
                "invalid type: string \"four\"",
            ),
            (json!({"quant_method": "awq", "bits": 4}), "missing field `group_size`"),
            (json!({"quant_method": "compressed-tensors"}), "missing field `config_groups`"),
            (
                json!({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {}}}}),
                "`weights` of the group `a`: missing field",
            ),
        ];
        for (section, expected) in cases {
            let error = read(json!({"quantization_config": section})).unwrap_err().to_string();
            assert!(error.starts_with("model: quantization_config in config.json: "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }
}
