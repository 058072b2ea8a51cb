//! Scans of tiny checkpoints: what no result may depend on, and what every result must obey.

use std::collections::BTreeMap;
#[cfg(unix)]
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use alps::Error;
use alps::error::{BadWeight, Difference, HeadName};
use alps::progress::Progress;
use alps::scan::{Form, Options, Scores, scan};
use alps::simd::Instructions;
use proptest::prelude::*;
use safetensors::tensor::Dtype;
#[cfg(unix)]
use serde_json::Value;
use serde_json::json;

#[cfg(unix)]
use crate::support::write_sparse_file;
use crate::support::{
    Folder, ModelShape, ModelType, StoredTensor, model_shapes, noise, round_to, safetensors_file,
};

/// All matrices of a model: [layer][query, key, value][head or group], each row-major in [out, in] order.
#[derive(Clone, Debug)]
struct Weights {
    shape: ModelShape,
    layers: Vec<[Vec<Vec<f64>>; 3]>,
}

impl Weights {
    fn random(shape: ModelShape, seed: u64) -> Self {
        let mut noise = noise(seed);
        let mut matrices = |count: usize| {
            (0..count).map(|_| (0..shape.entries()).map(|_| noise() * 0.4).collect()).collect()
        };
        let layers = (0..shape.layers)
            .map(|_| [matrices(shape.heads()), matrices(shape.groups), matrices(shape.groups)])
            .collect();
        Self { shape, layers }
    }

    /// Moved: hardly in the first layer, where head 0 stays as it is, and far in the last.
    fn tuned(&self, seed: u64) -> Self {
        let (mut noise, mut tuned) = (noise(seed), self.clone());
        for (layer, matrices) in tuned.layers.iter_mut().enumerate() {
            let size = [1e-3, 0.02, 3.0, 300.0][layer % 4];
            matrices.iter_mut().flatten().flatten().for_each(|weight| *weight += noise() * size);
        }
        for (tuned, base) in tuned.layers[0].iter_mut().zip(&self.layers[0]) {
            tuned[0].clone_from(&base[0]);
        }
        tuned
    }

    /// Rounded to what `dtype` holds.
    fn rounded(&self, dtype: Dtype) -> Self {
        self.map(|weight| round_to(dtype, weight))
    }

    fn map(&self, mut change: impl FnMut(f64) -> f64) -> Self {
        let mut changed = self.clone();
        let weights = changed.layers.iter_mut().flatten().flatten().flatten();
        weights.for_each(|weight| *weight = change(*weight));
        changed
    }

    /// The tensors of the model, among others that are no part of the attention.
    fn tensors(&self, model_type: ModelType, dtype: Dtype) -> BTreeMap<String, StoredTensor> {
        let ModelShape { hidden_size, .. } = self.shape;
        let embedding = StoredTensor::new(dtype, &[3, hidden_size], &vec![f64::NAN; 3 * hidden_size]);
        let mut tensors = BTreeMap::from([("embed_tokens.weight".to_owned(), embedding)]);
        let prefix = if model_type == ModelType::Llama { "model." } else { "" };
        for (names, matrices) in self.shape.tensors(model_type, prefix).into_iter().zip(&self.layers) {
            let by_tensor: Vec<Vec<f64>> = match model_type {
                ModelType::Llama => matrices.iter().map(|matrices| matrices.concat()).collect(),
                ModelType::Gpt2 => {
                    let rows = matrices.iter().flatten().flatten().copied().collect::<Vec<f64>>();
                    let outs = rows.len() / hidden_size;
                    let bias = names[0].0.replace("weight", "bias");
                    tensors.insert(bias, StoredTensor::new(dtype, &[1, outs], &rows[..outs]));
                    let columns = |place: usize| rows[place % outs * hidden_size + place / outs];
                    vec![(0..rows.len()).map(columns).collect()]
                }
            };
            for ((name, shape), weights) in names.into_iter().zip(by_tensor) {
                tensors.insert(name, StoredTensor::new(dtype, &shape, &weights));
            }
        }
        tensors
    }
}

