//! Scans of tiny checkpoints: what no result may depend on, and what every result must obey.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use alps::Error;
use alps::progress::Progress;
use alps::scan::{Form, Options, Scores, scan};
use alps::simd::Instructions;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How a model stores its attention.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Llama's: one tensor each, [out, in].
    Separate,
    /// GPT-2's: one tensor of all three, [in, out].
    Fused,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layers: usize,
    groups: usize,
    heads_per_group: usize,
    head_size: usize,
    hidden_size: usize,
}

impl Shape {
    fn heads(&self) -> usize {
        self.groups * self.heads_per_group
    }

    /// Entries of one matrix of one head.
    fn entries(&self) -> usize {
        self.head_size * self.hidden_size
    }

    fn config(&self, layout: Layout) -> Value {
        match layout {
            Layout::Separate => json!({
                "model_type": "llama",
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads(),
                "num_key_value_heads": self.groups,
                "head_dim": self.head_size,
                "hidden_size": self.hidden_size,
            }),
            Layout::Fused => {
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
}

/// All matrices of a model: [layer][query, key, value][head or group], each row-major in [out, in] order.
#[derive(Clone, Debug)]
struct Weights {
    shape: Shape,
    layers: Vec<[Vec<Vec<f64>>; 3]>,
}

/// Numbers that look random, the same for the same seed.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15); // splitmix64
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }
}

impl Weights {
    fn random(shape: Shape, seed: u64) -> Self {
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
        self.map(|weight| match dtype {
            Dtype::BF16 => bf16::from_f64(weight).to_f64(),
            Dtype::F16 => f16::from_f64(weight).to_f64(),
            Dtype::F32 => f64::from(weight as f32),
            _ => weight,
        })
    }

    fn map(&self, mut change: impl FnMut(f64) -> f64) -> Self {
        let mut changed = self.clone();
        let weights = changed.layers.iter_mut().flatten().flatten().flatten();
        weights.for_each(|weight| *weight = change(*weight));
        changed
    }

