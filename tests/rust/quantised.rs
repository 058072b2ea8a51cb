//! Quantised modules: weights known from the published formulas, what reading may depend on, and refusals.
//!
//! Weights that the quantisers themselves wrote are in test_quantised.py.

use std::sync::Arc;

use alps::Error;
use alps::checkpoint::Checkpoint;
use alps::weights::WeightMatrix;
use alps::weights::quantised::{Quantisation, Scheme};
use half::bf16;
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::support::{Folder, StoredTensor, encode, noise, safetensors_file, with};

const MODULE: &str = "model.layers.0.self_attn.q_proj";

/// A module of a checkpoint with nothing else in it.
#[derive(Clone)]
struct StoredModule {
    config: Value,
    /// The tensors by the ends of their names.
    tensors: Vec<(&'static str, StoredTensor)>,
}

impl StoredModule {
    fn new(config: Value) -> Self {
        StoredModule { config, tensors: Vec::new() }
    }

    fn with(
        mut self,
        ending: &'static str,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Vec<u8>>,
    ) -> Self {
        self.tensors.retain(|(other, _)| *other != ending);
        self.tensors.push((ending, StoredTensor { dtype, shape: shape.to_vec(), bytes: bytes.into() }));
        self
    }

    fn without(mut self, ending: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|(other, _)| *other != ending);
        assert_eq!(self.tensors.len(), before - 1, "{ending}");
        self
    }

    fn configured(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    fn floats(self, ending: &'static str, shape: &[usize], numbers: &[f32]) -> Self {
        self.numbers(ending, Dtype::F32, shape, numbers)
    }

    fn halves(self, ending: &'static str, shape: &[usize], numbers: &[f32]) -> Self {
        self.numbers(ending, Dtype::F16, shape, numbers)
    }

    fn numbers(self, ending: &'static str, dtype: Dtype, shape: &[usize], numbers: &[f32]) -> Self {
        let numbers: Vec<f64> = numbers.iter().copied().map(f64::from).collect();
        self.with(ending, dtype, shape, encode(dtype, &numbers))
    }

    fn words(self, ending: &'static str, shape: &[usize], words: &[u32]) -> Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.with(ending, Dtype::I32, shape, bytes)
    }

    fn write(&self) -> (Folder, Arc<Checkpoint>) {
        let folder = Folder::new();
        let tensors = self.tensors.iter().map(|(ending, tensor)| (format!("{MODULE}.{ending}"), tensor));
        folder.write("model.safetensors", safetensors_file(tensors));
        folder.write("config.json", json!({"quantization_config": self.config}).to_string());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (folder, Arc::new(checkpoint))
    }

    /// The folder, and what is quantised in the checkpoint in it.
    fn open(&self) -> (Folder, Quantisation) {
        let (folder, checkpoint) = self.write();
        let quantisation = Quantisation::of(&checkpoint, &checkpoint.config().unwrap()).unwrap();
        (folder, quantisation)
    }

    /// The scheme of the module, and all its weights.
    fn read(&self) -> (Scheme, Vec<f32>) {
        let (_folder, quantisation) = self.open();
        assert!(quantisation.modules().all(|module| module == MODULE));
        assert!(quantisation.modules().next().is_some());
        let opened = quantisation.open(MODULE).unwrap().unwrap();
        let rows = opened.matrix.out_features();
        (opened.scheme, read(&*opened.matrix, 0..rows).unwrap())
    }

    #[track_caller]
    fn refusal(&self) -> Error {
        let (_folder, checkpoint) = self.write();
        let read = || {
            let quantisation = Quantisation::of(&checkpoint, &checkpoint.config()?)?;
            let opened = quantisation.open(MODULE)?.expect("a quantised module");
            read(&*opened.matrix, 0..opened.matrix.out_features())
        };
        read().expect_err("not refused")
    }

    /// Asserts that the module is refused as malformed, because of this tensor, for this reason.
    #[track_caller]
    fn is_malformed(&self, ending: &str, reason: &str) {
        let error = self.refusal();
        let Error::Checkpoint { problem, .. } = &error else { panic!("refused in another way: {error}") };
        assert!(problem.contains(&format!("tensor `{MODULE}.{ending}` ")), "{problem}");
        assert!(problem.contains(reason), "{problem}");
    }

    /// Asserts that the module is refused as one that is not read, or that contradicts the configuration.
    #[track_caller]
    fn is_not_read(&self, reason: &str) {
        let error = self.refusal();
        let Error::Model { problem, .. } = &error else { panic!("refused in another way: {error}") };
        assert!(problem.contains(reason), "{problem}");
    }
}

fn read(matrix: &dyn WeightMatrix, rows: std::ops::Range<usize>) -> Result<Vec<f32>, Error> {
    let mut into = vec![0; rows.len() * matrix.in_features() * 4];
    matrix.read_rows(rows, &mut into, &mut vec![1; 7])?;
    Ok(into.as_chunks::<4>().0.iter().map(|weight| f32::from_le_bytes(*weight)).collect())
}

/// Pseudorandom bytes, the same for the same seed.
fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut noise = noise(seed);
    (0..count).map(|_| ((noise() + 0.5) * 256.0) as u8).collect()
}

