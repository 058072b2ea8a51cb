//! Rows that adapters change, compared with the formulas, and adapters that must not be read.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use alps::attention::Orientation;
use alps::checkpoint::ByteRange;
use alps::weights::WeightMatrix;
use alps::weights::adapter::Adapter;
use alps::{Error, Result};
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::support::{Folder, StoredTensor, assert_says, encode, noise, round_to, safetensors_file, with};

const MODULE: &str = "model.layers.0.self_attn.q_proj";

/// A weight matrix in memory.
#[derive(Debug, Clone)]
struct MemoryMatrix {
    rows: usize,
    columns: usize,
    dtype: Dtype,
    weights: Vec<f64>,
}

impl MemoryMatrix {
    /// Weights that `dtype` holds exactly.
    fn new(rows: usize, columns: usize, dtype: Dtype, seed: u64) -> Self {
        let weights =
            numbers(rows * columns, seed).into_iter().map(|number| round_to(dtype, number)).collect();
        Self { rows, columns, dtype, weights }
    }
}

impl WeightMatrix for MemoryMatrix {
    fn features(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }
    fn dtype(&self) -> alps::number_format::Dtype {
        alps::number_format::Dtype::from_stored(self.dtype).unwrap()
    }
    fn stored_bytes(&self, rows: Range<usize>) -> u64 {
        (rows.len() * self.columns * self.dtype().size()) as u64
    }
    fn covering_ranges(&self, _rows: Range<usize>) -> Vec<ByteRange<'_>> {
        Vec::new()
    }

    fn read_rows(&self, rows: Range<usize>, into: &mut [u8], _: &mut Vec<u8>) -> Result<()> {
        assert_eq!(into.len() as u64, self.stored_bytes(rows.clone()));
        let weights = &self.weights[rows.start * self.columns..rows.end * self.columns];
        into.copy_from_slice(&encode(self.dtype, weights));
        Ok(())
    }
}

/// Numbers from -0.5 to 0.5, some of them 0.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut noise = noise(seed);
    (0..count).map(|_| if noise() < -0.375 { 0.0 } else { noise() }).collect()
}

/// The tensors of an adapter in memory: shape and entries by name.
#[derive(Debug, Clone, Default)]
struct Tensors(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Tensors {
    fn with(mut self, part: &str, shape: &[usize], seed: u64) -> Self {
        let entries = numbers(shape.iter().product(), seed).into_iter().map(|number| number as f32 as f64);
        self.0.insert(format!("base_model.model.{MODULE}.{part}"), (shape.to_vec(), entries.collect()));
        self
    }

    fn entry(&self, part: &str, row: usize, column: usize) -> f64 {
        let (shape, entries) = &self.0[&format!("base_model.model.{MODULE}.{part}")];
        entries[row * shape.get(1).copied().unwrap_or(1) + column]
    }
}

fn write(config: &Value, tensors: &Tensors, dtype: Dtype) -> Folder {
    let folder = Folder::new();
    folder.write("adapter_config.json", config.to_string());
    let stored =
        tensors.0.iter().map(|(name, (shape, entries))| (name, StoredTensor::new(dtype, shape, entries)));
    let stored: Vec<_> = stored.collect();
    let file = safetensors_file(stored.iter().map(|(name, tensor)| (*name, tensor)));
    folder.write("adapter_model.safetensors", file);
    folder
}

/// Reads all rows of the module, `step` at a time.
fn read(folder: &Path, base: &MemoryMatrix, step: usize) -> Result<Vec<f64>> {
    let names = [format!("{MODULE}.weight")];
    let adapted = Adapter::open(&folder.into())?.find_modules(
        Path::new("base"),
        names.iter().map(|name| &**name),
        None,
    )?;
    let layer = adapted.adapt(MODULE, Orientation::OutIn, Box::new(base.clone()))?;
    assert_eq!(layer.features(), base.features());
    let size = layer.dtype().size();
    let (mut weights, mut scratch) = (Vec::new(), Vec::new());
    for first in (0..base.rows).step_by(step) {
        let rows = first..base.rows.min(first + step);
        let mut bytes = vec![0; rows.len() * base.columns * size];
        layer.read_rows(rows, &mut bytes, &mut scratch)?;
        weights.extend(bytes.chunks_exact(size).map(|bytes| match size {
            4 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
            _ => f64::from_le_bytes(bytes.try_into().unwrap()),
        }));
    }
    Ok(weights)
}

fn lora(rank: usize) -> Value {
    json!({"peft_type": "LORA", "r": rank, "lora_alpha": 5, "base_model_name_or_path": "somewhere"})
}

fn lora_tensors(rows: usize, columns: usize, rank: usize) -> Tensors {
    Tensors::default().with("lora_A.weight", &[rank, columns], 2).with("lora_B.weight", &[rows, rank], 3)
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F16), Just(Dtype::BF16), Just(Dtype::F32), Just(Dtype::F64)]
}