    /// The tensors of the model, among others that are no part of the attention.
    fn tensors(&self, layout: Layout, dtype: Dtype) -> BTreeMap<String, Stored> {
        let Shape { hidden_size, .. } = self.shape;
        let mut tensors = BTreeMap::new();
        let embedding = vec![f64::NAN; 3 * hidden_size];
        tensors.insert("embed_tokens.weight".to_owned(), Stored::new(dtype, [3, hidden_size], &embedding));
        for (layer, matrices) in self.layers.iter().enumerate() {
            match layout {
                Layout::Separate => {
                    for (name, matrices) in ["q_proj", "k_proj", "v_proj"].iter().zip(matrices) {
                        let rows = matrices.concat();
                        let stored = Stored::new(dtype, [rows.len() / hidden_size, hidden_size], &rows);
                        tensors.insert(format!("model.layers.{layer}.self_attn.{name}.weight"), stored);
                    }
                }
                Layout::Fused => {
                    let rows = matrices.iter().flatten().flatten().copied().collect::<Vec<f64>>();
                    let outs = rows.len() / hidden_size;
                    let columns: Vec<f64> = (0..rows.len())
                        .map(|place| rows[place % outs * hidden_size + place / outs])
                        .collect();
                    let stored = Stored::new(dtype, [hidden_size, outs], &columns);
                    tensors.insert(format!("h.{layer}.attn.c_attn.weight"), stored);
                    tensors.insert(
                        format!("h.{layer}.attn.c_attn.bias"),
                        Stored::new(dtype, [1, outs], &rows[..outs]),
                    );
                }
            }
        }
        tensors
    }
}

/// A tensor as a file holds it.
struct Stored {
    dtype: Dtype,
    shape: [usize; 2],
    bytes: Vec<u8>,
}

impl Stored {
    fn new(dtype: Dtype, shape: [usize; 2], weights: &[f64]) -> Self {
        let bytes = match dtype {
            Dtype::BF16 => weights.iter().flat_map(|weight| bf16::from_f64(*weight).to_le_bytes()).collect(),
            Dtype::F16 => weights.iter().flat_map(|weight| f16::from_f64(*weight).to_le_bytes()).collect(),
            Dtype::F32 => weights.iter().flat_map(|weight| (*weight as f32).to_le_bytes()).collect(),
            Dtype::F64 => weights.iter().flat_map(|weight| weight.to_le_bytes()).collect(),
            other => panic!("no weights are written as {other}"),
        };
        Self { dtype, shape, bytes }
    }
}

fn write_file(path: &Path, tensors: &BTreeMap<String, Stored>) {
    let views = tensors.iter().map(|(name, Stored { dtype, shape, bytes })| {
        (name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Checkpoints that are gone after the test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn checkpoint(&self, name: &str, config: &Value) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        path
    }

    fn write(&self, name: &str, weights: &Weights, layout: Layout, dtype: Dtype) -> PathBuf {
        let path = self.checkpoint(name, &weights.shape.config(layout));
        write_file(&path.join("model.safetensors"), &weights.tensors(layout, dtype));
        path
    }

    /// The same with a shard for each tensor, in another order than that of the layers.
    fn write_sharded(&self, name: &str, weights: &Weights, layout: Layout, dtype: Dtype) -> PathBuf {
        let path = self.checkpoint(name, &weights.shape.config(layout));
        let tensors = weights.tensors(layout, dtype);
        let count = tensors.len();
        let mut weight_map = BTreeMap::new();
        for (number, (tensor, stored)) in tensors.into_iter().enumerate() {
            let shard = format!("shard-{}.safetensors", count - number);
            write_file(&path.join(&shard), &BTreeMap::from([(tensor.clone(), stored)]));
            weight_map.insert(tensor, shard);
        }
        let index = json!({"weight_map": weight_map}).to_string();
        fs::write(path.join("model.safetensors.index.json"), index).unwrap();
        path
    }
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
const GROUPED: Shape = Shape { layers: 4, groups: 2, heads_per_group: 2, head_size: 5, hidden_size: 71 };
const FUSED: Shape = Shape { layers: 4, groups: 3, heads_per_group: 1, head_size: 11, hidden_size: 33 };

/// Large enough for blocks in `f32`.
const LARGE: Shape = Shape { layers: 1, groups: 2, heads_per_group: 2, head_size: 32, hidden_size: 2100 };

fn assert_same_bits_in_every_way(shape: Shape, layout: Layout, dtypes: [Dtype; 2]) {
    let weights = Weights::random(shape, 1).rounded(dtypes[0]);
    for form in FORMS {
        let reference = scan_in_every_way([&weights, &weights.tuned(2)], layout, dtypes, form);
        let moved = &values(&reference, "wasserstein")[shape.heads()..];
        assert!(moved.iter().all(|score| *score > 0.0), "{moved:?}");
    }
}

/// Scans a pair in every way that must not matter.
fn scan_in_every_way(sides: [&Weights; 2], layout: Layout, dtypes: [Dtype; 2], form: Form) -> Scores {
    let folder = Folder::new();
    let base = folder.write("base", sides[0], layout, dtypes[0]);
    let tuned = folder.write("tuned", sides[1], layout, dtypes[1]);
    let reference = score(&base, &tuned, &Options { piece: 1 << 20, ..options(form) });
    let expected = bits(&reference);
    let mut ways = vec![Options { threads: None, ..options(form) }];
    for threads in [2, 7] {
        ways.push(Options { threads: Some(threads), ..options(form) });
    }
    for buffer in [1, 100, 4096] {
        ways.push(Options { piece: buffer, ..options(form) });
        ways.push(Options { piece: buffer, mmap: false, ..options(form) });
    }
    for instructions in Instructions::available() {
        ways.push(Options { instructions, threads: Some(2), piece: 1000, ..options(form) });
    }
    for way in ways {
        let found = score(&base, &tuned, &way);
        assert_eq!(bits(&found), expected, "{layout:?} {dtypes:?} {way:?}");
        assert_eq!((&found.geometry, found.bytes), (&reference.geometry, reference.bytes));
    }
    reference
}

/// Heads of one group, one of which has to be measured again in `f64`: the changes of all its weights alternate.
#[test]
fn threads_buffers_maps_and_instructions_change_no_bit_of_large_heads() {
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
        let scores = scan_in_every_way([&base, &tuned], Layout::Separate, [dtype; 2], Form::Qkv);
        let z = values(&scores, "wasserstein_z");
        assert!(z[0] < -2.0 && z[1..].iter().all(|z| *z > -1.8), "{z:?}");
    }
}

#[test]
fn threads_buffers_maps_and_instructions_change_no_bit_of_bf16() {
    assert_same_bits_in_every_way(GROUPED, Layout::Separate, [Dtype::BF16; 2]);
    assert_same_bits_in_every_way(FUSED, Layout::Fused, [Dtype::BF16; 2]);
}

#[test]
fn threads_buffers_maps_and_instructions_change_no_bit_of_f16() {
    assert_same_bits_in_every_way(GROUPED, Layout::Separate, [Dtype::F16; 2]);
    assert_same_bits_in_every_way(FUSED, Layout::Fused, [Dtype::F16; 2]);
}

#[test]
fn threads_buffers_maps_and_instructions_change_no_bit_of_f32() {
    assert_same_bits_in_every_way(GROUPED, Layout::Separate, [Dtype::F32; 2]);
    assert_same_bits_in_every_way(FUSED, Layout::Fused, [Dtype::F32; 2]);
}

#[test]
fn threads_buffers_maps_and_instructions_change_no_bit_of_f64() {
    assert_same_bits_in_every_way(GROUPED, Layout::Separate, [Dtype::F64; 2]);
    assert_same_bits_in_every_way(FUSED, Layout::Fused, [Dtype::F64; 2]);
}

#[test]
fn threads_buffers_maps_and_instructions_change_no_bit_of_a_mixed_pair() {
    for dtypes in [[Dtype::BF16, Dtype::F32], [Dtype::F64, Dtype::F16]] {
        assert_same_bits_in_every_way(GROUPED, Layout::Separate, dtypes);
        assert_same_bits_in_every_way(FUSED, Layout::Fused, dtypes);
    }
}

#[test]
fn shards_change_no_bit() {
    for (shape, layout) in [(GROUPED, Layout::Separate), (FUSED, Layout::Fused)] {
        let folder = Folder::new();
        let base = Weights::random(shape, 3);
        let tuned = base.tuned(4);
        let whole = [("base", &base), ("tuned", &tuned)]
            .map(|(name, weights)| folder.write(name, weights, layout, Dtype::BF16));
        let sharded = [("base in shards", &base), ("tuned in shards", &tuned)]
            .map(|(name, weights)| folder.write_sharded(name, weights, layout, Dtype::BF16));
        for form in FORMS {
            let expected = bits(&score(&whole[0], &whole[1], &options(form)));
            for [base, tuned] in [&sharded, &[sharded[0].clone(), whole[1].clone()]] {
                assert_eq!(bits(&score(base, tuned, &options(form))), expected, "{layout:?} {form:?}");
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
        let [fused, separate] = [Layout::Fused, Layout::Separate].map(|layout| {
            [("base", &base), ("tuned", &tuned)]
                .map(|(name, weights)| folder.write(&format!("{name} {layout:?}"), weights, layout, dtype))
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
                folder.write(&format!("{name} {dtype}"), weights, Layout::Separate, dtype)
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
    for (shape, layout) in [(GROUPED, Layout::Separate), (FUSED, Layout::Fused)] {
        let folder = Folder::new();
        let weights = Weights::random(shape, 9);
        let base = folder.write("base", &weights, layout, Dtype::BF16);
        let tuned = folder.write("tuned", &weights, layout, Dtype::F64);
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
    let path = folder.write("base", &weights, Layout::Separate, Dtype::F32);
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
fn huge(folder: &Folder, layout: Layout) -> PathBuf {
    let groups = if layout == Layout::Fused { 32 } else { 8 };
    let shape = Shape { layers: 40, groups, heads_per_group: 32 / groups, head_size: 128, hidden_size: 4096 };
    let path = folder.checkpoint("huge", &shape.config(layout));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for layer in 0..shape.layers {
        let rows = 4096 / shape.heads_per_group;
        let tensors = match layout {
            Layout::Separate => [("q", [4096, 4096]), ("k", [rows, 4096]), ("v", [rows, 4096])]
                .map(|(name, shape)| (format!("model.layers.{layer}.self_attn.{name}_proj.weight"), shape))
                .to_vec(),
            Layout::Fused => vec![(format!("h.{layer}.attn.c_attn.weight"), [4096, 3 * 4096])],
        };
        for (name, shape) in tensors {
            let start = end;
            end += 2 * shape[0] * shape[1];
            header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
        }
    }
    let header = Value::from(header).to_string();
    let mut file = File::create(path.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    path
}

#[cfg(unix)]
#[test]
fn a_scan_that_is_cancelled_stops_within_half_a_second() {
    for layout in [Layout::Separate, Layout::Fused] {
        let folder = Folder::new();
        let path = huge(&folder, layout);
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
                "{layout:?} {form:?} {:?}",
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
        let [base, tuned] = folders.each_ref().map(|folder| huge(folder, Layout::Separate));
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
    }
}

/// Scans again and again, with other numbers of threads, and always gets the same error.
fn assert_always_says(folder: &Folder, base: &Weights, tuned: &Weights, problem: &str) {
    let [base, tuned] = [("base", base), ("tuned", tuned)]
        .map(|(name, weights)| folder.write(name, weights, Layout::Separate, Dtype::F64));
    for threads in [1, 2, 7] {
        for _ in 0..20 {
            let way = Options { threads: Some(threads), ..options(Form::Qkv) };
            let error = scan(&base, &tuned, &way, &Progress::default()).unwrap_err().to_string();
            assert!(error.contains(problem), "{threads}: {error}");
        }
    }
}

#[test]
fn of_several_failures_that_of_the_first_group_counts() {
    let shape = Shape { layers: 2, groups: 4, heads_per_group: 1, head_size: 1, hidden_size: 20_000 };
    let base = Weights::random(shape, 11);
    let mut tuned = base.clone();
    *tuned.layers[0][0][2].last_mut().unwrap() = f64::NAN;
    for (layer, group) in [(0, 3), (1, 0), (1, 3)] {
        tuned.layers[layer][1][group][0] = f64::INFINITY; // found before the one above
    }
    assert_always_says(&Folder::new(), &base, &tuned, "NaN at [2, 19999] (query head 2 of layer 0)");
}

#[test]
fn of_several_failures_in_a_group_that_of_the_first_head_counts() {
    let shape = Shape { layers: 1, groups: 1, heads_per_group: 8, head_size: 1, hidden_size: 20_000 };
    let base = Weights::random(shape, 12);
    let mut tuned = base.clone();
    *tuned.layers[0][0][2].last_mut().unwrap() = f64::NAN;
    for head in [3, 4, 7] {
        tuned.layers[0][0][head][0] = f64::INFINITY; // found before the one above
    }
    assert_always_says(&Folder::new(), &base, &tuned, "NaN at [2, 19999] (query head 2 of layer 0)");
}

fn shapes() -> impl Strategy<Value = Shape> {
    (1usize..3, 1usize..4, 1usize..4, 1usize..4, 1usize..60).prop_map(
        |(layers, groups, heads_per_group, head_size, hidden_size)| Shape {
            layers,
            groups,
            heads_per_group,
            head_size,
            hidden_size,
        },
    )
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
        (shape, layers, groups, within) in shapes().prop_flat_map(|shape| {
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
                    let pick = |from: &Vec<Vec<f64>>, order: &[usize]| order.iter().map(|place| from[*place].clone()).collect();
                    [pick(queries, &heads), pick(keys, groups), pick(values, groups)]
                })
                .collect(),
        };
        let base = Weights::random(shape, seed);
        let tuned = base.tuned(seed ^ 1);
        let folder = Folder::new();
        let write = |name: &str, weights: &Weights| folder.write(name, weights, Layout::Separate, Dtype::F32);
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
        (shape, layer, role, index, entry) in shapes().prop_flat_map(|shape| {
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
        let write = |name: &str, weights: &Weights| folder.write(name, weights, Layout::Separate, Dtype::BF16);
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