fn scales(count: usize) -> Vec<f32> {
    (0..count).map(|place| 0.5 + place as f32 / 64.0).collect()
}

fn groups(weights: Value) -> Value {
    json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}})
}

fn gptq(bits: usize, group_size: i64) -> Value {
    json!({"quant_method": "gptq", "bits": bits, "group_size": group_size})
}

fn awq_config() -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM"})
}

fn four_bits() -> Value {
    json!({"quant_method": "bitsandbytes", "load_in_4bit": true})
}

/// FP8 of 6 x 10 weights in blocks of 4 x 4.
fn fp8() -> StoredModule {
    let codes: Vec<u8> = random_bytes(1, 60).into_iter().map(|code| code & 0xbf).collect(); // finite
    StoredModule::new(json!({"quant_method": "fp8", "weight_block_size": [4, 4]}))
        .with("weight", Dtype::F8_E4M3, &[6, 10], codes)
        .floats("weight_scale_inv", &[2, 3], &scales(6))
}

/// 8-bit integers with a zero point for each of 6 rows.
fn int8() -> StoredModule {
    let weights = json!({"num_bits": 8, "type": "int", "symmetric": false, "strategy": "channel"});
    StoredModule::new(groups(weights))
        .with("weight", Dtype::I8, &[6, 10], random_bytes(2, 60))
        .floats("weight_scale", &[6, 1], &scales(6))
        .with("weight_zero_point", Dtype::I8, &[6, 1], random_bytes(3, 6))
}

/// 4-bit integers of 40 rows and 20 columns, in groups of 10 columns, with zero points and an order of columns.
fn packed() -> StoredModule {
    let weights =
        json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 10});
    let order: Vec<u32> = (0..20).map(|column| column % 2).collect();
    StoredModule::new(groups(weights))
        .with("weight_packed", Dtype::I32, &[40, 3], random_bytes(4, 480))
        .floats("weight_scale", &[40, 2], &scales(80))
        .with("weight_zero_point", Dtype::I32, &[5, 2], random_bytes(5, 40))
        .with("weight_shape", Dtype::I64, &[2], [40_i64, 20].map(i64::to_le_bytes).concat())
        .words("weight_g_idx", &[20], &order)
}

fn nvfp4() -> StoredModule {
    let weights = json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16});
    StoredModule::new(groups(weights))
        .with("weight_packed", Dtype::U8, &[6, 16], random_bytes(6, 96))
        .with(
            "weight_scale",
            Dtype::F8_E4M3,
            &[6, 2],
            random_bytes(7, 12).iter().map(|code| code & 0x3f).collect::<Vec<u8>>(),
        )
        .floats("weight_global_scale", &[1], &[3.0])
}

fn bitsandbytes_int8() -> StoredModule {
    StoredModule::new(json!({"quant_method": "bitsandbytes", "load_in_8bit": true}))
        .with("weight", Dtype::I8, &[6, 10], random_bytes(8, 60))
        .floats("SCB", &[6], &scales(6))
        .with("weight_format", Dtype::U8, &[], [0])
}

fn state(changes: Value) -> Vec<u8> {
    let state = json!({"quant_type": "nf4", "blocksize": 8, "shape": [5, 7], "dtype": "bfloat16"});
    with(state, &changes).to_string().into_bytes()
}

const STATE: &str = "weight.quant_state.bitsandbytes__nf4";

/// 5 x 7 weights, so that rows begin within a byte and within a block.
fn nf4() -> StoredModule {
    let state = state(json!({}));
    StoredModule::new(four_bits())
        .with("weight", Dtype::U8, &[18, 1], random_bytes(9, 18))
        .floats("weight.absmax", &[5], &scales(5))
        .floats("weight.quant_map", &[16], &scales(16))
        .with(STATE, Dtype::U8, &[state.len()], state)
}

fn nested() -> StoredModule {
    let state = state(json!({"nested_blocksize": 2, "nested_offset": 0.25, "nested_dtype": "float32"}));
    nf4()
        .with("weight.absmax", Dtype::U8, &[5], random_bytes(10, 5))
        .floats("weight.nested_absmax", &[3], &scales(3))
        .floats("weight.nested_quant_map", &[256], &scales(256))
        .with(STATE, Dtype::U8, &[state.len()], state)
}

