//! Reads the method of quantisation and its settings from a section on quantisation.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::compressed_weights::{CompressedWeights, compressed_tensors};
use crate::error::shorten;

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
    /// Reads the method from its section.
    pub(super) fn read(section: &Map<String, Value>) -> Result<Self, String> {
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
    pub(super) fn of_module(&self, name: &str) -> Result<MlxSettings, String> {
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

/// AutoRound packs its weights as GPTQ or AWQ do, or in ways of its own.
fn auto_round(section: &Map<String, Value>) -> Result<Method, String> {
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

/// Reads the settings of a method.
pub(super) fn parse<T: DeserializeOwned>(section: &Map<String, Value>) -> Result<T, String> {
    T::deserialize(section).map_err(|error| shorten(&error.to_string(), 300))
}
