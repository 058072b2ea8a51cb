//! A whole adapter on a tiny Llama. An input is the text of `adapter_config.json`, a zero byte, the header of the adapter's
//! weights, a zero byte, and their bytes.

use std::sync::{Arc, LazyLock};

use alps::checkpoint::{Location, Store};
use alps::scan::{ModelPair, ModelPath, Options};

use super::scan::{check_scores, same_scores};
use super::store::{Files, file_with_header, parts};

const CONFIG: &str = r#"{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2, "hidden_size": 4}"#;

/// The base, whose files each input shares.
static BASE: LazyLock<Arc<dyn Store>> = LazyLock::new(|| {
    let (mut tensors, mut end) = (Vec::new(), 0);
    for layer in 0..2 {
        for (name, rows) in [("q", 4), ("k", 2), ("v", 2)] {
            let (start, name) = (end, format!("model.layers.{layer}.self_attn.{name}_proj.weight"));
            end += rows * 4 * 4;
            let entry = format!(r#"{{"dtype":"F32","shape":[{rows},4],"data_offsets":[{start},{end}]}}"#);
            tensors.push(format!(r#""{name}":{entry}"#));
        }
    }
    let header = format!("{{{}}}", tensors.join(","));
    let weights = file_with_header(header.as_bytes(), &[]);
    Files::default()
        .with("b/config.json", CONFIG.as_bytes())
        .with("b/model.safetensors", &weights)
        .into_store()
});

/// Compares the base with what the adapter makes of it.
pub fn run(input: &[u8]) -> bool {
    let [config, header, data] = parts(input);
    let weights = file_with_header(header, data);
    let files =
        Files::default().with("a/adapter_config.json", config).with("a/adapter_model.safetensors", &weights);
    let adapter = Location::in_store("a", files.into_store());
    let base = ModelPath { checkpoint: Location::in_store("b", Arc::clone(&BASE)), adapter: None };
    let tuned = ModelPath { adapter: Some(adapter), ..base.clone() };
    let Ok(pair) = ModelPair::open(&base, &tuned, None) else { return false };
    let options = Options { threads: Some(1), ..Options::default() };
    let scores = check_scores(&pair, &options);
    same_scores(&scores, &check_scores(&pair, &Options { threads: Some(3), piece: 5, ..options }));
    scores.is_ok()
}
