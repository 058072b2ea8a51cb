//! Two models of which every head can be compared, and the scan that does it.

use std::sync::atomic::Ordering;
use std::thread;

use super::compatibility::{check_pair, check_product};
use super::layer_scores::FinishedLayers;
use super::measure::measure_layers;
use super::opened_model::{ModelPath, OpenedModel, Provenance};
use super::options::{Form, Options};
use crate::attention::{Component, Geometry};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::threads;

/// The statistics of every head.
#[derive(Clone, Debug)]
pub struct Scores {
    /// The sizes of the heads, and of the layers that have them.
    pub geometry: Geometry,
    /// Each statistic with its values, [layers, heads of the layer that has most] in row-major order; NaN where a
    /// layer has no such head, and in layers that were left out.
    pub statistics: Vec<(&'static str, Vec<f64>)>,
    /// Bytes of weights read, from both models.
    pub bytes: u64,
    /// What the base weights were read from.
    pub base: Provenance,
    /// What the tuned weights were read from.
    pub tuned: Provenance,
}

/// Two states of one model, opened.
#[derive(Debug)]
pub struct ModelPair {
    base: OpenedModel,
    tuned: OpenedModel,
}

impl ModelPair {
    /// Opens two models and checks that their heads can be compared, without reading weights.
    ///
    /// # Errors
    ///
    /// Those of [`OpenedModel::open`]; [`Error::Pair`] if the two are of different models or sizes.
    pub fn open(base: &ModelPath, tuned: &ModelPath, component: Option<Component>) -> Result<Self> {
        let open = |path| OpenedModel::open(path, component);
        // Files that are elsewhere answer after a while, so both models are opened at a time.
        let (base, tuned) = thread::scope(|scope| {
            let opening = threads::start(scope, || open(base))?;
            let tuned = open(tuned);
            Ok::<_, Error>((threads::join(opening), tuned))
        })?;
        let (base, tuned) = (base?, tuned?);
        check_pair(&base, &tuned)?;
        Ok(Self { base, tuned })
    }

    /// The base model.
    pub fn base(&self) -> &OpenedModel {
        &self.base
    }

    /// The tuned model.
    pub fn tuned(&self) -> &OpenedModel {
        &self.tuned
    }

    /// The bytes of weights that a scan reads of each layer with attention, from both models.
    pub fn layer_bytes(&self) -> impl Iterator<Item = u64> {
        let count = self.base.geometry().layers.len();
        (0..count).map(|layer| self.base.layer_bytes(layer) + self.tuned.layer_bytes(layer))
    }

    /// Compares every head, or every head of the layers with attention at these places, in ascending order. `finished`
    /// has the scores of a layer as soon as all its heads are done.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the form makes no sense for the model; [`Error::Weight`] if a weight is NaN or infinite,
    /// [`Error::Weights`] if weights are too large; [`Error::Truncated`], [`Error::Changed`] or [`Error::Checkpoint`] if
    /// a file changes; [`Error::Argument`] if an option is out of its domain; [`Error::Interrupted`] if the caller
    /// cancels the scan.
    pub fn scan(
        &self,
        options: &Options,
        layers: Option<&[usize]>,
        finished: &FinishedLayers,
        progress: &Progress,
    ) -> Result<Scores> {
        let Self { base, tuned } = self;
        options.check()?;
        let geometry = base.geometry();
        let all: Vec<usize> = (0..geometry.layers.len()).collect();
        let layers = layers.unwrap_or(&all);
        if !layers.is_sorted_by(|one, next| one < next)
            || layers.last().is_some_and(|last| *last >= all.len())
        {
            let problem = format!("the layers are {layers:?}; expected ascending places below {}", all.len());
            return Err(Error::Argument(problem));
        }
        if options.form == Form::Product {
            check_product(base)?;
        }
        let by_layer: Vec<u64> = self.layer_bytes().collect();
        let bytes = layers.iter().map(|layer| by_layer[*layer]).sum();
        progress.total.store(bytes, Ordering::Relaxed);
        let scores = measure_layers(base, tuned, options, layers, finished, progress)?;
        base.check_unchanged()?;
        tuned.check_unchanged()?;
        let (width, mut statistics) = (geometry.width(), Vec::new());
        for name in options.statistics() {
            statistics.push((name, vec![f64::NAN; all.len() * width]));
        }
        for layer in scores {
            let start = layer.layer_index * width;
            for ((_, table), (_, values)) in statistics.iter_mut().zip(&layer.statistics) {
                table[start..start + width].copy_from_slice(values);
            }
        }
        let geometry = geometry.clone();
        Ok(Scores { geometry, statistics, bytes, base: base.provenance(), tuned: tuned.provenance() })
    }
}
