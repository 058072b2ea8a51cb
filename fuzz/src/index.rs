//! The index of a sharded checkpoint. An input is the text of the index, beside three shards.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use alps::checkpoint::Checkpoint;
use serde_json::Value;

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

/// Opens the checkpoint, and compares its tensors with those that another parser finds in the index.
pub fn run(input: &[u8]) -> bool {
    const PATH: &str = "m/model.safetensors.index.json";
    let Ok(checkpoint) = Checkpoint::open(location(FILES.clone().with(PATH, input), PATH)) else {
        return false;
    };
    let index: Value = serde_json::from_slice(input).expect("an index that is read is JSON");
    let weight_map = index["weight_map"].as_object().expect("it has a map");
    let mut expected = BTreeSet::new();
    for (tensor, shard) in weight_map {
        let parts =
            shard.as_str().expect("shards are text").split('/').filter(|part| !["", "."].contains(part));
        let shard = parts.collect::<Vec<_>>().join("/");
        let (_, own) = SHARDS.iter().find(|(name, _)| *name == shard).expect("the shard is there");
        if tensor == own {
            expected.insert(&**tensor);
        }
    }
    assert_eq!(checkpoint.tensors().map(|(name, _)| name).collect::<BTreeSet<_>>(), expected);
    true
}