/// Checks all rows against W + `delta`, entry by entry: to the rounding of the numbers, to the bit where nothing
/// is added, and to the bit whatever is read at a time.
fn check(folder: &Path, base: &MemoryMatrix, step: usize, delta: impl Fn(usize, usize) -> (f64, f64)) {
    let found = read(folder, base, step).unwrap();
    assert_eq!(found, read(folder, base, base.rows).unwrap());
    let epsilon = if base.dtype == Dtype::F64 { 1e-15 } else { 6e-8 };
    for (place, found) in found.iter().enumerate() {
        let (added, size) = delta(place / base.columns, place % base.columns);
        let weight = base.weights[place];
        let expected = weight + added;
        assert!(
            (found - expected).abs() <= expected.abs() * epsilon + size * 1e-6,
            "{found} is not {weight} + {added}"
        );
        assert!(size != 0.0 || *found == weight);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn lora_adds_a_product(
        (rows, columns, rank) in (1..20_usize, 1..150_usize, 1..9_usize),
        dtype in dtypes(),
        step in 1..20_usize,
        by_root in any::<bool>(),
    ) {
        let mut config = lora(rank);
        config["use_rslora"] = by_root.into();
        let tensors = lora_tensors(rows, columns, rank);
        let folder = write(&config, &tensors, Dtype::F32);
        let scale = 5.0 / if by_root { (rank as f64).sqrt() } else { rank as f64 };
        check(folder.path(), &MemoryMatrix::new(rows, columns, dtype, 1), step, |row, column| {
            let terms: Vec<f64> = (0..rank)
                .map(|k| scale * tensors.entry("lora_B.weight", row, k) * tensors.entry("lora_A.weight", k, column))
                .collect();
            (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum())
        });
    }

    #[test]
    fn loha_adds_a_product_of_products(
        (rows, columns, rank) in (1..20_usize, 1..90_usize, 1..5_usize),
        step in 1..20_usize,
    ) {
        let tensors = Tensors::default()
            .with("hada_w1_a", &[rows, rank], 2)
            .with("hada_w1_b", &[rank, columns], 3)
            .with("hada_w2_a", &[rows, rank], 4)
            .with("hada_w2_b", &[rank, columns], 5);
        let folder = write(&json!({"peft_type": "LOHA", "r": rank, "alpha": 3}), &tensors, Dtype::F32);
        check(folder.path(), &MemoryMatrix::new(rows, columns, Dtype::BF16, 1), step, |row, column| {
            let product = |left: &str, right: &str| {
                let terms: Vec<f64> =
                    (0..rank).map(|k| tensors.entry(left, row, k) * tensors.entry(right, k, column)).collect();
                (terms.iter().sum::<f64>(), terms.iter().map(|term| term.abs()).sum::<f64>())
            };
            let (first, second) = (product("hada_w1_a", "hada_w1_b"), product("hada_w2_a", "hada_w2_b"));
            let scale = 3.0 / rank as f64;
            (scale * first.0 * second.0, 2.0 * scale * first.1 * second.1)
        });
    }

    #[test]
    fn lokr_adds_a_kronecker_product(
        (rows, columns) in ((1..4_usize, 1..5_usize), (1..4_usize, 1..20_usize)),
        rank in 1..4_usize,
        step in 1..20_usize,
    ) {
        let tensors = Tensors::default()
            .with("lokr_w1", &[rows.0, columns.0], 2)
            .with("lokr_w2_a", &[rows.1, rank], 3)
            .with("lokr_w2_b", &[rank, columns.1], 4);
        let folder = write(&json!({"peft_type": "LOKR", "r": rank, "alpha": 3}), &tensors, Dtype::F32);
        let base = MemoryMatrix::new(rows.0 * rows.1, columns.0 * columns.1, Dtype::F32, 1);
        check(folder.path(), &base, step, |row, column| {
            let first = 3.0 / rank as f64 * tensors.entry("lokr_w1", row / rows.1, column / columns.1);
            let terms: Vec<f64> = (0..rank)
                .map(|k| {
                    tensors.entry("lokr_w2_a", row % rows.1, k) * tensors.entry("lokr_w2_b", k, column % columns.1)
                })
                .collect();
            (first * terms.iter().sum::<f64>(), first.abs() * terms.iter().map(|term| term.abs()).sum::<f64>())
        });
    }

    #[test]
    fn dora_gives_rows_their_lengths(
        (rows, columns, rank) in (1..20_usize, 2..90_usize, 1..5_usize),
        dtype in dtypes(),
        step in 1..20_usize,
    ) {
        let mut config = lora(rank);
        config["use_dora"] = true.into();
        let mut base = MemoryMatrix::new(rows, columns, dtype, 1);
        base.weights[..].iter_mut().step_by(columns).for_each(|weight| *weight = 1.0);
        let tensors = lora_tensors(rows, columns, rank).with("lora_magnitude_vector", &[rows], 7);
        let folder = write(&config, &tensors, Dtype::F32);
        let found = read(folder.path(), &base, step).unwrap();
        assert_eq!(found, read(folder.path(), &base, rows).unwrap());
        let without_dora = write(&lora(rank), &lora_tensors(rows, columns, rank), Dtype::F32);
        let summed = read(without_dora.path(), &base, rows).unwrap();
        for row in 0..rows {
            let (found_row, summed_row) =
                (&found[row * columns..(row + 1) * columns], &summed[row * columns..(row + 1) * columns]);
            let length = |row: &[f64]| row.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
            let magnitude = tensors.entry("lora_magnitude_vector", row, 0);
            prop_assert!((length(found_row) - magnitude.abs()).abs() <= 1e-6 * magnitude.abs());
            for (found, summed) in found_row.iter().zip(summed_row) {
                prop_assert!((found * length(summed_row) - summed * magnitude).abs() <= 1e-6);
            }
        }
    }

    #[test]
    fn ia3_multiplies_rows_or_columns(
        (rows, columns) in (2..20_usize, 2..90_usize),
        of_rows in any::<bool>(),
        step in 1..20_usize,
    ) {
        let shape = if of_rows { [rows, 1] } else { [1, columns] };
        let tensors = Tensors::default().with("ia3_l", &shape, 2);
        let folder = write(&json!({"peft_type": "IA3"}), &tensors, Dtype::F32);
        let base = MemoryMatrix::new(rows, columns, Dtype::F16, 1);
        check(folder.path(), &base, step, |row, column| {
            let by = if of_rows { tensors.entry("ia3_l", row, 0) } else { tensors.entry("ia3_l", 0, column) };
            let weight = base.weights[row * columns + column];
            (weight * by - weight, (weight * by - weight).abs())
        });
    }
}

#[test]
fn factors_of_any_format_are_read() {
    let base = MemoryMatrix::new(3, 70, Dtype::F32, 1);
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut tensors = lora_tensors(3, 70, 2);
        for (_, entries) in tensors.0.values_mut() {
            entries.iter_mut().for_each(|entry| *entry = round_to(dtype, *entry));
        }
        let (stored, same) = (write(&lora(2), &tensors, dtype), write(&lora(2), &tensors, Dtype::F32));
        assert_eq!(read(stored.path(), &base, 3).unwrap(), read(same.path(), &base, 3).unwrap());
    }
}

