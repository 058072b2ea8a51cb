//! The configuration of an adapter. An input is the text of `adapter_config.json`.

use alps::weights::adapter::adapter_origin;
use serde_json::Value;

use super::store::{Files, location};

/// Reads the base that the adapter names, and compares it with what another parser finds.
pub fn run(input: &[u8]) -> bool {
    let files = Files::default().with("a/adapter_config.json", input);
    let Ok(origin) = adapter_origin(&location(files, "a")) else { return false };
    let origin = origin.expect("the folder has a configuration");
    let config: Value = serde_json::from_slice(input).expect("a configuration that is read is JSON");
    assert_eq!(origin.base.as_deref(), config["base_model_name_or_path"].as_str());
    assert_eq!(origin.revision.as_deref(), config["revision"].as_str());
    assert!(!origin.is_whole);
    true
}