/// Writes a checkpoint to a folder within `folder`, and returns the path of that.
fn write(folder: &Folder, name: &str, weights: &Weights, model_type: ModelType, dtype: Dtype) -> PathBuf {
    let config = weights.shape.config(model_type);
    folder.write(&format!("{name}/config.json"), config.to_string());
    let file = safetensors_file(&weights.tensors(model_type, dtype));
    folder.write(&format!("{name}/model.safetensors"), file);
    folder.path().join(name)
}

/// Writes the same with a shard for each tensor, in another order than that of the layers.
fn write_sharded(
    folder: &Folder,
    name: &str,
    weights: &Weights,
    model_type: ModelType,
    dtype: Dtype,
) -> PathBuf {
    let config = weights.shape.config(model_type);
    folder.write(&format!("{name}/config.json"), config.to_string());
    let tensors = weights.tensors(model_type, dtype);
    let count = tensors.len();
    let mut weight_map = BTreeMap::new();
    for (number, (tensor, stored)) in tensors.iter().enumerate() {
        let shard = format!("shard-{}.safetensors", count - number);
        folder.write(&format!("{name}/{shard}"), safetensors_file([(tensor, stored)]));
        weight_map.insert(tensor, shard);
    }
    let index = json!({"weight_map": weight_map}).to_string();
    folder.write(&format!("{name}/model.safetensors.index.json"), index);
    folder.path().join(name)
}

fn options(form: Form) -> Options {
    Options { form, sorted: true, threads: Some(1), ..Options::default() }
}

fn score(base: &Path, tuned: &Path, options: &Options) -> Scores {
    let progress = Progress::default();
    let scores = scan(base, tuned, options, &progress).unwrap();
    assert_eq!(progress.bytes(), (scores.bytes, scores.bytes));
    scores
}

/// Statistics by name, each bit of them.
fn bits(scores: &Scores) -> Vec<(&'static str, Vec<u64>)> {
    let bits = |values: &Vec<f64>| values.iter().map(|value| value.to_bits()).collect();
    scores.statistics.iter().map(|(name, values)| (*name, bits(values))).collect()
}

fn values<'a>(scores: &'a Scores, name: &str) -> &'a [f64] {
    &scores.statistics.iter().find(|(found, _)| *found == name).unwrap().1
}

const FORMS: [Form; 2] = [Form::Qkv, Form::Product];

/// Blocks of 128 entries end inside rows, matrices inside blocks; layers move by very different amounts.
const GROUPED: ModelShape =
    ModelShape { layers: 4, groups: 2, heads_per_group: 2, head_size: 5, hidden_size: 71 };
const FUSED: ModelShape =
    ModelShape { layers: 4, groups: 3, heads_per_group: 1, head_size: 11, hidden_size: 33 };

/// Large enough for blocks in `f32`.
const LARGE: ModelShape =
    ModelShape { layers: 1, groups: 2, heads_per_group: 2, head_size: 32, hidden_size: 2100 };

fn assert_same_bits_for_all_options(shape: ModelShape, model_type: ModelType, dtypes: [Dtype; 2]) {
    let weights = Weights::random(shape, 1).rounded(dtypes[0]);
    for form in FORMS {
        let reference = scan_with_all_options([&weights, &weights.tuned(2)], model_type, dtypes, form);
        let moved = &values(&reference, "wasserstein")[shape.heads()..];
        assert!(moved.iter().all(|score| *score > 0.0), "{moved:?}");
    }
}

/// Scans a pair with all options that no result may depend on.
fn scan_with_all_options(
    [base, tuned]: [&Weights; 2],
    model_type: ModelType,
    dtypes: [Dtype; 2],
    form: Form,
) -> Scores {
    let folder = Folder::new();
    let base = write(&folder, "base", base, model_type, dtypes[0]);
    let tuned = write(&folder, "tuned", tuned, model_type, dtypes[1]);
    let reference = score(&base, &tuned, &Options { piece: 1 << 20, ..options(form) });
    let expected = bits(&reference);
    let mut variants = vec![Options { threads: None, ..options(form) }];
    for threads in [2, 7] {
        variants.push(Options { threads: Some(threads), ..options(form) });
    }
    for piece in [1, 100, 4096] {
        variants.push(Options { piece, ..options(form) });
        variants.push(Options { piece, mmap: false, ..options(form) });
    }
    for instructions in Instructions::available() {
        variants.push(Options { instructions, threads: Some(2), piece: 1000, ..options(form) });
    }
    for variant in variants {
        let found = score(&base, &tuned, &variant);
        if variant.instructions.fuses() {
            assert_eq!(bits(&found), expected, "{model_type:?} {dtypes:?} {variant:?}");
        } else {
            assert_nearly_the_same(&found, &reference);
        }
        assert_eq!((&found.geometry, found.bytes), (&reference.geometry, reference.bytes));
    }
    reference
}