/// 3-bit integers of 32 output and 64 input features in two groups.
fn gptq3() -> StoredModule {
    let order: Vec<u32> = (0..64).map(|input| input % 2).collect();
    StoredModule::new(gptq(3, 32))
        .with("qweight", Dtype::I32, &[6, 32], random_bytes(11, 768))
        .with("qzeros", Dtype::I32, &[2, 3], random_bytes(12, 24))
        .halves("scales", &[2, 32], &scales(64))
        .words("g_idx", &[64], &order)
}

fn awq() -> StoredModule {
    StoredModule::new(awq_config())
        .with("qweight", Dtype::I32, &[40, 2], random_bytes(13, 320))
        .with("qzeros", Dtype::I32, &[3, 2], random_bytes(14, 24))
        .halves("scales", &[3, 16], &scales(48))
}

fn all() -> Vec<StoredModule> {
    vec![fp8(), int8(), packed(), nvfp4(), bitsandbytes_int8(), nf4(), nested(), gptq3(), awq()]
}

// Weights known from the formulas.

#[test]
fn fp8_multiplies_by_the_scale_of_the_block() {
    let stored = StoredModule::new(json!({"quant_method": "fp8", "weight_block_size": [2, 2]}))
        // 1, -1, 2, 0.5 / 448, 2^-9, 0, -0
        .with("weight", Dtype::F8_E4M3, &[3, 3], [0x38, 0xb8, 0x40, 0x30, 0x7e, 0x01, 0x00, 0x80, 0x39])
        .floats("weight_scale_inv", &[2, 2], &[2.0, 3.0, 5.0, 7.0]);
    let expected = vec![2.0, -2.0, 6.0, 1.0, 896.0, 3.0 / 512.0, 0.0, -0.0, 7.0 * 1.125];
    assert_eq!(stored.read(), (Scheme::Fp8E4m3, expected.clone()));

    let exponents = [128, 127, 126, 0xfe]; // 2, 1, 1/2, 2^127
    let expected = vec![2.0, -2.0, 2.0, 1.0, 896.0, 1.0 / 512.0, 0.0, -0.0, 1.125 * 127.0_f32.exp2()];
    for dtype in [Dtype::U8, Dtype::F8_E8M0] {
        for name in ["scale", "weight_scale_inv", "qscale_weight", "weight_scale"] {
            let stored = stored.clone().without("weight_scale_inv").with(name, dtype, &[2, 2], exponents);
            assert_eq!(stored.read().1, expected, "{name} in {dtype}");
        }
    }
}

#[test]
fn fp8_in_e5m2() {
    let stored = StoredModule::new(json!({"quant_method": "fp8", "weight_block_size": null}))
        .with("weight", Dtype::F8_E5M2, &[1, 3], [0x3c, 0x7b, 0x81]) // 1, 57344, -2^-16
        .with("weight_scale", Dtype::BF16, &[], bf16::from_f32(2.0).to_le_bytes());
    assert_eq!(stored.read(), (Scheme::Fp8E5m2, vec![2.0, 114_688.0, -(-15.0_f32).exp2()]));
}

#[test]
fn integers_minus_the_zero_point_times_the_scale() {
    let stored = int8()
        .with("weight", Dtype::I8, &[2, 2], [1, 0xff, 0x80, 0x7f])
        .floats("weight_scale", &[2, 1], &[0.5, 2.0])
        .with("weight_zero_point", Dtype::I8, &[2, 1], [0, 0xfe]);
    assert_eq!(stored.read(), (Scheme::Int8, vec![0.5, -0.5, -252.0, 258.0]));
}

#[test]
fn bitsandbytes_int8_are_127ths_of_the_scale() {
    let stored = bitsandbytes_int8().with("weight", Dtype::I8, &[2, 2], [127, 0x81, 0, 1]).floats(
        "SCB",
        &[2],
        &[3.0, 127.0],
    );
    assert_eq!(stored.read(), (Scheme::BitsAndBytesInt8, vec![3.0, -3.0, 0.0, 1.0]));
}

#[test]
fn packed_integers_are_lowest_bits_first() {
    let symmetric =
        json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 8});
    let stored = StoredModule::new(groups(symmetric))
        .words("weight_packed", &[1, 2], &[0x7654_3210, 0xfedc_ba98])
        .floats("weight_scale", &[1, 2], &[1.0, 10.0])
        .with("weight_shape", Dtype::I64, &[2], [1_i64, 16].map(i64::to_le_bytes).concat());
    let expected: Vec<f32> =
        (-8..0).map(|code| code as f32).chain((0..8).map(|code| code as f32 * 10.0)).collect();
    assert_eq!(stored.read(), (Scheme::PackedInteger { bits: 4 }, expected.clone()));

    // Zero points lie down the columns: 8 + 1 and 8 - 2.
    let asymmetric =
        json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 8});
    let stored = stored.words("weight_zero_point", &[1, 2], &[0x9, 0x6]).configured(groups(asymmetric));
    let shifted: Vec<f32> =
        (-9..-1).map(|code| code as f32).chain((2..10).map(|code| code as f32 * 10.0)).collect();
    assert_eq!(stored.read().1, shifted);

    // All -1 means that there is no order.
    assert_eq!(stored.clone().words("weight_g_idx", &[16], &[u32::MAX; 16]).read().1, shifted);
    let swapped: Vec<u32> = (0..16).map(|column| 1 - column / 8).collect();
    let ordered = stored.words("weight_g_idx", &[16], &swapped).read().1;
    assert_eq!(ordered[..2], [-60.0, -50.0]);
    assert_eq!(ordered[8..10], [-1.0, 0.0]);
}

