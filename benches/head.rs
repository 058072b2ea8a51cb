//! Times what one head costs once its bytes are in memory: heads shaped like those of Llama-3.1-8B.

use std::hint::black_box;

use alps::dtype::Dtype;
use alps::statistics::{MatrixPair, Part, PartSums, Product, Stored, measure};
use alps::vector::Instructions;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const HEAD_SIZE: usize = 128;
const HIDDEN_SIZE: usize = 4096;

/// A bf16 matrix, and the same moved by a few hundredths of itself.
fn matrix(seed: u64) -> (Vec<u8>, Vec<u8>) {
    let mut state = seed;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let bf16 = |weight: f32| ((weight.to_bits() >> 16) as u16).to_le_bytes();
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for _ in 0..HEAD_SIZE * HIDDEN_SIZE {
        let weight = noise() * 0.08;
        base.extend(bf16(weight));
        tuned.extend(bf16(weight + noise() * 2e-3));
    }
    (base, tuned)
}

fn heads(criterion: &mut Criterion) {
    let matrices = [1, 2, 3].map(matrix);
    let stored = |bytes| Stored { dtype: Dtype::BF16, bytes };
    let pairs = matrices.each_ref().map(|(base, tuned)| (stored(base), stored(tuned)));
    let parts = pairs.map(|(base, tuned)| Part::Stored { base, tuned });
    let bytes = 2 * matrices[0].0.len() as u64;

    let mut group = criterion.benchmark_group("head");
    for instructions in Instructions::available() {
        if matches!(instructions, Instructions::Portable) && cfg!(target_arch = "x86_64") {
            continue; // emulates fused multiply-add
        }
        let mut sums = [(); 3].map(|()| PartSums::new(1.0, instructions));
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(format!("sums of a matrix, {}", instructions.name()), |bencher| {
            bencher.iter(|| {
                sums[0].clear();
                black_box(sums[0].add_up_to(parts[0].entries(), &parts[0]))
            });
        });
        for (sums, part) in sums.iter_mut().zip(&parts) {
            sums.clear();
            let _ = sums.add_up_to(part.entries(), part);
        }
        let [q, k, v] = &sums;
        let head = [(parts[0], q), (parts[1], k), (parts[2], v)];
        group.throughput(Throughput::Bytes(3 * bytes));
        group.bench_function(format!("statistics of three sums, {}", instructions.name()), |bencher| {
            bencher.iter(|| black_box(measure(&head, false)));
        });
    }

    let [query, key, value] = pairs.map(|(base, tuned)| MatrixPair { base, tuned, columns: HIDDEN_SIZE });
    let mut product = Product::new(Instructions::best());
    group.sample_size(10);
    group.bench_function("product of a group", |bencher| {
        bencher.iter(|| black_box(product.load_group(&key, &value).is_ok()));
    });
    group.bench_function("product of a head", |bencher| {
        bencher.iter(|| black_box(product.load_head(&query).is_ok()));
    });
}

criterion_group!(benches, heads);
criterion_main!(benches);