#[test]
fn patterns_match_ends_of_names_in_the_order_of_the_file() {
    let base = MemoryMatrix::new(4, 6, Dtype::F32, 1);
    let tensors = lora_tensors(4, 6, 2);
    let scaled = |config: &Value| {
        let folder = write(config, &tensors, Dtype::F32);
        read(folder.path(), &base, 4).unwrap()
    };
    let with_alpha = |alpha: f64| scaled(&json!({"peft_type": "LORA", "r": 2, "lora_alpha": alpha}));
    for (patterns, alpha) in [
        (r#"{"q_proj": 8}"#, 8.0),
        (r#"{"self_attn.q_proj": 8, "q_proj": 4}"#, 8.0),
        (r#"{"q_proj": 4, "self_attn.q_proj": 8}"#, 4.0),
        (r#"{"layers\\.\\d+\\.self_attn\\.(q|k)_proj": 3}"#, 3.0),
        (r#"{"^model.layers.0.self_attn.q_proj": 7}"#, 7.0),
        (r#"{"proj": 8, "q_pro": 8, "model.layers.1.self_attn.q_proj": 8}"#, 5.0),
    ] {
        // As text, since the order counts.
        let folder = write(&lora(9), &tensors, Dtype::F32);
        let text = format!(
            r#"{{"peft_type": "LORA", "r": 9, "lora_alpha": 5, "rank_pattern": {{"q_proj": 2}},
                "alpha_pattern": {patterns}}}"#
        );
        folder.write("adapter_config.json", text);
        assert_eq!(read(folder.path(), &base, 4).unwrap(), with_alpha(alpha), "{patterns}");
    }
}

// What must not be read.

#[track_caller]
fn refusal(config: &Value, tensors: &Tensors) -> String {
    let folder = write(config, tensors, Dtype::F32);
    match read(folder.path(), &MemoryMatrix::new(4, 6, Dtype::BF16, 1), 4) {
        Err(Error::Checkpoint { path, problem } | Error::Weights { path, problem }) => {
            assert!(path.starts_with(folder.path()));
            problem
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn configurations_that_mean_something_else_are_refused() {
    let cases = [
        (json!({"peft_type": "OFT"}), vec!["kind `OFT`", "LORA", "merge_and_unload"]),
        (json!({"peft_type": null}), vec!["no `peft_type`"]),
        (json!({"lora_alpha": null}), vec!["no `lora_alpha`"]),
        (json!({"r": null}), vec!["no `r`"]),
        (json!({"r": 0}), vec!["rank", "whole number from 1"]),
        (json!({"init_lora_weights": "pissa_niter_4"}), vec!["init_lora_weights", "pissa", "base"]),
        (json!({"init_lora_weights": "olora"}), vec!["init_lora_weights", "olora"]),
        (json!({"use_qalora": true}), vec!["`use_qalora` is `true`", "merge_and_unload"]),
        (json!({"layer_replication": [[0, 2], [1, 3]]}), vec!["`layer_replication`", "[[0,2],[1,3]]"]),
        (json!({"something_new": 3}), vec!["`something_new` is `3`"]),
        (json!({"target_parameters": ["self_attn.q_proj.weight"]}), vec!["target_parameters", "q_proj"]),
        (json!({"rank_pattern": {"(": 3}}), vec!["pattern `(` cannot be read"]),
        (json!({"use_rslora": "yes"}), vec!["the configuration of the adapter cannot be read", "boolean"]),
    ];
    for (changes, said) in cases {
        assert_says(&refusal(&with(lora(2), &changes), &lora_tensors(4, 6, 2)), &said);
    }
    assert_says(&refusal(&json!([1]), &lora_tensors(4, 6, 2)), &["expected a JSON object"]);
}

#[test]
fn unset_keys_and_keys_without_effect_are_ignored() {
    let more = json!({
        "use_qalora": false, "layer_replication": null, "something_new": {}, "init_lora_weights": true,
        "target_modules": ["q_proj"], "lora_dropout": 0.1, "peft_version": "0.21.2", "task_type": "CAUSAL_LM",
        "target_parameters": ["mlp.experts.gate_up_proj"], "inference_mode": true, "bias": "lora_only",
    });
    let folder = write(&with(lora(2), &more), &lora_tensors(4, 6, 2), Dtype::F32);
    read(folder.path(), &MemoryMatrix::new(4, 6, Dtype::BF16, 1), 4).unwrap();
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let good = || lora_tensors(4, 6, 2);
    let without = |part: &str| {
        let mut tensors = good();
        tensors.0.remove(&format!("base_model.model.{MODULE}.{part}")).unwrap();
        tensors
    };
    let cases = [
        (lora(3), good(), vec!["lora_B.weight", "[4, 3]", "[4, 2]"]),
        (lora(2), without("lora_B.weight"), vec![MODULE, "lora_A.weight", "no tensor `lora_B.weight`"]),
        (lora(2), without("lora_A.weight"), vec![MODULE, "no tensor `lora_A.weight`"]),
        (lora(2), lora_tensors(4, 7, 2), vec!["lora_A.weight", "[2, 6]", "[4, 6] in the base", "[2, 7]"]),
        (lora(2), lora_tensors(6, 4, 2), vec!["lora_B.weight", "[4, 2]", "[6, 2]"]),
        (lora(2), good().with("lora_B.default.weight", &[4, 2], 1), vec!["lora_B.default.weight", "LORA"]),
        (lora(2), good().with("lora_diag", &[2], 1), vec!["lora_diag", "none that"]),
        (
            lora(2),
            good().with("modules_to_save.weight", &[4, 6], 1),
            vec!["modules_to_save", "save_pretrained"],
        ),
        (lora(2), good().with("lora_magnitude_vector", &[4], 1), vec!["lora_magnitude_vector", "`use_dora`"]),
    ];
    for (config, tensors, said) in cases {
        assert_says(&refusal(&config, &tensors), &said);
    }
    let mut dora = lora(2);
    dora["use_dora"] = true.into();
    assert_says(&refusal(&dora, &good()), &["no tensor `lora_magnitude_vector`"]);
    let magnitude = good().with("lora_magnitude_vector", &[6], 1);
    assert_says(&refusal(&dora, &magnitude), &["lora_magnitude_vector", "[6]"]);
}

#[test]
fn numbers_that_are_not_finite_are_named() {
    for (part, entry, value) in [("lora_A.weight", 7, f64::NAN), ("lora_B.weight", 5, f64::INFINITY)] {
        let mut tensors = lora_tensors(4, 6, 2);
        tensors.0.get_mut(&format!("base_model.model.{MODULE}.{part}")).unwrap().1[entry] = value;
        let said = [&format!("{MODULE}.{part}"), &format!("at its entry {entry}")[..], "finite"];
        assert_says(&refusal(&lora(2), &tensors), &said);
    }
}

#[test]
fn a_module_that_the_base_lacks_is_refused_if_it_may_hold_attention() {
    let over = |module: &str| {
        let tensors = Tensors(
            lora_tensors(4, 6, 2)
                .0
                .into_iter()
                .map(|(name, it)| (name.replace(MODULE, module), it))
                .collect(),
        );
        let folder = write(&lora(2), &tensors, Dtype::F32);
        let base = [format!("{MODULE}.weight")];
        Adapter::open(&folder.path().into()).unwrap().find_modules(
            Path::new("the base"),
            base.iter().map(|name| &**name),
            None,
        )
    };
    match over("model.layers.0.self_attn.query").unwrap_err() {
        Error::Checkpoint { problem, .. } => {
            assert_says(&problem, &["`model.layers.0.self_attn.query`", "the base has no such", "somewhere"]);
        }
        other => panic!("{other:?}"),
    }
    for module in ["lm_head", "model.layers.0.mlp.experts", "language_model.layers.0.self_attn.q_proj"] {
        let adapted = over(module).unwrap();
        assert_eq!(adapted.is_changed(MODULE), module.ends_with("q_proj"), "{module}");
    }
}