#[test]
fn nvfp4_is_scaled_twice() {
    let codes = [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];
    let stored = nvfp4()
        .with("weight_packed", Dtype::U8, &[1, 8], codes)
        .with("weight_scale", Dtype::F8_E4M3, &[1, 1], [0x40]) // 2
        .floats("weight_global_scale", &[1], &[4.0]);
    let half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0].map(|value: f32| value / 2.0);
    let expected: Vec<f32> = half.iter().copied().chain(half.map(|value| -value)).collect();
    assert_eq!(stored.read(), (Scheme::Nvfp4, expected));
}

#[test]
fn four_bit_codes_lie_upper_half_first() {
    let table: Vec<f32> = (0..16).map(|code| code as f32 - 8.0).collect();
    let with = |changes: Value, blocks: &[f32]| {
        let state = state(changes);
        nf4()
            .with("weight", Dtype::U8, &[2, 1], [0x0f, 0x91])
            .floats("weight.absmax", &[blocks.len()], blocks)
            .floats("weight.quant_map", &[16], &table)
            .with(STATE, Dtype::U8, &[state.len()], state)
    };
    let unnested = with(json!({"shape": [2, 2], "blocksize": 3}), &[1.0, 10.0]);
    assert_eq!(unnested.read(), (Scheme::Nf4, vec![-8.0, 7.0, 1.0, -70.0]));

    // Scales are themselves codes: 2 * 0.5 + 100, 3 * 0.25 + 100.
    let inner = json!({"shape": [2, 2], "blocksize": 3, "nested_blocksize": 1, "nested_offset": 100.0});
    let lookup: Vec<f32> = (0..256).map(|code| code as f32).collect();
    let nested = with(inner, &[])
        .with("weight.absmax", Dtype::U8, &[2], [2, 3])
        .floats("weight.nested_absmax", &[2], &[0.5, 0.25])
        .floats("weight.nested_quant_map", &[256], &lookup);
    assert_eq!(nested.read().1, [-808.0, 707.0, 101.0, -705.25]);

    // The bytes may be stored as another format.
    let stored = with(json!({"shape": [2, 2], "blocksize": 3}), &[1.0, 10.0]);
    assert_eq!(stored.with("weight", Dtype::BF16, &[1, 1], [0x0f, 0x91]).read().1, unnested.read().1);
}