/// Two roundings of a multiply-add instead of one change a score by less than 5e-7 of it.
fn assert_nearly_the_same(found: &Scores, expected: &Scores) {
    for ((name, found), (_, expected)) in found.statistics.iter().zip(&expected.statistics) {
        for (found, expected) in found.iter().zip(expected) {
            // A score near 0 is the difference of larger numbers.
            let scale = if *name == "wasserstein_z" { expected.abs().max(1.0) } else { expected.abs() };
            let is_close = (found - expected).abs() <= 5e-7 * scale || (found.is_nan() && expected.is_nan());
            assert!(is_close, "{name}: {found:e}, not {expected:e}");
        }
    }
}

/// Heads of one group, one of which has to be measured again in `f64`: the changes of all its weights alternate.
#[test]
fn threads_pieces_maps_and_instructions_change_no_bit_of_large_heads() {
    for dtype in [Dtype::BF16, Dtype::F32] {
        let base = Weights::random(LARGE, 1).rounded(dtype);
        let mut tuned = base.tuned(2);
        for (matrices, from) in tuned.layers[0].iter_mut().zip(&base.layers[0]) {
            for (entry, (weight, from)) in matrices[0].iter_mut().zip(&from[0]).enumerate() {
                *weight = from + if entry % 2 == 0 { 2e-3 } else { -2e-3 };
            }
        }
        // The other head of the group moves farther than its keys and values.
        for (weight, from) in tuned.layers[0][0][1].iter_mut().zip(&base.layers[0][0][1]) {
            *weight += 20.0 * (*weight - from);
        }
        let scores = scan_with_all_options([&base, &tuned], ModelType::Llama, [dtype; 2], Form::Qkv);
        let z = values(&scores, "wasserstein_z");
        assert!(z[0] < -2.0 && z[1..].iter().all(|z| *z > -1.8), "{z:?}");
    }
}

#[test]
fn threads_pieces_maps_and_instructions_change_no_bit_of_bf16() {
    assert_same_bits_for_all_options(GROUPED, ModelType::Llama, [Dtype::BF16; 2]);
    assert_same_bits_for_all_options(FUSED, ModelType::Gpt2, [Dtype::BF16; 2]);
}

#[test]
fn threads_pieces_maps_and_instructions_change_no_bit_of_f16() {
    assert_same_bits_for_all_options(GROUPED, ModelType::Llama, [Dtype::F16; 2]);
    assert_same_bits_for_all_options(FUSED, ModelType::Gpt2, [Dtype::F16; 2]);
}

#[test]
fn threads_pieces_maps_and_instructions_change_no_bit_of_f32() {
    assert_same_bits_for_all_options(GROUPED, ModelType::Llama, [Dtype::F32; 2]);
    assert_same_bits_for_all_options(FUSED, ModelType::Gpt2, [Dtype::F32; 2]);
}

#[test]
fn threads_pieces_maps_and_instructions_change_no_bit_of_f64() {
    assert_same_bits_for_all_options(GROUPED, ModelType::Llama, [Dtype::F64; 2]);
    assert_same_bits_for_all_options(FUSED, ModelType::Gpt2, [Dtype::F64; 2]);
}

#[test]
fn threads_pieces_maps_and_instructions_change_no_bit_of_a_mixed_pair() {
    for dtypes in [[Dtype::BF16, Dtype::F32], [Dtype::F64, Dtype::F16]] {
        assert_same_bits_for_all_options(GROUPED, ModelType::Llama, dtypes);
        assert_same_bits_for_all_options(FUSED, ModelType::Gpt2, dtypes);
    }
}

