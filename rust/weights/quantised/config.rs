//! Reads `quantization_config` in `config.json`, and the files of their own of older quantisers.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result, quote, shorten};

/// How the checkpoint was quantised, by its configuration.
#[derive(Clone, Debug)]
pub(super) struct QuantisationConfig {
    pub(super) method: Method,
    /// The modules that were not quantised.
    pub(super) skipped: Vec<String>,
}

/// The method that wrote the tensors.
#[derive(Clone, Debug)]
pub(super) enum Method {
    /// The configuration gives none.
    Unstated,
    Fp8(Fp8Config),
    FbgemmFp8,
    CompressedTensors(Vec<CompressedWeights>),
    BitsAndBytes(BitsAndBytesConfig),
    Gptq(GptqConfig),
    Awq(AwqConfig),
    ModelOpt,
    /// AMD's Quark, if its weights are FP8.
    QuarkFp8,
    Mlx(MlxConfig),
    /// A method that is not read, with its name.
    Other(String),
}

impl Method {
    /// The name of the method in `quant_method`.
    pub(super) fn name(&self) -> &str {
        match self {
            Method::Unstated => "absent",
            Method::Fp8(_) => "fp8",
            Method::FbgemmFp8 => "fbgemm_fp8",
            Method::CompressedTensors(_) => "compressed-tensors",
            Method::BitsAndBytes(_) => "bitsandbytes",
            Method::Gptq(_) => "gptq",
            Method::Awq(_) => "awq",
            Method::ModelOpt => "modelopt",
            Method::QuarkFp8 => "quark",
            Method::Mlx(_) => "MLX",
            Method::Other(name) => name,
        }
    }
}

/// `quant_method` `fp8`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Fp8Config {
    /// The rows and columns of a block.
    pub(super) weight_block_size: Option<[usize; 2]>,
}

/// `quant_method` `bitsandbytes`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct BitsAndBytesConfig {
    #[serde(default)]
    pub(super) load_in_8bit: bool,
    #[serde(default)]
    pub(super) load_in_4bit: bool,
}

/// `quant_method` `gptq`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct GptqConfig {
    pub(super) bits: usize,
    /// The number of input features that share a scale; -1 for all.
    pub(super) group_size: i64,
    checkpoint_format: Option<String>,
    format: Option<String>,
    /// Other settings for some modules, by patterns of their names.
    pub(super) dynamic: Option<Map<String, Value>>,
}

/// `quant_method` `awq`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AwqConfig {
    pub(super) bits: usize,
    /// The number of input features that share a scale; -1 for all.
    pub(super) group_size: i64,
    version: Option<String>,
    format: Option<String>,
}

/// What MLX keeps under `quantization`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct MlxConfig {
    #[serde(flatten)]
    settings: MlxSettings,
    /// Other settings for some modules, by their names.
    #[serde(flatten)]
    modules: Map<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct MlxSettings {
    pub(super) bits: usize,
    /// The number of input features that share a scale and a bias.
    pub(super) group_size: usize,
    mode: Option<String>,
}

impl MlxConfig {
    /// The settings of a module.
    pub(super) fn of_module(&self, name: &str) -> std::result::Result<MlxSettings, String> {
        match self.modules.get(name).and_then(Value::as_object) {
            Some(own) => parse(own).map_err(|problem| format!("`{name}`: {problem}")),
            None => Ok(self.settings.clone()),
        }
    }
}

impl MlxSettings {
    /// The name of the way in which codes stand for weights.
    pub(super) fn mode(&self) -> &str {
        self.mode.as_deref().unwrap_or("affine")
    }
}

impl GptqConfig {
    /// How the tensors are packed, under either name of the key.
    pub(super) fn format(&self) -> String {
        let format = self.checkpoint_format.as_deref().or(self.format.as_deref());
        format.unwrap_or("gptq").to_lowercase()
    }
}

impl AwqConfig {
    /// How the tensors are packed, under either name of the key.
    pub(super) fn format(&self) -> String {
        let format = self.version.as_deref().or(self.format.as_deref());
        format.unwrap_or("gemm").to_lowercase()
    }
}

