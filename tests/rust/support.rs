//! Builders of small checkpoints, and assertions, for all tests of the core.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder that is deleted after the test.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, with the folders that its name has.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// A tensor as a file holds it.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl StoredTensor {
    pub(crate) fn new(dtype: Dtype, shape: &[usize], numbers: &[f64]) -> Self {
        Self { dtype, shape: shape.to_vec(), bytes: encode(dtype, numbers) }
    }
}

/// The bytes of a safetensors file with these tensors.
pub(crate) fn safetensors_file<'t, N: AsRef<str> + Ord + Display>(
    tensors: impl IntoIterator<Item = (N, &'t StoredTensor)>,
) -> Vec<u8> {
    let views = tensors.into_iter().map(|(name, StoredTensor { dtype, shape, bytes })| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// The bytes of a file with this header and `data` bytes after it: 0, 1, 2 and so on.
pub(crate) fn file_with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|position| position as u8));
    bytes
}

/// Writes a file with this header and `data` bytes of 0 after it, which take no room on the disk.
#[cfg(unix)] // elsewhere they would
pub(crate) fn write_sparse_file(path: &Path, header: &str, data: u64) -> File {
    let mut file = File::create(path).unwrap();
    file.write_all(&file_with_header(header, 0)).unwrap();
    file.set_len(8 + header.len() as u64 + data).unwrap();
    file
}

/// The little-endian bytes of these numbers, rounded to `dtype`.
pub(crate) fn encode(dtype: Dtype, numbers: &[f64]) -> Vec<u8> {
    let each = |number: &f64| match dtype {
        Dtype::F16 => f16::from_f64(*number).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(*number).to_le_bytes().to_vec(),
        Dtype::F32 => (*number as f32).to_le_bytes().to_vec(),
        Dtype::F64 => number.to_le_bytes().to_vec(),
        other => panic!("no weights are written as {other}"),
    };
    numbers.iter().flat_map(each).collect()
}

/// The number of `dtype` that is nearest to `number`.
pub(crate) fn round_to(dtype: Dtype, number: f64) -> f64 {
    match dtype {
        Dtype::F16 => f16::from_f64(number).to_f64(),
        Dtype::BF16 => bf16::from_f64(number).to_f64(),
        Dtype::F32 => f64::from(number as f32),
        _ => number,
    }
}

/// Pseudorandom numbers from -0.5 to 0.5, the same for the same seed.
pub(crate) fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15); // splitmix64
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }
}

/// The model types of the models that tests build.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ModelType {
    /// One tensor each for queries, keys and values, [out, in].
    Llama,
    /// One tensor for all three, [in, out].
    Gpt2,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelShape {
    pub(crate) layers: usize,
    pub(crate) groups: usize,
    pub(crate) heads_per_group: usize,
    pub(crate) head_size: usize,
    pub(crate) hidden_size: usize,
}

impl ModelShape {
    pub(crate) fn heads(&self) -> usize {
        self.groups * self.heads_per_group
    }

    /// The number of weights of one matrix of one head.
    pub(crate) fn entries(&self) -> usize {
        self.head_size * self.hidden_size
    }

    pub(crate) fn config(&self, model_type: ModelType) -> Value {
        match model_type {
            ModelType::Llama => json!({
                "model_type": "llama",
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads(),
                "num_key_value_heads": self.groups,
                "head_dim": self.head_size,
                "hidden_size": self.hidden_size,
            }),
            ModelType::Gpt2 => {
                assert_eq!((self.heads_per_group, self.heads() * self.head_size), (1, self.hidden_size));
                json!({
                    "model_type": "gpt2",
                    "n_layer": self.layers,
                    "n_head": self.heads(),
                    "n_embd": self.hidden_size,
                })
            }
        }
    }

    /// The attention tensors of each layer, whose names begin with `prefix`, in the order query, key, value.
    pub(crate) fn tensors(&self, model_type: ModelType, prefix: &str) -> Vec<Vec<(String, [usize; 2])>> {
        let [query, key_value] = [self.heads(), self.groups].map(|count| count * self.head_size);
        let of_layer = |layer: usize| match model_type {
            ModelType::Llama => [("q", query), ("k", key_value), ("v", key_value)]
                .map(|(name, rows)| {
                    let name = format!("{prefix}layers.{layer}.self_attn.{name}_proj.weight");
                    (name, [rows, self.hidden_size])
                })
                .to_vec(),
            ModelType::Gpt2 => {
                let name = format!("{prefix}h.{layer}.attn.c_attn.weight");
                vec![(name, [self.hidden_size, query + 2 * key_value])]
            }
        };
        (0..self.layers).map(of_layer).collect()
    }

    /// The same by name, for all layers.
    pub(crate) fn tensor_shapes(&self, model_type: ModelType, prefix: &str) -> BTreeMap<String, Vec<usize>> {
        let tensors = self.tensors(model_type, prefix).into_iter().flatten();
        tensors.map(|(name, shape)| (name, shape.to_vec())).collect()
    }
}

/// Sizes below these.
pub(crate) fn model_shapes(
    layers: usize,
    groups: usize,
    heads_per_group: usize,
    head_size: usize,
    hidden_size: usize,
) -> impl Strategy<Value = ModelShape> {
    (1..layers, 1..groups, 1..heads_per_group, 1..head_size, 1..hidden_size).prop_map(
        |(layers, groups, heads_per_group, head_size, hidden_size)| ModelShape {
            layers,
            groups,
            heads_per_group,
            head_size,
            hidden_size,
        },
    )
}

/// Asserts that a message contains all these parts.
#[track_caller]
pub(crate) fn assert_says(problem: &str, parts: &[&str]) {
    for part in parts {
        assert!(problem.contains(part), "{part:?} is not in: {problem}");
    }
}

/// Adds the members of an object to another, or replaces those of the same name.
pub(crate) fn with(mut object: Value, members: &Value) -> Value {
    object.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    object
}
