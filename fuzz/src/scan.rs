//! A scan of two tiny models. An input is what `arbitrary` makes of it.

use alps::Error;
use alps::checkpoint::{Location, TransferLimits};
use alps::scan::{FinishedLayers, Form, ModelPair, ModelPath, Options, Scores};
use alps::simd::Instructions;
use alps::statistics::STATISTICS;
use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Map, Value, json};

use super::store::Files;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Dtype {
    F16,
    Bf16,
    F32,
    F64,
    Other,
}

impl Dtype {
    /// The name in a header, and the bytes of a number.
    fn stored(self) -> (&'static str, usize) {
        match self {
            Self::F16 => ("F16", 2),
            Self::Bf16 => ("BF16", 2),
            Self::F32 => ("F32", 4),
            Self::F64 => ("F64", 8),
            Self::Other => ("F8_E5M2", 1),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Family {
    /// A tensor each for queries, keys and values.
    Llama,
    /// One tensor, [in, out].
    Gpt2,
    /// One tensor, the rows of each head together.
    GptNeox,
}

/// A change of one file.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Damage {
    Config { key: u8, value: i8 },
    ConfigByte { place: u16, byte: u8 },
    HeaderByte { place: u16, byte: u8 },
    Shorter { by: u8 },
    Renamed { tensor: u8 },
    Reshaped { tensor: u8 },
}

#[derive(Arbitrary, Debug)]
struct Plan<'a> {
    family: Family,
    layers: u8,
    groups: u8,
    heads_per_group: u8,
    head_size: u8,
    hidden_size: u8,
    dtypes: [Dtype; 2],
    /// Whether the bytes of the weights are as they come, NaN and infinity among them.
    raw: [bool; 2],
    /// Whether the tuned weights are those of the base, but for some.
    alike: bool,
    sharded: [bool; 2],
    product: bool,
    /// Large if the statistic that needs a sort is computed, which takes long.
    sorted: u8,
    temperature: i8,
    piece: u16,
    memory: u16,
    damage: [Option<Damage>; 2],
    weights: &'a [u8],
}

/// One tensor of a model.
struct Tensor {
    name: String,
    shape: [usize; 2],
}

impl Plan<'_> {
    fn sizes(&self) -> [usize; 5] {
        let size = |byte: u8, most: u8| usize::from(byte % most) + 1;
        let layers = size(self.layers, 3);
        // A scan takes time for each head: up to three of everything, but not of all at once.
        let groups = size(self.groups, if layers == 3 { 2 } else { 3 });
        let most = if layers * groups > 4 { 1 } else { 3 };
        let per_group =
            if matches!(self.family, Family::Llama) { size(self.heads_per_group, most) } else { 1 };
        let head_size = size(self.head_size, 6);
        let hidden = if matches!(self.family, Family::Llama) {
            size(self.hidden_size, 70)
        } else {
            groups * head_size
        };
        [layers, groups, groups * per_group, head_size, hidden]
    }

    fn config(&self) -> Value {
        let [layers, groups, heads, head_size, hidden] = self.sizes();
        match self.family {
            Family::Llama => json!({
                "model_type": "llama", "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_key_value_heads": groups, "head_dim": head_size, "hidden_size": hidden,
            }),
            Family::Gpt2 => {
                json!({"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": hidden})
            }
            Family::GptNeox => json!({
                "model_type": "gpt_neox", "num_hidden_layers": layers, "num_attention_heads": heads,
                "hidden_size": hidden,
            }),
        }
    }

