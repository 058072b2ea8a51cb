//! The statistics of the heads of one layer.

use std::mem::take;
use std::sync::{Mutex, PoisonError};

use super::opened_model::OpenedModel;
use super::options::Options;
use crate::error::{Error, Result};
use crate::statistics::HeadMeasurements;

/// The statistics of one layer.
#[derive(Clone, Debug)]
pub struct LayerScores {
    /// The place of the layer among those with attention.
    pub layer_index: usize,
    /// Each statistic with its values, by head; NaN where the layer has fewer heads than another.
    pub statistics: Vec<(&'static str, Vec<f64>)>,
}

/// The layers of a scan that are finished and that nobody has taken yet.
#[derive(Debug, Default)]
pub struct FinishedLayers(Mutex<Vec<LayerScores>>);

impl FinishedLayers {
    pub(super) fn add(&self, layer: LayerScores) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(layer);
    }

    /// Takes those that have been added since the last call.
    pub fn take(&self) -> Vec<LayerScores> {
        take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Computes each statistic of the heads of a layer.
pub(super) fn tabulate(
    tuned: &OpenedModel,
    options: &Options,
    layer_index: usize,
    measured: &[Option<HeadMeasurements>],
) -> Result<LayerScores> {
    let mut statistics = Vec::new();
    for statistic in options.computed_statistics() {
        let mut values = Vec::with_capacity(tuned.geometry().width());
        for (head, measured) in measured.iter().enumerate() {
            let value = measured.as_ref().map(statistic.value);
            if value.is_some_and(|value| !statistic.allows(value)) {
                let problem = format!(
                    "the {} of head {head} of layer {} overflows: its weights are too large",
                    statistic.name,
                    tuned.geometry().layers[layer_index].number
                );
                return Err(Error::weights(tuned.path(), problem));
            }
            values.push(value.unwrap_or(f64::NAN));
        }
        values.resize(tuned.geometry().width(), f64::NAN);
        statistics.push((statistic.name, values));
    }
    Ok(LayerScores { layer_index, statistics })
}
