//! Scores every attention head of two checkpoints.
//!
//! # How a scan works
//!
//! 1. Both models are opened (`opened_model`), their tensors checked (`tensor_checks`) and their layers, heads and
//!    sizes compared (`compatibility`).
//! 2. The threads take one key/value group after the other, in the order of the layers, and share the heads of the last
//!    ones (`schedule`). The key and value matrices of a group are read and summed once for all query heads that share
//!    them (`group`, with `matrix_pair` and `head_rows`).
//! 3. The measurements of each head become one number for each statistic.
//!
//! Each thread holds the bytes of a few matrices, whatever the size of the model: it uses the memory of one group again
//! for the next, and maps at most `MAPPED_PER_THREAD` bytes (`checkpoint/range.rs`).

mod compatibility;
mod group;
mod head_rows;
mod matrix_pair;
mod opened_model;
mod options;
mod schedule;
mod tensor_checks;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPoolBuilder;

pub(crate) use self::compatibility::check_pair;
use self::compatibility::check_product;
use self::group::{HeadMeasurer, ThreadMemory};
pub(crate) use self::head_rows::StoredNumbers;
pub use self::opened_model::{ModelPath, OpenedModel, Provenance};
pub use self::options::{Form, Options};
use self::schedule::Schedule;
use crate::attention::Geometry;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::statistics::{HeadMeasurements, STATISTICS, Statistic};

/// The statistics of every head.
#[derive(Clone, Debug)]
pub struct Scores {
    /// The sizes of the heads, and of the layers that have them.
    pub geometry: Geometry,
    /// Each statistic with its values, [layers, heads of the layer that has most] in row-major order; NaN where a
    /// layer has no such head.
    pub statistics: Vec<(&'static str, Vec<f64>)>,
    /// Bytes of weights read, from both models.
    pub bytes: u64,
    /// What the base weights were read from.
    pub base: Provenance,
    /// What the tuned weights were read from.
    pub tuned: Provenance,
}

/// Compares two checkpoints of one model.
///
/// # Errors
///
/// As of [`OpenedModel::open`]; [`Error::Pair`] if the two are of different models or sizes; [`Error::Model`] if the
/// form makes no sense for the model; [`Error::Weight`] if a weight is NaN or infinite, [`Error::Weights`] if weights
/// are too large; [`Error::Truncated`] or [`Error::Changed`] if a file becomes shorter; [`Error::Argument`] if an
/// option is out of its domain; [`Error::Interrupted`] if the caller cancels the scan.
pub fn scan(
    base: impl Into<ModelPath>,
    tuned: impl Into<ModelPath>,
    options: &Options,
    progress: &Progress,
) -> Result<Scores> {
    let threads = options.checked_threads()?;
    let base = OpenedModel::open(&base.into(), options.component)?;
    let tuned = OpenedModel::open(&tuned.into(), options.component)?;
    check_pair(&base, &tuned)?;
    if options.form == Form::Product {
        check_product(&base)?;
    }
    let bytes = base.bytes() + tuned.bytes();
    progress.total.store(bytes, Ordering::Relaxed);
    let measured = measure_heads(&base, &tuned, options, threads, progress)?;
    Ok(Scores {
        geometry: base.geometry().clone(),
        statistics: tabulate(&tuned, options, &measured)?,
        bytes,
        base: base.provenance(),
        tuned: tuned.provenance(),
    })
}

/// Measures every head, [layers, heads of the layer that has most] in row-major order.
///
/// Of several failures that of the first group and head is returned, whichever thread fails first.
fn measure_heads(
    base: &OpenedModel,
    tuned: &OpenedModel,
    options: &Options,
    threads: usize,
    progress: &Progress,
) -> Result<Vec<Option<HeadMeasurements>>> {
    let Geometry { layers, .. } = base.geometry();
    let groups: Vec<(usize, usize)> = (layers.iter().enumerate())
        .flat_map(|(layer_index, sizes)| (0..sizes.key_value_heads).map(move |group| (layer_index, group)))
        .collect();
    let measurer = HeadMeasurer::new(base, tuned, options, threads, progress);
    let schedule = Schedule::new(groups.len());
    let first_failed = AtomicUsize::new(usize::MAX);

    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::Argument(format!("{threads} threads cannot be started: {error}")))?;
    let results = pool.broadcast(|_| {
        let mut memory = ThreadMemory::new(options);
        let mut results = Vec::new();
        let mut failures = Vec::new();
        let mut fail = |group: usize, head: usize, error: Error| {
            first_failed.fetch_min(group, Ordering::Relaxed);
            failures.push(((group, head), error));
        };
        loop {
            let group = if let Some(claim) = schedule.claim() {
                if first_failed.load(Ordering::Relaxed) < claim.position {
                    break;
                }
                let (layer_index, index) = groups[claim.position];
                match measurer.prepare(layer_index, index, &mut memory) {
                    Ok(group) => {
                        let heads = group.heads.clone();
                        claim.open(group, heads)
                    }
                    Err(error) => {
                        fail(claim.position, 0, error);
                        continue;
                    }
                }
            } else if let Some(group) = schedule.join() {
                group
            } else {
                break;
            };
            let (position, layer_index) = (group.position, group.prepared.layer_index);
            match measurer.measure(&group.prepared, group.tasks(), &mut memory) {
                Ok(measured) => {
                    results.extend(measured.into_iter().map(|(head, it)| (layer_index, head, it)))
                }
                Err((head, error)) => fail(position, head, error),
            }
            if let Some(group) = schedule.leave(group)
                && let Err(error) = measurer.finish(group, &mut memory)
            {
                fail(position, 0, error);
            }
        }
        (results, failures)
    });
    let width = base.geometry().width();
    let mut table = vec![None; layers.len() * width];
    let mut failures = Vec::new();
    for (of_thread, failures_of_thread) in results {
        for (layer_index, head, measured) in of_thread {
            table[layer_index * width + head] = Some(measured);
        }
        failures.extend(failures_of_thread);
    }
    match failures.into_iter().min_by_key(|(position, _)| *position) {
        Some((_, error)) => Err(error),
        None => Ok(table),
    }
}

/// Computes each statistic of all heads, in the order of `measured`.
fn tabulate(
    tuned: &OpenedModel,
    options: &Options,
    measured: &[Option<HeadMeasurements>],
) -> Result<Vec<(&'static str, Vec<f64>)>> {
    let computed = |statistic: &&Statistic| {
        !(statistic.of_stored_entries && options.form == Form::Product)
            && (!statistic.on_request || options.sorted)
    };
    let geometry = tuned.geometry();
    let mut table = Vec::new();
    for statistic in STATISTICS.iter().filter(computed) {
        let mut values = Vec::with_capacity(measured.len());
        for (head, measured) in measured.iter().enumerate() {
            let value = measured.as_ref().map(statistic.value);
            if value.is_some_and(|value| !statistic.allows(value)) {
                let (layer_index, head) = (head / geometry.width(), head % geometry.width());
                return Err(Error::weights(
                    tuned.path(),
                    format!(
                        "the {} of head {head} of layer {} overflows: its weights are too large",
                        statistic.name, geometry.layers[layer_index].number
                    ),
                ));
            }
            values.push(value.unwrap_or(f64::NAN));
        }
        table.push((statistic.name, values));
    }
    Ok(table)
}