#[test]
fn gptq_packs_down_the_input_features() {
    // 8 input features, 8 output features: code = input feature in column 0, 15 less that in the others.
    let words: Vec<u32> = [0x7654_3210].into_iter().chain([0x89ab_cdef; 7]).collect();
    let stored = StoredModule::new(gptq(4, -1))
        .words("qweight", &[1, 8], &words)
        .words("qzeros", &[1, 1], &[0xf000_0072])
        .halves("scales", &[1, 8], &[0.5, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let first = |stored: &StoredModule| stored.read().1[..16].to_vec();
    let weights = |zero_points: [f32; 2]| -> Vec<f32> {
        let of = |zero_point: f32, scale: f32, code: fn(i32) -> i32| {
            (0..8).map(move |input| (code(input) as f32 - zero_point) * scale)
        };
        of(zero_points[0], 0.5, |input| input).chain(of(zero_points[1], 2.0, |input| 15 - input)).collect()
    };
    assert_eq!(first(&stored), weights([3.0, 8.0]));
    assert_eq!(stored.read().0, Scheme::Gptq { bits: 4 });
    // The zero point of the last column is stored as 15: 0, less one.
    assert_eq!(stored.read().1[56..], [15.0, 14.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0]);

    let mut second = gptq(4, -1);
    second["checkpoint_format"] = json!("gptq_v2");
    let second = stored.clone().configured(second);
    assert_eq!(first(&second), weights([2.0, 7.0]));
    assert_eq!(second.read().1[56..], [0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]);
}

#[test]
fn awq_permutes_the_output_features_of_a_word() {
    let stored = StoredModule::new(json!({"quant_method": "awq", "bits": 4, "group_size": 1}))
        .words("qweight", &[2, 1], &[0x7531_6420, 0x0000_000f])
        .words("qzeros", &[2, 1], &[0x1111_1111, 0])
        .halves("scales", &[2, 8], &[[1.0; 8], [0.5; 8]].concat());
    // Of a word 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on.
    let (scheme, weights) = stored.read();
    let expected: Vec<f32> =
        (0..8).flat_map(|row| [row as f32 - 1.0, if row == 0 { 7.5 } else { 0.0 }]).collect();
    assert_eq!((scheme, weights), (Scheme::Awq, expected));
}

// What holds for every scheme.

#[test]
fn reading_takes_all_bytes_once() {
    for stored in all() {
        let (_folder, quantisation) = stored.open();
        let opened = quantisation.open(MODULE).unwrap().unwrap();
        // What has a fixed size is read when the module is opened.
        let fixed = ["quant_map", "quant_state", "global_scale", "weight_shape", "weight_format"];
        let bytes: usize = stored
            .tensors
            .iter()
            .filter(|(ending, _)| !fixed.iter().any(|fixed| ending.contains(fixed)))
            .map(|(_, tensor)| tensor.bytes.len())
            .sum();
        let rows = opened.matrix.out_features();
        assert_eq!(opened.matrix.stored_bytes(0..rows), bytes as u64, "{}", opened.scheme);
    }
}

proptest! {
    #[test]
    fn rows_do_not_depend_on_the_rows_read_with_them(which in 0_usize..9, ends in (0.0..1.0_f64, 0.0..1.0_f64)) {
        let stored = all().swap_remove(which);
        let (_folder, quantisation) = stored.open();
        let opened = quantisation.open(MODULE).unwrap().unwrap();
        let [rows, columns] = opened.matrix.features();
        let whole = read(&*opened.matrix, 0..rows).unwrap();
        let start = (ends.0 * rows as f64) as usize;
        let end = start + 1 + (ends.1 * (rows - start) as f64) as usize;
        let part = read(&*opened.matrix, start..end.min(rows)).unwrap();
        prop_assert_eq!(&part[..], &whole[start * columns..end.min(rows) * columns]);
    }
}

#[test]
fn rows_that_do_not_exist_panic() {
    for stored in all() {
        let (_folder, quantisation) = stored.open();
        let weights = quantisation.open(MODULE).unwrap().unwrap().matrix;
        let last = weights.out_features();
        let beyond = std::panic::AssertUnwindSafe(|| read(&*weights, last - 1..last + 1));
        assert!(std::panic::catch_unwind(beyond).is_err());
    }
}

#[test]
fn what_the_configuration_leaves_out_follows_from_the_tensors() {
    let rows = json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "channel"});
    let packed_rows = packed()
        .configured(groups(rows))
        .without("weight_g_idx")
        .floats("weight_scale", &[40, 1], &scales(40))
        .words("weight_zero_point", &[5, 1], &[0; 5]);
    for stored in [int8(), packed_rows, nvfp4(), bitsandbytes_int8(), nf4(), nested()] {
        assert_eq!(stored.clone().configured(json!(null)).read(), stored.read());
    }
    let fp8 = fp8().floats("weight_scale_inv", &[6, 5], &scales(30)); // rows, and two columns each
    let stated = json!({"quant_method": "fp8", "weight_block_size": [1, 2]});
    assert_eq!(fp8.clone().configured(json!(null)).read(), fp8.configured(stated).read());
}

#[test]
fn ambiguous_blocks() {
    // 10 columns or, the second cut off, 16.
    packed()
        .configured(json!(null))
        .is_malformed("weight_scale", "does not say over which blocks of the 40 x 20 weights");
}

#[test]
fn unquantised_modules_are_not_opened() {
    for config in [json!(null), four_bits(), json!({"quant_method": "mxfp4"})] {
        let stored =
            StoredModule::new(config).floats("weight", &[1, 2], &[1.0, 2.0]).floats("scale", &[1], &[1.0]);
        let (_folder, quantisation) = stored.open();
        assert!(quantisation.modules().next().is_none());
        assert!(quantisation.open(MODULE).unwrap().is_none());
        assert!(quantisation.open("model.norm").unwrap().is_none());
    }
}

// Refusals.

