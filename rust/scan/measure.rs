//! Measures the heads of some layers by several threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::group::{HeadMeasurer, ThreadMemory};
use super::layer_scores::{FinishedLayers, LayerScores, tabulate};
use super::opened_model::OpenedModel;
use super::options::{Form, Options};
use super::schedule::Schedule;
use crate::checkpoint::Plan;
use crate::error::{Error, Result};
use crate::memory;
use crate::progress::Progress;
use crate::statistics::HeadMeasurements;
use crate::threads::in_threads;

/// A layer whose groups are being measured.
struct LayerInProgress {
    groups_left: usize,
    /// Whether a group of it failed: heads may be missing, or made of bytes that were lost.
    failed: bool,
    /// By head.
    measured: Vec<Option<HeadMeasurements>>,
}

/// Scores every head of these layers, in whatever order they end.
///
/// Of several failures that of the first group and head is returned, whichever thread fails first.
pub(super) fn measure_layers(
    base: &OpenedModel,
    tuned: &OpenedModel,
    options: &Options,
    layers: &[usize],
    finished: &FinishedLayers,
    progress: &Progress,
) -> Result<Vec<LayerScores>> {
    let geometry = base.geometry();
    let count_of = |layer_index: usize| geometry.layers[layer_index].key_value_heads;
    let groups: Vec<(usize, usize)> = (layers.iter())
        .flat_map(|layer_index| (0..count_of(*layer_index)).map(|group| (*layer_index, group)))
        .collect();
    let in_progress: Vec<_> = (0..geometry.layers.len())
        .map(|layer_index| {
            Mutex::new(LayerInProgress {
                groups_left: count_of(layer_index),
                failed: false,
                measured: vec![None; geometry.layers[layer_index].query_heads],
            })
        })
        .collect();
    let layer = |layer_index: usize| in_progress[layer_index].lock().unwrap_or_else(PoisonError::into_inner);
    // More threads than heads would have nothing to do.
    let heads = layers.iter().map(|layer_index| geometry.layers[*layer_index].query_heads).sum::<usize>();
    let threads = options.thread_count().min(heads).max(1);
    let measurer = HeadMeasurer::new(base, tuned, options, threads, progress);
    let transfers = plan(&measurer, &groups).begin(options.transfers);
    let schedule = Schedule::new(groups.len());
    memory::check(
        threads.saturating_mul(memory_of_thread(tuned, options)).saturating_add(memory::SMALL_PIECES),
    )
    .map_err(|error| Error::io(tuned.path(), error))?;
    let first_failed = AtomicUsize::new(usize::MAX);

    let work = || {
        let _guard = transfers.abandon_on_panic();
        let mut memory = ThreadMemory::new(options);
        let mut scores = Vec::new();
        let mut failures = Vec::new();
        let mut fail = |group: usize, head: usize, error: Error| {
            first_failed.fetch_min(group, Ordering::Relaxed);
            failures.push(((group, head), error));
        };
        loop {
            let group = if let Some(claim) = schedule.claim() {
                if first_failed.load(Ordering::Relaxed) < claim.position {
                    // Others may wait for pieces that are fetched only once this step has ended.
                    transfers.end_step(claim.position);
                    break;
                }
                let (layer_index, index) = groups[claim.position];
                match measurer.prepare(layer_index, index, &mut memory) {
                    Ok(group) => {
                        let heads = group.heads.clone();
                        claim.open(group, heads)
                    }
                    Err(error) => {
                        transfers.end_step(claim.position);
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
                    let mut layer = layer(layer_index);
                    measured.into_iter().for_each(|(head, it)| layer.measured[head] = Some(it));
                }
                Err((head, error)) => {
                    layer(layer_index).failed = true;
                    fail(position, head, error);
                }
            }
            let Some(group) = schedule.leave(group) else { continue };
            transfers.end_step(position);
            let ended = measurer.finish(group, &mut memory);
            let mut layer = layer(layer_index);
            if let Err(error) = ended {
                layer.failed = true;
                fail(position, 0, error);
            }
            layer.groups_left -= 1;
            if layer.groups_left == 0 && !layer.failed {
                match tabulate(tuned, options, layer_index, &layer.measured) {
                    Ok(layer) => {
                        finished.add(layer.clone());
                        scores.push(layer);
                    }
                    Err(error) => fail(position, 0, error),
                }
            }
        }
        (scores, failures)
    };
    let results = in_threads(threads, work, || first_failed.store(0, Ordering::Relaxed))?;
    let (scores, failures): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    match failures.into_iter().flatten().min_by_key(|(position, _)| *position) {
        Some((_, error)) => Err(error),
        None => Ok(scores.into_iter().flatten().collect()),
    }
}

/// The memory that a thread takes: its stack, and what the statistics keep of a head. Copies of weights are apart.
fn memory_of_thread(model: &OpenedModel, options: &Options) -> usize {
    const STACK_AND_BUFFERS: usize = 3 << 20;
    let entries = (model.geometry().layers.iter())
        .map(|layer| layer.query.rows.saturating_mul(layer.query.columns))
        .max()
        .unwrap_or(0);
    let of_head =
        if options.sorted || options.form == Form::Product { entries.saturating_mul(32) } else { 0 };
    STACK_AND_BUFFERS.saturating_add(of_head)
}

/// What the measurement of each group reads.
fn plan(measurer: &HeadMeasurer<'_>, groups: &[(usize, usize)]) -> Plan {
    let mut plan = Plan::default();
    for (step, (layer_index, index)) in groups.iter().enumerate() {
        measurer.covering_ranges(*layer_index, *index).for_each(|range| range.add_to(&mut plan, step));
    }
    plan
}
