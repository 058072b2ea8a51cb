//! Times the kernels of the core on weights in memory: a matrix of one head of Llama-3.1-8B, changed a little.
//!
//! The difference between two lines of a group is the cost of a format, a range of weights or an instruction set.

use std::hint::black_box;
use std::time::Duration;

use alps::number_format::Dtype;
use alps::simd::Instructions;
use alps::statistics::{
    GroupMeasurement, HeadMatrix, HeadProduct, KeyValueProduct, StoredWeights, VectorSums, WeightVector,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

const HEAD_SIZE: usize = 128;
const HIDDEN_SIZE: usize = 4096;
const ENTRIES: usize = HEAD_SIZE * HIDDEN_SIZE;

/// Query heads of a key/value group.
const HEADS: usize = 4;

/// A matrix in both checkpoints.
struct Weights {
    dtype: Dtype,
    base: Vec<u8>,
    tuned: Vec<u8>,
}

impl Weights {
    /// Uniform weights of at most `largest`, changed by at most `change`.
    fn new(dtype: Dtype, largest: f64, change: f64, seed: u64) -> Self {
        let mut state = seed;
        let mut noise = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1 << 23) as f64 - 1.0
        };
        let encode = |weight: f64, bytes: &mut Vec<u8>| match dtype {
            Dtype::BF16 => bytes.extend(half::bf16::from_f64(weight).to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f64(weight).to_le_bytes()),
            Dtype::F32 => bytes.extend((weight as f32).to_le_bytes()),
            Dtype::F64 => bytes.extend(weight.to_le_bytes()),
        };
        let (mut base, mut tuned) = (Vec::new(), Vec::new());
        for _ in 0..ENTRIES {
            let weight = noise() * largest;
            encode(weight, &mut base);
            encode(weight + noise() * change, &mut tuned);
        }
        Self { dtype, base, tuned }
    }

    fn small(dtype: Dtype, seed: u64) -> Self {
        Self::new(dtype, 0.04, 1e-3, seed)
    }

    fn matrix(&self) -> HeadMatrix<'_> {
        let stored = |bytes| StoredWeights { dtype: self.dtype, bytes };
        HeadMatrix { base: stored(&self.base), tuned: stored(&self.tuned), columns: HIDDEN_SIZE }
    }

    fn vector(&self) -> WeightVector<'_> {
        self.matrix().weight_vector()
    }
}

fn group<'c>(criterion: &'c mut Criterion, name: &str, entries: usize) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(entries as u64));
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(1500));
    group.sample_size(20);
    group
}

fn time_sums(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    weights: &Weights,
    instructions: Instructions,
) {
    let mut sums = VectorSums::new(1.0, instructions);
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            sums.clear();
            black_box(sums.add_up_to(ENTRIES, &weights.vector()))
        });
    });
}

/// The set that `ALPS_INSTRUCTIONS` names, or the widest of this machine.
fn instructions() -> Instructions {
    Instructions::from_environment().unwrap_or_else(|error| panic!("{error}"))
}

/// Times the same weights in every format, which shows the cost of decoding.
fn decode(criterion: &mut Criterion) {
    let mut group = group(criterion, "decode", ENTRIES);
    for (name, dtype) in
        [("bf16", Dtype::BF16), ("f16", Dtype::F16), ("f32", Dtype::F32), ("f64", Dtype::F64)]
    {
        time_sums(&mut group, name, &Weights::small(dtype, 1), instructions());
    }
}

/// Times larger and larger weights and changes, which take more and more terms.
fn exponential(criterion: &mut Criterion) {
    let mut group = group(criterion, "exponential", ENTRIES);
    for (largest, change) in
        [(0.03, 1e-3), (0.1, 1e-3), (0.1, 6e-3), (0.1, 0.1), (1.0, 0.1), (4.0, 0.1), (4.0, 0.9)]
    {
        let weights = Weights::new(Dtype::BF16, largest, change, 1);
        time_sums(&mut group, &format!("{largest} moved by {change}"), &weights, instructions());
    }
}

fn sums(criterion: &mut Criterion) {
    let weights = Weights::small(Dtype::BF16, 1);
    let mut group = group(criterion, "sums", ENTRIES);
    for instructions in Instructions::available() {
        time_sums(&mut group, instructions.name(), &weights, instructions);
    }
}

/// Times the statistics of heads whose sums are known, nearly all of which is the area between the running sums.
fn transport(criterion: &mut Criterion) {
    let matrices = [1, 2, 3].map(|seed| Weights::small(Dtype::BF16, seed));
    let mut group = group(criterion, "transport", (HEADS + 2) * ENTRIES);
    for instructions in Instructions::available() {
        let sums = matrices.each_ref().map(|matrix| {
            let mut sums = VectorSums::new(1.0, instructions);
            let _ = sums.add_up_to(ENTRIES, &matrix.vector());
            sums
        });
        let [query, key, value] = &matrices;
        group.bench_function(instructions.name(), |bencher| {
            bencher.iter(|| {
                let shared = vec![(key.vector(), &sums[1]), (value.vector(), &sums[2])];
                let mut group = GroupMeasurement::new(shared, 1.0, false, instructions);
                for _ in 0..HEADS {
                    black_box(group.add(query.vector(), &sums[0]).is_ok());
                }
                black_box(group.finish())
            });
        });
    }
}

fn product(criterion: &mut Criterion) {
    let [query, key, value] = [1, 2, 3].map(|seed| Weights::small(Dtype::BF16, seed));
    let instructions = instructions();
    let mut group = group(criterion, "product", ENTRIES);
    group.sample_size(10);
    let (mut shared, mut product) = (KeyValueProduct::default(), HeadProduct::new(instructions));
    let mut multiply_group = || shared.compute(&key.matrix(), &value.matrix(), instructions).is_ok();
    group.bench_function("of a group", |bencher| bencher.iter(|| black_box(multiply_group())));
    assert!(multiply_group(), "the weights are finite");
    group.bench_function("of a head", |bencher| {
        bencher.iter(|| black_box(product.compute(&query.matrix(), &shared).is_ok()));
    });
}

criterion_group!(kernels, decode, exponential, sums, transport, product);
criterion_main!(kernels);