#[test]
fn scales_that_do_not_fit_the_weights() {
    let cases = [
        (
            fp8().floats("weight_scale_inv", &[3, 3], &scales(9)),
            "weight_scale_inv",
            "have the shape [2, 3] for blocks of 4 x 4, but has the shape [3, 3]",
        ),
        (fp8().floats("weight_scale_inv", &[6], &scales(6)), "weight_scale_inv", "but has the shape [6]"),
        (
            fp8().configured(json!(null)).floats("weight_scale_inv", &[2, 3], &scales(6)),
            "weight_scale_inv",
            "does not say over which blocks",
        ),
        (
            fp8().configured(json!(null)).floats("weight_scale_inv", &[0, 3], &[]),
            "weight_scale_inv",
            "does not say over which blocks",
        ),
        (
            fp8().configured(json!(null)).floats("weight_scale_inv", &[7, 1], &scales(7)),
            "weight_scale_inv",
            "does not say over which blocks",
        ),
        (
            fp8().with("weight_scale_inv", Dtype::I32, &[2, 3], [0; 24]),
            "weight_scale_inv",
            "is stored as I32",
        ),
        (
            fp8().with("weight", Dtype::F8_E4M3, &[60], [0; 60]),
            "weight",
            "should be a matrix with at least one entry, but has the shape [60]",
        ),
        (fp8().with("weight", Dtype::F8_E4M3, &[0, 10], []), "weight", "at least one entry"),
        (
            int8().with("weight_zero_point", Dtype::I8, &[6], [0; 6]),
            "weight_zero_point",
            "should have the shape [6, 1]",
        ),
        (int8().words("weight_zero_point", &[6, 1], &[0; 6]), "weight_zero_point", "is stored as I32"),
        (
            nvfp4().with("weight_scale", Dtype::F8_E4M3, &[6, 1], [0; 6]),
            "weight_scale",
            "have the shape [6, 2] for blocks of 1 x 16",
        ),
        (
            nvfp4().floats("weight_global_scale", &[2], &[1.0, 1.0]),
            "weight_global_scale",
            "should have the shape [1]",
        ),
        (bitsandbytes_int8().floats("SCB", &[5], &scales(5)), "SCB", "have the shape [6, 1]"),
        (
            nf4().floats("weight.absmax", &[4], &scales(4)),
            "weight.absmax",
            "should have the shape [5] (35 weights in blocks of 8)",
        ),
        (
            nf4().floats("weight.quant_map", &[15], &scales(15)),
            "weight.quant_map",
            "should have the shape [16]",
        ),
        (
            nested().floats("weight.nested_absmax", &[2], &scales(2)),
            "weight.nested_absmax",
            "should have the shape [3]",
        ),
        (nested().floats("weight.absmax", &[5], &scales(5)), "weight.absmax", "should be stored as U8"),
        (gptq3().halves("scales", &[3, 32], &scales(96)), "scales", "should have the shape [2, 32]"),
        (gptq3().words("qzeros", &[2, 4], &[0; 8]), "qzeros", "should have the shape [2, 3]"),
        (gptq3().words("g_idx", &[32], &[0; 32]), "qweight", "has 6 words for 32 input features"),
        (gptq3().with("g_idx", Dtype::I64, &[64], [0; 512]), "g_idx", "should be stored as I32"),
        (gptq3().with("qweight", Dtype::I16, &[6, 32], [0; 384]), "qweight", "should be stored as I32"),
        (gptq3().configured(gptq(3, 0)), "scales", "`group_size` 0"),
        (gptq3().configured(gptq(3, i64::MIN)), "scales", "`group_size` -9223372036854775808"),
        (gptq3().configured(gptq(3, 1)), "scales", "should have the shape [64, 32]"),
        (gptq3().configured(gptq(4, 32)), "qweight", "codes of `bits` 4"),
        (gptq3().configured(gptq(0, 32)).without("g_idx"), "qweight", "codes of `bits` 0"),
        (awq().halves("scales", &[2, 16], &scales(32)), "scales", "should have the shape [3, 16]"),
        (awq().words("qzeros", &[3, 1], &[0; 3]), "qzeros", "should have the shape [3, 2]"),
    ];
    for (stored, ending, reason) in cases {
        stored.is_malformed(ending, reason);
    }
}

#[test]
fn scales_that_are_not_finite() {
    let mut infinite = scales(6);
    infinite[4] = f32::INFINITY;
    let nan = f32::NAN;
    let cases = [
        (fp8().floats("weight_scale_inv", &[2, 3], &infinite), "weight_scale_inv", "holds inf at entry 4"),
        (
            fp8().with("weight_scale_inv", Dtype::U8, &[2, 3], [255; 6]),
            "weight_scale_inv",
            "holds NaN at entry 0",
        ),
        (bitsandbytes_int8().floats("SCB", &[6], &infinite), "SCB", "holds inf at entry 4"),
        (nvfp4().floats("weight_global_scale", &[1], &[nan]), "weight_global_scale", "holds NaN"),
        (nvfp4().floats("weight_global_scale", &[1], &[0.0]), "weight_global_scale", "is 0"),
        (nf4().floats("weight.absmax", &[5], &[nan; 5]), "weight.absmax", "holds NaN at entry 0"),
        (nf4().floats("weight.quant_map", &[16], &[nan; 16]), "weight.quant_map", "holds NaN"),
        (
            nested().floats("weight.nested_absmax", &[3], &[1.0, nan, 1.0]),
            "weight.nested_absmax",
            "holds NaN at entry 1",
        ),
        (gptq3().halves("scales", &[2, 32], &[nan; 64]), "scales", "holds NaN at entry 0"),
        (awq().halves("scales", &[3, 16], &[f32::INFINITY; 48]), "scales", "holds inf at entry 0"),
    ];
    for (stored, ending, reason) in cases {
        stored.is_malformed(ending, reason);
    }
}