    fn tensors(&self) -> Vec<Tensor> {
        let [layers, groups, heads, head_size, hidden] = self.sizes();
        let (query, key_value) = (heads * head_size, groups * head_size);
        let of_layer = |layer: usize| match self.family {
            Family::Llama => [("q", query), ("k", key_value), ("v", key_value)]
                .map(|(name, rows)| Tensor {
                    name: format!("model.layers.{layer}.self_attn.{name}_proj.weight"),
                    shape: [rows, hidden],
                })
                .into_iter()
                .collect(),
            Family::Gpt2 => {
                vec![Tensor { name: format!("h.{layer}.attn.c_attn.weight"), shape: [hidden, 3 * query] }]
            }
            Family::GptNeox => vec![Tensor {
                name: format!("gpt_neox.layers.{layer}.attention.query_key_value.weight"),
                shape: [3 * query, hidden],
            }],
        };
        (0..layers).flat_map(of_layer).collect()
    }

    /// The files of the base, number 0, or the tuned model, number 1.
    fn files(&self, model: usize) -> Files {
        let (mut config, mut tensors) = (self.config(), self.tensors());
        let damage = self.damage[model];
        match damage {
            Some(Damage::Config { key, value }) => {
                let config = config.as_object_mut().expect("an object");
                let name = config.keys().nth(usize::from(key) % config.len()).expect("a key").clone();
                config.insert(name, value.into());
            }
            Some(Damage::Renamed { tensor }) => {
                let count = tensors.len();
                tensors[usize::from(tensor) % count].name.push('x');
            }
            Some(Damage::Reshaped { tensor }) => {
                let count = tensors.len();
                tensors[usize::from(tensor) % count].shape[0] += 1;
            }
            _ => {}
        }
        let mut config = config.to_string().into_bytes();
        if let Some(Damage::ConfigByte { place, byte }) = damage {
            let length = config.len();
            config[usize::from(place) % length] = byte;
        }
        let mut files = Files::default().with("m/config.json", &config);
        let half = if self.sharded[model] { tensors.len() / 2 } else { 0 };
        let (one, other) = tensors.split_at(half);
        if !self.sharded[model] {
            return files.with("m/model.safetensors", &self.file(model, other, 0));
        }
        let mut weight_map = Map::new();
        for (shard, (part, first)) in [(one, 0), (other, half)].into_iter().enumerate() {
            let name = format!("{shard}.safetensors");
            weight_map.extend(part.iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
            files = files.with(&format!("m/{name}"), &self.file(model, part, first));
        }
        files.with("m/model.safetensors.index.json", json!({"weight_map": weight_map}).to_string().as_bytes())
    }

    /// A safetensors file with these tensors, of which the first is number `first` of the model.
    fn file(&self, model: usize, tensors: &[Tensor], first: usize) -> Vec<u8> {
        let (dtype, width) = self.dtypes[model].stored();
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (number, Tensor { name, shape }) in tensors.iter().enumerate() {
            let (start, entries) = (data.len(), shape[0] * shape[1]);
            for entry in 0..entries {
                self.write_weight(model, (first + number) * 1000 + entry, width, &mut data);
            }
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), entry);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        if let Some(Damage::HeaderByte { place, byte }) = self.damage[model] {
            let length = header.len();
            header[usize::from(place) % length] = byte;
        }
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(data);
        if let Some(Damage::Shorter { by }) = self.damage[model] {
            file.truncate(file.len().saturating_sub(by.into()));
        }
        file
    }

    fn write_weight(&self, model: usize, number: usize, width: usize, data: &mut Vec<u8>) {
        let byte = |at: usize| self.weights.get(at % self.weights.len().max(1)).copied().unwrap_or(0);
        let source = if self.alike && byte(number) != 0xff { 0 } else { model };
        if self.raw[model] {
            data.extend((0..width).map(|part| byte(source * 13 + number * width + part)));
            return;
        }
        // A small weight: a byte, over 256, with the format's bits.
        let weight = f32::from(byte(source * 13 + number) as i8) / 256.0;
        match self.dtypes[model] {
            Dtype::F64 => data.extend(f64::from(weight).to_le_bytes()),
            Dtype::F32 => data.extend(weight.to_le_bytes()),
            Dtype::Bf16 => data.extend(&weight.to_le_bytes()[2..]), // a byte fits into eight bits
            Dtype::F16 => data.extend((half_of(weight)).to_le_bytes()),
            Dtype::Other => data.push(byte(source * 13 + number) & 0x7b),
        }
    }