/// How one group of modules is quantised by compressed-tensors.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct CompressedWeights {
    pub(super) num_bits: usize,
    #[serde(rename = "type")]
    pub(super) kind: CodeKind,
    #[serde(default = "yes")]
    pub(super) symmetric: bool,
    strategy: Option<ScaleStrategy>,
    group_size: Option<i64>,
    block_structure: Option<[usize; 2]>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum CodeKind {
    Int,
    Float,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ScaleStrategy {
    Tensor,
    Channel,
    Group,
    Block,
    TensorGroup,
}

fn yes() -> bool {
    true
}

impl CompressedWeights {
    /// The rows and columns of the blocks that share a scale, in weights of these features.
    fn block(&self, [rows, columns]: [usize; 2]) -> Option<[usize; 2]> {
        let group = || self.group_size.and_then(|size| usize::try_from(size).ok());
        let strategy = self.strategy.unwrap_or(match self.group_size {
            None => ScaleStrategy::Tensor,
            Some(1..) => ScaleStrategy::Group,
            Some(_) => ScaleStrategy::Channel,
        });
        let block = match strategy {
            ScaleStrategy::Tensor => [rows, columns],
            ScaleStrategy::Channel => [1, columns],
            ScaleStrategy::Group | ScaleStrategy::TensorGroup => [1, group()?],
            ScaleStrategy::Block => self.block_structure?,
        };
        (!block.contains(&0)).then_some(block)
    }
}

/// The blocks that share a scale in weights of these features, by those of `groups` for which `fits` holds.
pub(super) fn stated_blocks(
    groups: &[CompressedWeights],
    features: [usize; 2],
    fits: impl Fn(&CompressedWeights) -> bool,
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

impl QuantisationConfig {
    /// Reads the section on quantisation in `config`, the content of `config.json`. Messages name the checkpoint by
    /// `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the section is malformed.
    pub(super) fn read(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let refuse =
            |problem: String| Error::model(path, format!("quantization_config in config.json: {problem}"));
        // A model with a text model within may have the section in the text model's configuration.
        let places = [Some(config), config.get("text_config").and_then(Value::as_object)];
        let section = places.into_iter().flatten().find_map(|place| {
            ["quantization_config", "compression_config", "quantization"]
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

/// The settings of NVIDIA's Model Optimizer, which has them beside its own name.
const MODEL_OPTIMIZER: &str = "hf_quant_config.json";

/// Files in which quantisers leave their settings, with their methods: AutoGPTQ; AutoAWQ and its forerunner; Model
/// Optimizer.
pub(super) const FILES: [(&str, &str); 3] =
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), (MODEL_OPTIMIZER, "modelopt")];

impl QuantisationConfig {
    /// Reads one of [`FILES`].
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if it is malformed.
    pub(super) fn of_file(
        path: &Path,
        (file, by_file): (&str, &str),
        content: &Map<String, Value>,
    ) -> Result<Self> {
        let refuse = |problem: String| Error::model(path, format!("{file}: {problem}"));
        let inner = content.get("quantization").and_then(Value::as_object);
        let mut section = inner.filter(|_| file == MODEL_OPTIMIZER).unwrap_or(content).clone();
        // AWQ has names of its own there.
        for (own, usual) in [("w_bit", "bits"), ("q_group_size", "group_size")] {
            if let Some(value) = section.remove(own) {
                section.entry(usual).or_insert(value);
            }
        }
        section.entry("quant_method").or_insert(by_file.into());
        Ok(Self { method: method(&section).map_err(refuse)?, skipped: skipped(&section) })
    }
}

fn method(section: &Map<String, Value>) -> std::result::Result<Method, String> {
    let named = |key: &str| section.get(key).and_then(Value::as_str).map(str::to_lowercase);
    let Some(name) = named("quant_method") else {
        // Older files of bitsandbytes do not name the method.
        let is_set = |key: &str| section.get(key).and_then(Value::as_bool) == Some(true);
        let has = |key: &str| section.contains_key(key);
        return match () {
            () if is_set("load_in_8bit") || is_set("load_in_4bit") => {
                parse(section).map(Method::BitsAndBytes)
            }
            () if has("bits") && has("group_size") => parse(section).map(Method::Mlx),
            () => Ok(Method::Other("unnamed".into())),
        };
    };
    match &*name {
        "fp8" => {
            let fp8: Fp8Config = parse(section)?;
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
        "modelopt" | "modelopt_fp4" => Ok(model_optimizer(section)),
        "quark" => Ok(quark(section)),
        "auto-round" | "auto_round" | "intel/auto-round" => auto_round(section),
        _ => Ok(Method::Other(name)),
    }
}

/// AutoRound packs its weights as GPTQ or AWQ do, or in ways of its own.
fn auto_round(section: &Map<String, Value>) -> std::result::Result<Method, String> {
    let Some(packing) = section.get("packing_format").and_then(Value::as_str).map(str::to_lowercase) else {
        return Ok(Method::Other("auto-round".into()));
    };
    let is_mixed =
        section.get("extra_config").and_then(Value::as_object).is_some_and(|extra| !extra.is_empty());
    match packing.rsplit(':').next() {
        _ if is_mixed => Ok(Method::Other("auto-round, with settings of their own for some modules".into())),
        Some("auto_gptq") => parse(section).map(Method::Gptq),
        Some("auto_awq") => parse(section).map(Method::Awq),
        _ => Ok(Method::Other(format!("auto-round (packing_format {packing})"))),
    }
}

/// NVIDIA's Model Optimizer scales columns in some of its algorithms, and packs integers in ways of its own.
fn model_optimizer(section: &Map<String, Value>) -> Method {
    match section.get("quant_algo").and_then(Value::as_str) {
        None | Some("FP8" | "FP8_PER_CHANNEL_PER_TOKEN" | "FP8_PB_WO" | "NVFP4" | "MIXED_PRECISION") => {
            Method::ModelOpt
        }
        Some(algorithm) => Method::Other(format!("modelopt (quant_algo {algorithm})")),
    }
}

fn quark(section: &Map<String, Value>) -> Method {
    let weight = section.get("global_quant_config").and_then(|global| global.get("weight"));
    match weight.and_then(|weight| weight.get("dtype")).and_then(Value::as_str) {
        Some("fp8_e4m3") => Method::QuarkFp8,
        Some(dtype) => Method::Other(format!("quark ({dtype})")),
        None => Method::Other("quark".into()),
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
                CompressedWeights::deserialize(weights)
                    .map_err(|error| format!("`weights` of the group {}: {error}", quote(name)))?,
            ),
        }
    }
    Ok(Method::CompressedTensors(groups))
}

fn parse<T: DeserializeOwned>(section: &Map<String, Value>) -> std::result::Result<T, String> {
    T::deserialize(Value::Object(section.clone())).map_err(|error| shorten(&error.to_string(), 300))
}

/// The names in the lists of skipped modules.
fn skipped(section: &Map<String, Value>) -> Vec<String> {
    let lists = ["ignore", "modules_to_not_convert", "llm_int8_skip_modules", "exclude_modules", "exclude"];
    let names = lists.iter().filter_map(|key| section.get(*key)?.as_array()).flatten();
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<QuantisationConfig> {
        QuantisationConfig::read(Path::new("model"), config.as_object().unwrap())
    }

    #[test]
    fn an_absent_section_states_no_method() {
        for config in [json!({}), json!({"quantization_config": null}), json!({"text_config": null})] {
            assert!(matches!(read(config).unwrap().method, Method::Unstated));
        }
    }

    #[test]
    fn the_section_may_be_that_of_the_text_model() {
        let config = json!({"text_config": {"quantization_config": {"quant_method": "fbgemm_fp8"}}});
        assert!(matches!(read(config).unwrap().method, Method::FbgemmFp8));
    }

    #[test]
    fn the_method_of_bitsandbytes_may_be_unnamed() {
        let config = json!({"quantization_config": {"load_in_4bit": true, "load_in_8bit": false}});
        assert!(matches!(read(config).unwrap().method, Method::BitsAndBytes(of) if of.load_in_4bit));
    }

    #[test]
    fn blocks_follow_the_strategy() {
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
            let parsed = CompressedWeights::deserialize(&weights).unwrap();
            assert_eq!(parsed.block(features), expected, "{weights}");
        }
    }

    #[test]
    fn malformed_sections_are_refused() {
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