#[test]
fn groups_that_do_not_exist() {
    let last = |word: u32, of: usize| [vec![0; of - 1], vec![word]].concat();
    for (word, found) in [(2, "group 2"), (u32::MAX, "group -1"), (i32::MIN as u32, "group -2147483648")] {
        let reason = format!("puts input feature 63 into {found}; expected 0 to 1");
        gptq3().words("g_idx", &[64], &last(word, 64)).is_malformed("g_idx", &reason);
        let reason = format!("puts input feature 19 into {found}; expected 0 to 1");
        packed().words("weight_g_idx", &[20], &last(word, 20)).is_malformed("weight_g_idx", &reason);
    }
}

#[test]
fn packed_integers_whose_shape_is_wrong() {
    let shape = |sizes: [i64; 2]| {
        packed().with("weight_shape", Dtype::I64, &[2], sizes.map(i64::to_le_bytes).concat())
    };
    for sizes in [[39, 20], [40, 0], [40, -20], [40, i64::MAX], [i64::MIN, 20]] {
        shape(sizes).is_malformed("weight_shape", "expected 40 rows, and columns that fit 3 words");
    }
    packed()
        .words("weight_zero_point", &[6, 2], &[0; 12])
        .is_malformed("weight_zero_point", "should have the shape [5, 2]");
    packed()
        .with("weight_shape", Dtype::I64, &[1], [0; 8])
        .is_malformed("weight_shape", "should have the shape [2]");
    packed()
        .with("weight_shape", Dtype::U8, &[2], [40, 20])
        .is_malformed("weight_shape", "should be stored as I64");
    packed().without("weight_shape").is_malformed("weight_shape", "is missing");
    // 96 bits hold 32 to 47 codes of 2, 20 columns of 4 bits take 80.
    shape([40, 70]).is_not_read("packed integers of [1] bits with zero points");
    packed()
        .configured(json!(null))
        .with("weight_shape", Dtype::I64, &[2], [40_i64, 2].map(i64::to_le_bytes).concat())
        .is_malformed("weight_packed", "expected one number of bits");
}

#[test]
fn malformed_states_of_bitsandbytes() {
    let with = |text: Vec<u8>| nf4().with(STATE, Dtype::U8, &[text.len()], text);
    let cases = [
        (with(b"{".to_vec()), STATE, "parameters as JSON: EOF"),
        (with(b"[]".to_vec()), STATE, "parameters as JSON"),
        (with(vec![0xff; 8]), STATE, "parameters as JSON"),
        (with(vec![b' '; 70_000]), STATE, "should have at most 65536 bytes"),
        (with(state(json!({"blocksize": 0}))), STATE, "`blocksize` is 0"),
        (with(state(json!({"blocksize": -8}))), STATE, "invalid value: integer `-8`"),
        (with(state(json!({"quant_type": "fp4"}))), STATE, "`quant_type` is `fp4`; expected `nf4`"),
        (with(state(json!({"shape": [5]}))), STATE, "invalid length 1"),
        (with(state(json!({"shape": null}))), STATE, "invalid type: null"),
        (
            with(state(json!({"shape": [5, 9]}))),
            "weight",
            "has 18 bytes; expected half as many as there are entries in the `shape` [5, 9]",
        ),
        (with(state(json!({"shape": [1_u64 << 40, 1_u64 << 40]}))), "weight", "has 18 bytes"),
        (with(state(json!({"shape": [0, 7]}))), "weight", "has 18 bytes"),
        (with(state(json!({"nested_blocksize": 2}))), STATE, "all or none of `nested_blocksize`"),
        (nested().without("weight.nested_absmax"), STATE, "all or none of `nested_blocksize`"),
        (nested().without("weight.nested_quant_map"), "weight.nested_quant_map", "is missing"),
        (nf4().without(STATE), "weight.absmax", "has none or both"),
        (
            nf4().with("weight.quant_state.bitsandbytes__fp4", Dtype::U8, &[1], [0]),
            "weight.absmax",
            "none or both",
        ),
        (nf4().without("weight"), "weight", "is missing"),
    ];
    for (stored, ending, reason) in cases {
        stored.is_malformed(ending, reason);
    }
    let state = state(json!({"nested_blocksize": 0, "nested_offset": 0.0}));
    nested().with(STATE, Dtype::U8, &[state.len()], state).is_malformed(STATE, "`nested_blocksize` is 0");
    let state = self::state(json!({"nested_blocksize": 2, "nested_offset": 1e300}));
    nested().with(STATE, Dtype::U8, &[state.len()], state).is_malformed(STATE, "`nested_offset` is inf");
}

#[test]
fn old_orders_of_bitsandbytes() {
    bitsandbytes_int8()
        .with("weight_format", Dtype::U8, &[], [2])
        .is_malformed("weight_format", "is [2]; expected [0]");
}