#[test]
fn shards_change_no_bit() {
    for (shape, model_type) in [(GROUPED, ModelType::Llama), (FUSED, ModelType::Gpt2)] {
        let folder = Folder::new();
        let base = Weights::random(shape, 3);
        let tuned = base.tuned(4);
        let whole = [("base", &base), ("tuned", &tuned)]
            .map(|(name, weights)| write(&folder, name, weights, model_type, Dtype::BF16));
        let sharded = [("base in shards", &base), ("tuned in shards", &tuned)]
            .map(|(name, weights)| write_sharded(&folder, name, weights, model_type, Dtype::BF16));
        for form in FORMS {
            let expected = bits(&score(&whole[0], &whole[1], &options(form)));
            for [base, tuned] in [&sharded, &[sharded[0].clone(), whole[1].clone()]] {
                assert_eq!(bits(&score(base, tuned, &options(form))), expected, "{model_type:?} {form:?}");
            }
        }
    }
}

#[test]
fn the_storage_of_a_head_changes_no_bit_of_its_score() {
    for dtype in [Dtype::F16, Dtype::F64] {
        let folder = Folder::new();
        let base = Weights::random(FUSED, 5);
        let tuned = base.tuned(6);
        let [fused, separate] = [ModelType::Gpt2, ModelType::Llama].map(|model_type| {
            [("base", &base), ("tuned", &tuned)].map(|(name, weights)| {
                write(&folder, &format!("{name} {model_type:?}"), weights, model_type, dtype)
            })
        });
        for form in FORMS {
            let [fused, separate] =
                [&fused, &separate].map(|[base, tuned]| score(base, tuned, &options(form)));
            assert_eq!(bits(&fused), bits(&separate), "{dtype} {form:?}");
            assert_eq!((&*fused.geometry.layout, &*separate.geometry.layout), ("transposed", "separate"));
            assert_eq!(fused.bytes, separate.bytes);
        }
    }
}

