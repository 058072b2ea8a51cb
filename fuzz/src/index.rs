//! The index of a sharded checkpoint. An input is the text of the index, beside three shards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use alps::checkpoint::Checkpoint;
use serde::Deserialize;

use super::store::{Files, file_with_header, location};

/// The shards, each with its tensor of one byte.
const SHARDS: [(&str, &str); 3] = [("a.safetensors", "x"), ("b.safetensors", "y"), ("c/d.safetensors", "z")];

/// The files of the shards, which each input shares.
static FILES: LazyLock<Files> = LazyLock::new(|| {
    SHARDS.into_iter().fold(Files::default(), |files, (shard, tensor)| {
        let header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        files.with(&format!("m/{shard}"), &file_with_header(header.as_bytes(), &[7]))
    })
});

/// What alps reads of an index. Other members may hold numbers that overflow a `Value`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the checkpoint, and compares its tensors with those that another parser finds in the index.
pub fn run(input: &[u8]) -> bool {
    const PATH: &str = "m/model.safetensors.index.json";
    let Ok(checkpoint) = Checkpoint::open(location(FILES.clone().with(PATH, input), PATH)) else {
        return false;
    };
    let Index { weight_map } =
        serde_json::from_slice(input).expect("an index that is read has a map of texts");
    let mut expected = BTreeSet::new();
    for (tensor, shard) in &weight_map {
        let parts: Vec<&str> = shard.split('/').filter(|part| !["", "."].contains(part)).collect();
        let shard = parts.join("/");
        let (_, own) = SHARDS.iter().find(|(name, _)| *name == shard).expect("the shard is there");
        if tensor == own {
            expected.insert(tensor.as_str());
        }
    }
    assert_eq!(checkpoint.tensors().map(|(name, _)| name).collect::<BTreeSet<_>>(), expected);
    true
}