#[test]
fn weights_and_scales_that_do_not_belong_together() {
    let unquantised = StoredModule::new(json!(null)).floats("weight", &[1, 2], &[1.0, 2.0]);
    for scales in ["weight_scale", "weight_scale_inv", "qscale_weight", "SCB"] {
        unquantised
            .clone()
            .floats(scales, &[1], &[1.0])
            .is_malformed(scales, "but the weights beside it are stored as F32");
    }
    fp8().floats("weight_scale", &[1], &[1.0]).is_malformed("weight_scale", "is a second set of scales");
    fp8().without("weight_scale_inv").is_not_read("is stored as F8_E4M3 without a ");
    int8().without("weight_scale").is_not_read("is stored as I8 without a ");
}

#[test]
fn configurations_that_the_tensors_contradict() {
    let of_another: [(StoredModule, Value, &str); 10] = [
        (fp8(), four_bits(), "FP8 (E4M3), which quantization_config in config.json (bitsandbytes)"),
        (int8(), json!({"quant_method": "fp8"}), "compressed-tensors int8, which"),
        (int8(), groups(json!({"num_bits": 4, "type": "int"})), "compressed-tensors int8, which"),
        (packed(), gptq(4, 32), "packed integers of compressed-tensors, which"),
        (
            packed(),
            groups(json!({"num_bits": 4, "type": "int"})),
            "packed integers of [4] bits with zero points",
        ),
        (nvfp4(), four_bits(), "NVFP4, which"),
        (bitsandbytes_int8(), four_bits(), "bitsandbytes int8, which"),
        (nf4(), json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "bitsandbytes nf4, which"),
        (gptq3(), four_bits(), "tensors of GPTQ or AWQ, which"),
        (awq(), json!(null), "no quantization_config that says which"),
    ];
    for (stored, config, reason) in of_another {
        stored.configured(config).is_not_read(reason);
    }
    gptq3().configured(awq_config()).is_malformed("scales", "should have the shape");
    awq().configured(gptq(4, 16)).is_malformed("scales", "should have the shape");
    let mut skipped = fp8();
    skipped.config["modules_to_not_convert"] = json!(["lm_head", MODULE]);
    skipped.is_not_read("lists it among those that are not");
}

#[test]
fn methods_that_are_not_read_are_named() {
    for method in ["aqlm", "hqq", "torchao", "quip", "vptq", "eetq", "mxfp4", "bitnet", "quark", "auto-round"]
    {
        for stored in [fp8(), int8(), packed(), nf4(), gptq3()] {
            let reason = format!("is quantised by `{method}` (quantization_config in config.json)");
            stored.configured(json!({"quant_method": method})).is_not_read(&reason);
        }
    }
    let by_tensors = [
        ("codebooks", "AQLM"),
        ("W_q", "HQQ"),
        ("Qidxs", "QuIP#"),
        ("centroids.weight", "VPTQ"),
        ("weight._data", "quanto"),
        ("_weight_qdata", "torchao"),
        ("dense_weights", "SpQR"),
        ("trellis", "EXL3"),
        ("q_weight", "EXL2"),
        ("B", "Marlin"),
    ];
    for (ending, by) in by_tensors {
        let stored = StoredModule::new(json!(null)).with(ending, Dtype::U8, &[1], [0]);
        stored
            .is_not_read(&format!("is quantised by {by}; expected weights stored as F16, BF16, F32 or F64"));
        stored.is_not_read("dequantised first");
    }
    for dtype in [Dtype::U8, Dtype::BOOL] {
        StoredModule::new(json!(null))
            .with("weight", dtype, &[1, 1], [0])
            .is_not_read(&format!("is stored as {dtype}"));
    }
    let formats = [("marlin", gptq3()), ("gptq_p", gptq3()), ("gemv", awq()), ("gemv_fast", awq())];
    for (format, mut stored) in formats {
        stored.config["version"] = json!(format);
        stored.config["checkpoint_format"] = json!(format);
        stored.is_not_read(&format!("is packed in the format `{format}`"));
    }
    nvfp4().without("weight_global_scale").is_malformed("weight_scale", "should be stored as U8");
    let mut awq = fp8();
    awq.config = json!({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"});
    awq.is_not_read("is quantised by `modelopt (quant_algo W4A8_AWQ)`");
    let mut quark = fp8();
    quark.config = json!({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int4"}}});
    quark.is_not_read("is quantised by `quark (int4)`");
    let mut sparse = packed();
    sparse.config["sparsity_config"] = json!({"format": "sparse-24-bitmask"});
    sparse.is_not_read("sparse (sparse-24-bitmask)");
    let mut rotated = int8();
    rotated.config["transform_config"] = json!({"config_groups": {"R1": {}}});
    rotated.is_not_read("rotated weights (transform_config)");
}
