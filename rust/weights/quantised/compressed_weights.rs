//! Reads the settings of compressed-tensors, which quantises groups of modules in ways of their own.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::method::{Method, parse};
use crate::error::quote;

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

/// Reads the groups of modules, unless their weights are stored in a way that is not read.
pub(super) fn compressed_tensors(section: &Map<String, Value>) -> Result<Method, String> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