    fn options(&self) -> Options {
        Options {
            form: if self.product { Form::Product } else { Form::Qkv },
            temperature: 10f64.powi(self.temperature.into()),
            sorted: self.sorted > 250,
            threads: Some(1),
            ..Options::default()
        }
    }
}

/// The bits of an F16 of a number that it holds exactly: 0, or from 2^-8 to 1/2.
fn half_of(number: f32) -> u16 {
    let bits = number.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    if number == 0.0 {
        return sign;
    }
    sign | ((((bits >> 23) & 0xff) as u16 + 15 - 127) << 10) | ((bits >> 13) & 0x3ff) as u16
}

/// Scans, by one thread and by three, by other instructions, in other pieces and with other bounds of memory.
pub fn run(input: &[u8]) -> bool {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(input)) else { return false };
    let models = [0, 1].map(|model| ModelPath {
        checkpoint: Location::in_store("m", plan.files(model).into_store()),
        adapter: None,
    });
    let pair = match ModelPair::open(&models[0], &models[1], None) {
        Ok(pair) => pair,
        Err(error) => {
            let is_damaged = plan.damage.iter().any(Option::is_some)
                || plan.dtypes.iter().any(|dtype| matches!(dtype, Dtype::Other));
            assert!(is_damaged, "a whole model is refused: {error}");
            return false;
        }
    };
    let options = plan.options();
    let scores = check_scores(&pair, &options);
    let transfers =
        TransferLimits { memory: plan.memory.into(), connections: 1 + usize::from(plan.memory % 3) };
    let mut others = Instructions::available().into_iter().filter(|set| set.fuses());
    let instructions = others.nth(usize::from(plan.piece % 2)).unwrap_or(options.instructions);
    let piece = usize::from(plan.piece).max(1);
    let other = Options { threads: Some(3), piece, transfers, instructions, ..options.clone() };
    same_scores(&scores, &check_scores(&pair, &other));
    if let Ok(scores) = &scores
        && !(-6..=6).contains(&plan.temperature)
    {
        panic!("the temperature {} is not refused: {scores:?}", options.temperature);
    }
    scores.is_ok()
}

/// Scans, and checks that every value is allowed.
pub(crate) fn check_scores(pair: &ModelPair, options: &Options) -> Result<Scores, Error> {
    let scores = pair.scan(options, None, &FinishedLayers::default(), &Default::default())?;
    let width = scores.geometry.width();
    for (name, values) in &scores.statistics {
        assert_eq!(values.len(), width * scores.geometry.layers.len(), "{name}");
        let statistic =
            STATISTICS.iter().find(|statistic| statistic.name == *name).expect("a known statistic");
        for (cell, value) in values.iter().enumerate() {
            let has_head = cell % width < scores.geometry.layers[cell / width].query_heads;
            assert!(
                if has_head { statistic.allows(*value) } else { value.is_nan() },
                "{name} of {cell} is {value}"
            );
            assert!(
                value.is_nan() || *value >= 0.0 || ["cosine", "wasserstein_z"].contains(name),
                "{name} of {cell} is {value}"
            );
        }
    }
    Ok(scores)
}

/// Checks that two scans gave the same, to the bit, or failed in the same way.
pub(crate) fn same_scores(one: &Result<Scores, Error>, other: &Result<Scores, Error>) {
    match (one, other) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one.bytes, other.bytes);
            assert_eq!(one.geometry, other.geometry);
            for ((name, values), (_, others)) in one.statistics.iter().zip(&other.statistics) {
                let same = |(one, other): (&f64, &f64)| one.to_bits() == other.to_bits();
                assert!(
                    values.iter().zip(others).all(same),
                    "{name}: {values:?} by one thread, {others:?} by three"
                );
            }
        }
        (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
        (one, other) => panic!("by one thread {one:?}, by three {other:?}"),
    }
}
