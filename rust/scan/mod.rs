//! Scores every attention head of two checkpoints.
//!
//! The unit of work is one key/value group of one layer: its key and value matrices are read and summed
//! once for all query heads that share them. Threads take groups in the order of the file, and help with
//! those in progress when there are no more; each holds, or looks at, the stored bytes of a few matrices,
//! whatever the size of the model.

mod compatibility;
mod group;
mod matrix_pair;
mod opened_model;
mod options;
mod schedule;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use rayon::ThreadPoolBuilder;

use self::compatibility::{check_pair, check_product};
use self::group::{Group, MeasuredHeads, Walk, Workspace};
use self::matrix_pair::Done;
pub use self::opened_model::{Location, OpenedModel, Provenance};
pub use self::options::{Form, Options};
use self::schedule::{Open, Turns};
use crate::attention::Geometry;
use crate::checkpoint::mapping::prepare_thread;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::progress::Control;
use crate::statistics::{HeadMeasurements, STATISTICS, Statistic};

/// The statistics of every head.
#[derive(Clone, Debug)]
pub struct Scores {
    /// The sizes of the heads, and of the layers that have them.
    pub geometry: Geometry,
    /// Each statistic with its values, [layers, heads of the layer that has most] in row-major order; NaN where a
    /// layer has no such head.
    pub statistics: Vec<(&'static str, Vec<f64>)>,
    /// Bytes of weights read, from both sides.
    pub bytes: u64,
    /// What the base was read from.
    pub base: Provenance,
    /// What the tuned side was read from.
    pub tuned: Provenance,
}

/// Compares two checkpoints of one model.
///
/// # Errors
///
/// As of [`OpenedModel::open`]; [`Error::Pair`] if the two are of different models or sizes; [`Error::Model`] if the
/// form makes no sense for the model; [`Error::Weights`] if a weight is NaN or infinite; [`Error::Argument`] if
/// an option is out of its domain; [`Error::Interrupted`] if `control` asks to stop.
pub fn scan(
    base: impl Into<Location>,
    tuned: impl Into<Location>,
    options: &Options,
    control: &Control,
) -> Result<Scores> {
    let threads = options.checked_threads()?;
    let open = |location: Location| OpenedModel::open(&location, options.component);
    let (base, tuned) = (open(base.into())?, open(tuned.into())?);
    check_pair(&base, &tuned)?;
    if options.form == Form::Product {
        check_product(&base)?;
    }
    let geometry = base.geometry();
    let groups: Vec<(usize, usize)> = (geometry.layers.iter().enumerate())
        .flat_map(|(layer, sizes)| (0..sizes.key_value_heads).map(move |group| (layer, group)))
        .collect();
    let bytes = base.bytes() + tuned.bytes();
    control.total.store(bytes, Ordering::Relaxed);
    let done = Done::new(threads);
    let walk = Walk::new([&base, &tuned], options, control, &done);
    let turns = Turns::new(groups.len());
    let outcome = Mutex::new(Outcome::new(geometry));

    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(|_| prepare_thread())
        .build()
        .map_err(|error| Error::Argument(format!("{threads} threads cannot be started: {error}")))?;
    pool.broadcast(|_| {
        let mut workspace = Workspace::new(options);
        loop {
            let group = if let Some(turn) = turns.take() {
                let place = turn.place();
                if lock(&outcome).has_failed_before(place) {
                    return;
                }
                let (layer, group) = groups[place];
                match walk.prepare(layer, group, &mut workspace) {
                    Ok(group) => {
                        let heads = group.heads.clone();
                        turn.open(group, heads)
                    }
                    Err(error) => {
                        lock(&outcome).fail((place, 0), error);
                        continue;
                    }
                }
            } else if let Some(group) = turns.join() {
                group
            } else {
                return;
            };
            let measured = walk.measure(&group.prepared, group.tasks(), &mut workspace);
            lock(&outcome).add(&group, measured);
            if let Some(group) = turns.leave(group) {
                walk.put_away(group, &mut workspace);
            }
        }
    });
    let measured = outcome.into_inner().unwrap_or_else(PoisonError::into_inner).of_all()?;
    let statistics = tabulate(&tuned, options, &measured)?;
    let (of_base, of_tuned) = (base.reading(), tuned.reading());
    Ok(Scores { geometry: geometry.clone(), statistics, bytes, base: of_base, tuned: of_tuned })
}

/// What was measured of the heads, or why it was not.
struct Outcome {
    /// [layers, heads of the layer that has most] in row-major order.
    measured: Vec<Option<HeadMeasurements>>,
    heads: usize,
    /// Of several failures that of the first group and head counts, whichever thread meets its own first.
    failure: Option<((usize, usize), Error)>,
}

impl Outcome {
    fn new(geometry: &Geometry) -> Self {
        let heads = geometry.heads();
        Self { measured: vec![None; geometry.layers.len() * heads], heads, failure: None }
    }

    fn add(&mut self, group: &Open<Group>, measured: MeasuredHeads) {
        match measured {
            Ok(measured) => {
                for (head, measured) in measured {
                    self.measured[group.prepared.layer * self.heads + head] = Some(measured);
                }
            }
            Err((head, error)) => self.fail((group.place, head), error),
        }
    }

    fn fail(&mut self, place: (usize, usize), error: Error) {
        if self.failure.as_ref().is_none_or(|(failed, _)| place < *failed) {
            self.failure = Some((place, error));
        }
    }

    /// Whether a group before this one has failed.
    fn has_failed_before(&self, group: usize) -> bool {
        matches!(self.failure, Some(((failed, _), _)) if failed < group)
    }

    fn of_all(self) -> Result<Vec<Option<HeadMeasurements>>> {
        self.failure.map_or(Ok(self.measured), |(_, error)| Err(error))
    }
}

/// Each statistic of `measured`, [layers, heads of the layer that has most] in row-major order.
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
                let (layer, head) = (head / geometry.heads(), head % geometry.heads());
                return Err(Error::weights(
                    tuned.path(),
                    format!(
                        "the {} of head {head} of layer {} overflows: its weights are too large",
                        statistic.name, geometry.layers[layer].number
                    ),
                ));
            }
            values.push(value.unwrap_or(f64::NAN));
        }
        table.push((statistic.name, values));
    }
    Ok(table)
}
