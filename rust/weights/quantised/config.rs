//! Finds the section on quantisation in the model's configuration, or the file that a quantiser wrote beside it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::method::Method;
use crate::error::{Error, Result, shorten};

/// How the checkpoint was quantised, by its configuration.
#[derive(Clone, Debug)]
pub(super) struct QuantisationConfig {
    pub(super) method: Method,
    /// The modules that were not quantised.
    pub(super) skipped: BTreeSet<String>,
    /// The section and the file that the settings are from, or should be, for messages.
    pub(super) source: String,
}

/// The settings of NVIDIA's Model Optimizer, which has them beside its own name.
const MODEL_OPTIMIZER: &str = "hf_quant_config.json";

/// Files in which quantisers leave their settings, with their methods: AutoGPTQ; AutoAWQ and its forerunner; Model
/// Optimizer.
pub(super) const FILES: [(&str, &str); 3] =
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), (MODEL_OPTIMIZER, "modelopt")];

/// The keys of the section; the first is the usual one.
const KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

impl QuantisationConfig {
    /// Reads the section on quantisation in `config`, the content of `file`. Messages name the checkpoint by `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the section is malformed.
    pub(super) fn read(path: &Path, file: &str, config: &Map<String, Value>) -> Result<Self> {
        // A model with a text model within may have the section in the text model's configuration.
        let places = [Some(config), config.get("text_config").and_then(Value::as_object)];
        let mut sections = (places.into_iter().flatten())
            .flat_map(|place| KEYS.iter().filter_map(|key| Some((*key, place.get(*key)?))));
        let Some((key, section)) = sections.find(|(_, section)| !section.is_null()) else {
            let source = format!("{} in {file}", KEYS[0]);
            return Ok(Self { method: Method::Unstated, skipped: BTreeSet::new(), source });
        };
        let source = format!("{key} in {file}");
        match section {
            Value::Object(section) => Self::of_section(path, source, section),
            other => {
                let found = shorten(&other.to_string(), 100);
                Err(Error::model(path, format!("{source}: expected a JSON object, found {found}")))
            }
        }
    }

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
        let inner = content.get("quantization").and_then(Value::as_object);
        let mut section = inner.filter(|_| file == MODEL_OPTIMIZER).unwrap_or(content).clone();
        // AWQ has names of its own there.
        for (own, usual) in [("w_bit", "bits"), ("q_group_size", "group_size")] {
            if let Some(value) = section.remove(own) {
                section.entry(usual).or_insert(value);
            }
        }
        section.entry("quant_method").or_insert(by_file.into());
        Self::of_section(path, file.to_owned(), &section)
    }

    fn of_section(path: &Path, source: String, section: &Map<String, Value>) -> Result<Self> {
        let method =
            Method::read(section).map_err(|problem| Error::model(path, format!("{source}: {problem}")))?;
        Ok(Self { method, skipped: skipped(section), source })
    }
}

/// The names in the lists of skipped modules.
fn skipped(section: &Map<String, Value>) -> BTreeSet<String> {
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
        QuantisationConfig::read(Path::new("model"), "config.json", config.as_object().unwrap())
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
    fn the_source_is_the_section_or_the_file_of_the_settings() {
        let source = |config: Value| read(config).unwrap().source;
        assert_eq!(source(json!({})), "quantization_config in config.json");
        let mlx = json!({"quantization": {"bits": 4, "group_size": 64}});
        assert_eq!(source(mlx), "quantization in config.json");
        for file in FILES {
            let settings = json!({"bits": 4, "group_size": 32});
            let read = |settings: &Value| {
                QuantisationConfig::of_file(Path::new("model"), file, settings.as_object().unwrap())
            };
            assert_eq!(read(&settings).unwrap().source, file.0);
            let malformed = json!({"quant_method": "gptq", "bits": 4});
            let error = read(&malformed).unwrap_err().to_string();
            assert_eq!(error, format!("model: {}: missing field `group_size`", file.0));
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