/// What has to agree, and how closely: `wasserstein_z` as the quotient that it standardises.
fn assert_close(found: &Scores, expected: &Scores, tolerance: f64, exactly: &[&str]) {
    use std::f64::consts::PI;
    for ((name, found), (_, expected)) in found.statistics.iter().zip(&expected.statistics) {
        for (head, (found, expected)) in found.iter().zip(expected).enumerate() {
            if exactly.contains(name) || expected.is_nan() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{name} of head {head}: {found}, {expected}");
                continue;
            }
            let quotient = |z: f64| {
                if *name == "wasserstein_z" {
                    z * (7.0 / 60.0 - PI / 32.0).sqrt() + (PI / 32.0).sqrt()
                } else {
                    z
                }
            };
            let (found, expected) = (quotient(*found), quotient(*expected));
            assert!(
                (found - expected).abs() <= tolerance * expected,
                "{name} of head {head}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn the_same_numbers_score_the_same_in_every_format_that_holds_them() {
    // Multiples of 2^-8 below 1/2: differences of them, and the squares of these, are exact.
    let base = Weights::random(GROUPED, 7).map(|weight| (weight * 256.0).round() / 256.0);
    for scale in [10.0, 1.5] {
        let mut noise = noise(8);
        let tuned =
            base.map(|weight| (weight * 256.0 + noise() * scale).round().clamp(-127.0, 127.0) / 256.0);
        let folder = Folder::new();
        let pair = |dtype| {
            [("base", &base), ("tuned", &tuned)].map(|(name, weights)| {
                write(&folder, &format!("{name} {dtype}"), weights, ModelType::Llama, dtype)
            })
        };
        let [reference, others @ ..] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16].map(pair);
        for form in FORMS {
            let expected = score(&reference[0], &reference[1], &options(form));
            let exactly: &[&str] = match form {
                Form::Qkv => &["delta_norm", "relative_delta", "max_delta", "changed", "sorted_wasserstein"],
                // Decoded to the same numbers, and from there on the same.
                Form::Product => &alps::statistics::STATISTICS.map(|statistic| statistic.name),
            };
            for other in &others {
                let mixed = [&other[0], &reference[1]];
                for [base, tuned] in [[&other[0], &other[1]], mixed] {
                    assert_close(&score(base, tuned, &options(form)), &expected, 1e-6, exactly);
                }
            }
        }
    }
}

#[test]
fn only_the_bytes_of_queries_keys_and_values_count() {
    for (shape, model_type) in [(GROUPED, ModelType::Llama), (FUSED, ModelType::Gpt2)] {
        let folder = Folder::new();
        let weights = Weights::random(shape, 9);
        let base = write(&folder, "base", &weights, model_type, Dtype::BF16);
        let tuned = write(&folder, "tuned", &weights, model_type, Dtype::F64);
        let matrices = shape.layers * (shape.heads() + 2 * shape.groups);
        for form in FORMS {
            // The embeddings beside them, which are not numbers, are never looked at.
            let scores = score(&base, &tuned, &Options { threads: Some(3), ..options(form) });
            assert_eq!(scores.bytes, (matrices * shape.entries() * (2 + 8)) as u64);
        }
    }
}

#[test]
fn a_scan_that_is_cancelled_before_it_begins_reads_nothing() {
    let folder = Folder::new();
    let weights = Weights::random(GROUPED, 10);
    let path = write(&folder, "base", &weights, ModelType::Llama, Dtype::F32);
    for form in FORMS {
        let progress = Progress::default();
        progress.cancelled.store(true, Ordering::Relaxed);
        let result = scan(&path, &path, &options(form), &progress);
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert_eq!(progress.done.load(Ordering::Relaxed), 0);
    }
}

/// A model of many gigabytes that takes no room.
#[cfg(unix)] // elsewhere the disk would have to have the room
fn huge(folder: &Folder, model_type: ModelType) -> PathBuf {
    let groups = if model_type == ModelType::Gpt2 { 32 } else { 8 };
    let shape =
        ModelShape { layers: 40, groups, heads_per_group: 32 / groups, head_size: 128, hidden_size: 4096 };
    let prefix = if model_type == ModelType::Llama { "model." } else { "" };
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shape.tensors(model_type, prefix).into_iter().flatten() {
        let start = end;
        end += 2 * shape[0] * shape[1];
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    folder.write("config.json", shape.config(model_type).to_string());
    let path = folder.path().join("model.safetensors");
    write_sparse_file(&path, &Value::from(header).to_string(), end as u64);
    folder.path().to_path_buf()
}

#[cfg(unix)]
#[test]
fn a_scan_that_is_cancelled_stops_within_half_a_second() {
    for model_type in [ModelType::Llama, ModelType::Gpt2] {
        let folder = Folder::new();
        let path = huge(&folder, model_type);
        for form in FORMS {
            let progress = Progress::default();
            let cancelled = thread::scope(|scope| {
                let watcher = scope.spawn(|| {
                    while progress.done.load(Ordering::Relaxed) == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    progress.cancelled.store(true, Ordering::Relaxed);
                    Instant::now()
                });
                let result = scan(&path, &path, &Options { threads: Some(2), ..options(form) }, &progress);
                assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
                watcher.join().unwrap()
            });
            assert!(
                cancelled.elapsed() < Duration::from_millis(500),
                "{model_type:?} {form:?} {:?}",
                cancelled.elapsed()
            );
            let (done, total) = progress.bytes();
            assert!(done < total);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_is_truncated_while_it_is_scanned_is_named() {
    for form in FORMS {
        let folders = [Folder::new(), Folder::new()];
        let [base, tuned] = folders.each_ref().map(|folder| huge(folder, ModelType::Llama));
        let file = tuned.join("model.safetensors");
        let progress = Progress::default();
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                while progress.done.load(Ordering::Relaxed) == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                File::options().write(true).open(&file).unwrap().set_len(30_000).unwrap();
            });
            scan(&base, &tuned, &Options { threads: Some(2), ..options(form) }, &progress).unwrap_err()
        });
        let problem = error.to_string();
        assert!(problem.starts_with(&file.display().to_string()), "{problem}");
        assert!(problem.contains("it was truncated meanwhile"), "{problem}");
        assert!(matches!(error, Error::Truncated { path, tensor: Some(_), .. } if path == file), "{problem}");
    }
}

/// A layer that stores no values, whose keys serve as values, is no state of one that stores both: the numbers of heads
/// and all sizes are the same, but the weight vectors are not.
#[test]
fn keys_that_serve_as_values_are_not_compared_with_values() {
    let shape = ModelShape { layers: 2, groups: 2, heads_per_group: 2, head_size: 3, hidden_size: 8 };
    let weights = Weights::random(shape, 13);
    let folder = Folder::new();
    let [base, tuned] = ["without values", "with values"].map(|name| {
        let mut config = shape.config(ModelType::Llama);
        config["model_type"] = json!("gemma4_text");
        config["attention_k_eq_v"] = json!(true);
        folder.write(&format!("{name}/config.json"), config.to_string());
        let mut tensors = weights.tensors(ModelType::Llama, Dtype::F32);
        for layer in 0..shape.layers {
            let attention = format!("model.layers.{layer}.self_attn");
            let norm = StoredTensor::new(Dtype::F32, &[shape.head_size], &vec![1.0; shape.head_size]);
            tensors.insert(format!("{attention}.q_norm.weight"), norm);
            if (name, layer) == ("without values", 1) {
                tensors.remove(&format!("{attention}.v_proj.weight")).unwrap();
            }
        }
        folder.write(&format!("{name}/model.safetensors"), safetensors_file(&tensors));
        folder.path().join(name)
    });
    for [base, tuned] in [[&base, &base], [&tuned, &tuned]] {
        assert!(
            values(&score(base, tuned, &options(Form::Qkv)), "max_delta").iter().all(|delta| *delta == 0.0)
        );
    }
    for ([base, tuned], [in_base, in_tuned]) in [([&base, &tuned], ["1", "0"]), ([&tuned, &base], ["0", "1"])]
    {
        let error = scan(base, tuned, &options(Form::Qkv), &Progress::default()).unwrap_err();
        let Error::Pair { differences, .. } = error else { panic!("{error}") };
        let expected = Difference::Quantity {
            quantity: "whether the keys serve as values (1 if so)",
            layer: Some(1),
            base: in_base.to_owned(),
            tuned: in_tuned.to_owned(),
        };
        assert_eq!(differences, [expected]);
    }
}

/// Scans many times, with several numbers of threads, and checks that the same weight is named each time.
fn assert_always_names_query_head_2(base: &Weights, tuned: &Weights) {
    let folder = Folder::new();
    let [base, tuned] = [("base", base), ("tuned", tuned)]
        .map(|(name, weights)| write(&folder, name, weights, ModelType::Llama, Dtype::F64));
    for threads in [1, 2, 7] {
        for _ in 0..20 {
            let options = Options { threads: Some(threads), ..options(Form::Qkv) };
            let error = scan(&base, &tuned, &options, &Progress::default()).unwrap_err();
            assert!(error.to_string().contains("NaN at [2, 19999] (query head 2 of layer 0)"), "{error}");
            let Error::Weight { weight: BadWeight { position, head, value, .. }, .. } = error else {
                panic!("{threads}: {error}")
            };
            assert_eq!(head, HeadName { role: "query", index: 2, layer: 0 });
            assert_eq!(position, [2, 19_999]);
            assert!(value.is_nan());
        }
    }
}

#[test]
fn of_several_failures_that_of_the_first_group_counts() {
    let shape = ModelShape { layers: 2, groups: 4, heads_per_group: 1, head_size: 1, hidden_size: 20_000 };
    let base = Weights::random(shape, 11);
    let mut tuned = base.clone();
    *tuned.layers[0][0][2].last_mut().unwrap() = f64::NAN;
    for (layer, group) in [(0, 3), (1, 0), (1, 3)] {
        tuned.layers[layer][1][group][0] = f64::INFINITY; // found before the one above
    }
    assert_always_names_query_head_2(&base, &tuned);
}

#[test]
fn of_several_failures_in_a_group_that_of_the_first_head_counts() {
    let shape = ModelShape { layers: 1, groups: 1, heads_per_group: 8, head_size: 1, hidden_size: 20_000 };
    let base = Weights::random(shape, 12);
    let mut tuned = base.clone();
    *tuned.layers[0][0][2].last_mut().unwrap() = f64::NAN;
    for head in [3, 4, 7] {
        tuned.layers[0][0][head][0] = f64::INFINITY; // found before the one above
    }
    assert_always_names_query_head_2(&base, &tuned);
}

/// An order of `count` things.
fn order(count: usize) -> impl Strategy<Value = Vec<usize>> {
    Just((0..count).collect::<Vec<usize>>()).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Groups may change places with their heads, heads within their group, and layers.
    #[test]
    fn heads_that_change_places_take_their_scores_along(
        (shape, layers, groups, within) in model_shapes(3, 4, 4, 4, 60).prop_flat_map(|shape| {
            (Just(shape), order(shape.layers), order(shape.groups), order(shape.heads_per_group))
        }),
        seed in any::<u64>(),
        product in any::<bool>(),
    ) {
        let (groups, within) = (&groups, &within);
        let heads: Vec<usize> = groups
            .iter()
            .flat_map(|group| within.iter().map(move |head| group * within.len() + head))
            .collect();
        let moved = |weights: &Weights| Weights {
            shape,
            layers: layers
                .iter()
                .map(|layer| {
                    let [queries, keys, values] = &weights.layers[*layer];
                    let pick = |from: &Vec<Vec<f64>>, order: &[usize]| {
                        order.iter().map(|place| from[*place].clone()).collect()
                    };
                    [pick(queries, &heads), pick(keys, groups), pick(values, groups)]
                })
                .collect(),
        };
        let base = Weights::random(shape, seed);
        let tuned = base.tuned(seed ^ 1);
        let folder = Folder::new();
        let write = |name: &str, weights: &Weights| write(&folder, name, weights, ModelType::Llama, Dtype::F32);
        let form = FORMS[usize::from(product)];
        let before = score(&write("base", &base), &write("tuned", &tuned), &options(form));
        let after = score(&write("moved base", &moved(&base)), &write("moved tuned", &moved(&tuned)), &options(form));
        for ((name, before), (_, after)) in bits(&before).iter().zip(bits(&after)) {
            let expected: Vec<u64> = layers
                .iter()
                .flat_map(|layer| heads.iter().map(move |head| before[layer * shape.heads() + head]))
                .collect();
            prop_assert_eq!(&after, &expected, "{}", name);
        }
    }

    /// One changed weight moves the heads that read its matrix, and no other by a single bit.
    #[test]
    fn a_change_moves_only_the_heads_that_read_it(
        (shape, layer, role, index, entry) in model_shapes(3, 4, 4, 4, 60).prop_flat_map(|shape| {
            (Just(shape), 0..shape.layers, 0usize..3, 0..shape.heads(), 0..shape.entries())
        }),
        seed in any::<u64>(),
        product in any::<bool>(),
    ) {
        let base = Weights::random(shape, seed);
        let mut tuned = base.clone();
        let (group, read_by) = match role {
            0 => (index, index..index + 1),
            _ => {
                let group = index / shape.heads_per_group;
                (group, group * shape.heads_per_group..(group + 1) * shape.heads_per_group)
            }
        };
        tuned.layers[layer][role][group][entry] += 1.0;
        let folder = Folder::new();
        let write = |name: &str, weights: &Weights| write(&folder, name, weights, ModelType::Llama, Dtype::BF16);
        let scores = score(&write("base", &base), &write("tuned", &tuned), &options(FORMS[usize::from(product)]));
        for (name, values) in &scores.statistics {
            for (head, value) in values.iter().enumerate() {
                let reads = head / shape.heads() == layer && read_by.contains(&(head % shape.heads()));
                match *name {
                    "wasserstein_z" => prop_assert!(reads || value.is_nan(), "{} of {}", name, head),
                    "max_delta" => prop_assert_eq!(*value > 0.0, reads, "{} of {}", name, head),
                    _ => prop_assert!(reads || *value == 0.0, "{} of {}", name, head),
                }
            }
        }
    }
}
