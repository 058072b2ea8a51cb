//! The Python module `alps._alps`.

mod store;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use numpy::ndarray::Array1;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use self::store::{PyLocation, PyReply, location};
use crate::attention::{
    self, Attention, Component, MatrixSize, Orientation, ProjectionRows, Role, StoredShapes, TensorShapes,
};
use crate::checkpoint::{Costs, Location, index_shards as index_shards_of, parse_config, weigh_by};
use crate::error::{BadWeight, Error, Result};
use crate::progress::{Progress, run_or_leave, run_with_progress};
use crate::scan::{
    FinishedLayers, Form, LayerScores, ModelPair, ModelPath, OpenedModel, Options, Provenance, StoredFile,
};
use crate::select::{self, LayerShape, Shape};
use crate::simd::Instructions;
use crate::statistics::{STATISTICS, Statistic};
use crate::weights::adapter::{AdapterOrigin, adapter_origin, may_be_adapter};

/// How often a long call checks for signals and reports its progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

#[pymodule]
mod _alps {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        Adapter, HeadWeights, Pair, PyReply, adapter, check_document, check_options, geometry, graft,
        index_shards, inspect, layouts, live_attention, ranking, report, select_random, select_ranked,
        select_within_budget,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("STATISTICS", super::STATISTICS.map(super::StatisticRecord::from))?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// The name of a statistic, and what it needs.
#[derive(IntoPyObject)]
struct StatisticRecord {
    name: &'static str,
    of_stored_entries: bool,
    on_request: bool,
}

impl From<Statistic> for StatisticRecord {
    fn from(Statistic { name, of_stored_entries, on_request, .. }: Statistic) -> Self {
        Self { name, of_stored_entries, on_request }
    }
}

/// What the weights of a pair were read from. Every record becomes a dictionary in Python; `_alps.pyi` types it.
#[derive(IntoPyObject)]
struct Scan {
    base: SourceFiles,
    tuned: SourceFiles,
}

/// What the weights of one checkpoint were read from.
#[derive(IntoPyObject)]
struct SourceFiles {
    files: String,
    adapter: Option<&'static str>,
    quantisation: Option<String>,
    note: Option<String>,
}

impl From<Provenance> for SourceFiles {
    fn from(Provenance { files, adapter, quantisation, note }: Provenance) -> Self {
        Self { files, adapter, quantisation, note }
    }
}

/// The sizes of a model's attention.
#[derive(IntoPyObject)]
struct Geometry {
    model_type: String,
    layout: String,
    component: &'static str,
    /// The number of each layer that has attention.
    layers: Vec<usize>,
    sizes: Vec<LayerSizes>,
}

/// The fields of an `alps.geometry.LayerSizes`.
#[derive(FromPyObject, IntoPyObject)]
struct LayerSizes {
    query_heads: usize,
    key_value_heads: usize,
    query_size: u64,
    key_size: u64,
    value_size: u64,
    query_width: u64,
    key_width: u64,
    value_width: u64,
}

impl From<&attention::Geometry> for Geometry {
    fn from(geometry: &attention::Geometry) -> Self {
        Self {
            model_type: geometry.model_type.clone(),
            layout: geometry.layout.clone(),
            component: geometry.component.name(),
            layers: geometry.layers.iter().map(|layer| layer.number).collect(),
            sizes: geometry.layers.iter().map(LayerSizes::from).collect(),
        }
    }
}

impl From<&attention::LayerSizes> for LayerSizes {
    fn from(layer: &attention::LayerSizes) -> Self {
        let size = |size: Option<MatrixSize>| size.map_or((0, 0), |it| (it.rows as u64, it.columns as u64));
        let (query_size, query_width) = size(Some(layer.query));
        let (key_size, key_width) = size(layer.key);
        let (value_size, value_width) = size(layer.value.filter(|_| !layer.keys_are_values));
        Self {
            query_heads: layer.query_heads,
            key_value_heads: layer.key_value_heads,
            query_size,
            key_size,
            value_size,
            query_width,
            key_width,
            value_width,
        }
    }
}

/// A checkpoint, and the folder of an adapter that changes it.
type Paths = (PyLocation, Option<PyLocation>);

/// The files of a model. Their stores give up once the call of this progress is cancelled.
fn model_path((checkpoint, adapter): Paths, progress: &Progress) -> ModelPath {
    let location = |it| location(it, &progress.cancelled);
    ModelPath { checkpoint: location(checkpoint), adapter: adapter.map(location) }
}

fn open(py: Python<'_>, paths: Paths, component: Option<&str>) -> PyResult<OpenedModel> {
    let component = component_of_name(component)?;
    let progress = Arc::default();
    let path = model_path(paths, &progress);
    opening(py, &progress, move |_| OpenedModel::open(&path, component))
}

fn options(form: &str, temperature: f64, sorted: bool, threads: Option<usize>) -> Result<Options> {
    let form = match form {
        "qkv" => Form::Qkv,
        "product" => Form::Product,
        _ => {
            let problem = format!("no form {form:?}; expected \"qkv\" or \"product\"");
            return Err(Error::Argument(problem));
        }
    };
    let instructions = Instructions::from_environment()?;
    Ok(Options { form, temperature, sorted, threads, instructions, ..Options::default() })
}

/// Refuses options that are out of their domains, before anything is opened.
#[pyfunction]
fn check_options(form: &str, temperature: f64, threads: Option<usize>) -> PyResult<()> {
    Ok(options(form, temperature, false, threads)?.check()?)
}

/// The files of one side of a pair, each with its name, its length and its version.
type StoredFiles = Vec<(String, u64, String)>;

fn stored_files(model: &OpenedModel) -> StoredFiles {
    model.files().into_iter().map(|StoredFile { name, length, version }| (name, length, version)).collect()
}

/// Two checkpoints of one model, opened.
#[pyclass(frozen, module = "alps._alps")]
struct Pair {
    pair: ModelPair,
    progress: Arc<Progress>,
}

#[pymethods]
impl Pair {
    #[new]
    fn new(py: Python<'_>, base: Paths, tuned: Paths, component: Option<&str>) -> PyResult<Self> {
        let component = component_of_name(component)?;
        let progress = Arc::default();
        let (base, tuned) = (model_path(base, &progress), model_path(tuned, &progress));
        let pair = opening(py, &progress, move |_| ModelPair::open(&base, &tuned, component))?;
        Ok(Self { pair, progress })
    }

    /// The sizes of the heads.
    fn geometry(&self) -> Geometry {
        self.pair.base().geometry().into()
    }

    /// The files of the base and of the tuned weights.
    fn files(&self) -> (StoredFiles, StoredFiles) {
        (stored_files(self.pair.base()), stored_files(self.pair.tuned()))
    }

    /// The bytes of weights that a scan reads of each layer with attention, from both checkpoints.
    fn layer_bytes(&self) -> Vec<u64> {
        self.pair.layer_bytes().collect()
    }

    /// Scores every head of these layers, or of all. `finished(layer index, {statistic: values by head})` is called for
    /// every layer that is done, `progress(bytes done, bytes to do)` now and then.
    #[expect(clippy::too_many_arguments, reason = "one for each argument of alps.scan")]
    fn scan(
        &self,
        py: Python<'_>,
        form: &str,
        temperature: f64,
        sorted: bool,
        threads: Option<usize>,
        mmap: bool,
        memory: Option<u64>,
        layers: Option<Vec<usize>>,
        finished: Option<Py<PyAny>>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Scan> {
        let mut options = Options { mmap, ..options(form, temperature, sorted, threads)? };
        options.transfers.memory = memory.unwrap_or(options.transfers.memory);
        let done = FinishedLayers::default();
        let report = |made: &Progress| {
            Python::attach(|py| {
                for LayerScores { layer_index, statistics } in done.take() {
                    let Some(finished) = &finished else { continue };
                    let values = PyDict::new(py);
                    for (name, row) in statistics {
                        values.set_item(name, row.into_pyarray(py))?;
                    }
                    finished.call1(py, (layer_index, values))?;
                }
                report_bytes(py, progress.as_ref(), made)
            })
        };
        let scan = |made: &Progress| self.pair.scan(&options, layers.as_deref(), &done, made);
        let scores = long_call(py, &self.progress, report, scan)?;
        Ok(Scan { base: scores.base.into(), tuned: scores.tuned.into() })
    }
}

/// A model whose heads are put into another: its files, the chosen heads and groups [layers, heads], and the scale.
type Donor<'py> = (Paths, PyReadonlyArray2<'py, bool>, PyReadonlyArray2<'py, bool>, f64);

/// Writes the weights of a checkpoint with the chosen heads of others into a folder. Returns the bytes of their rows.
#[pyfunction]
fn graft(
    py: Python<'_>,
    base: Paths,
    donors: Vec<Donor<'_>>,
    component: Option<&str>,
    folder: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<u64> {
    let component = component_of_name(component)?;
    let rows = |mask: &PyReadonlyArray2<'_, bool>| -> Vec<Vec<bool>> {
        mask.as_array().outer_iter().map(|layer| layer.to_vec()).collect()
    };
    let made = Progress::default();
    let donors: Vec<crate::graft::Donor> = donors
        .into_iter()
        .map(|(paths, queries, groups, scale)| crate::graft::Donor {
            model: model_path(paths, &made),
            queries: rows(&queries),
            groups: rows(&groups),
            scale,
        })
        .collect();
    let base = model_path(base, &made);
    let report = |made: &Progress| Python::attach(|py| report_bytes(py, progress.as_ref(), made));
    long_call(py, &made, report, |made| crate::graft::graft(&base, &donors, component, &folder, made))
}

/// The weights of the heads of one checkpoint.
#[pyclass(frozen, module = "alps._alps")]
struct HeadWeights {
    model: OpenedModel,
}

#[pymethods]
impl HeadWeights {
    #[new]
    fn new(py: Python<'_>, paths: Paths, component: Option<&str>) -> PyResult<Self> {
        Ok(Self { model: open(py, paths, component)? })
    }

    /// The sizes of the heads.
    fn geometry(&self) -> Geometry {
        self.model.geometry().into()
    }

    /// The matrix of a query head, or the key or value matrix of a key/value group: float64 [rows, in features].
    fn matrix<'py>(
        &self,
        py: Python<'py>,
        role: &str,
        layer_index: usize,
        index: usize,
    ) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let (role, _) = self.find(role, layer_index, index)?;
        let matrix = self.model.matrix(role, layer_index, index);
        let matrix = matrix
            .ok_or_else(|| Error::Argument(format!("layer {layer_index} has no {} matrices", role.name())))?;
        let numbers = py.detach(|| matrix.stored())?.decode();
        numbers.into_pyarray(py).reshape([matrix.rows(), matrix.columns()])
    }

    /// The entries of the bias beside that matrix, float64; `None` if there is none.
    fn bias<'py>(
        &self,
        py: Python<'py>,
        role: &str,
        layer_index: usize,
        index: usize,
    ) -> PyResult<Option<Bound<'py, PyArray1<f64>>>> {
        let (_, slice) = self.find(role, layer_index, index)?;
        let Some(slice) = slice else { return Ok(None) };
        let entries = py.detach(|| self.model.bias_entries(slice.projection, &slice.rows))?;
        Ok(entries.map(|entries| entries.decode().into_pyarray(py)))
    }
}

impl HeadWeights {
    fn find(
        &self,
        role: &str,
        layer_index: usize,
        index: usize,
    ) -> PyResult<(Role, Option<ProjectionRows<'_>>)> {
        let layer = self.model.geometry().layers.get(layer_index);
        let role = Role::ALL.into_iter().find(|it| it.name() == role);
        match (role, layer) {
            (Some(role), Some(layer)) if index < layer.count(role) => {
                Ok((role, self.model.attention().projection_rows(role, layer_index, index)))
            }
            _ => Err(Error::Argument(format!("there is no matrix {index} in layer {layer_index}")).into()),
        }
    }
}

/// Refuses a JSON document whose values would take more than `most` bytes as objects of Python, or that is malformed.
#[pyfunction]
fn check_document(py: Python<'_>, text: &[u8], most: u64) -> PyResult<()> {
    // An object, its pairs while they are checked, its entries; texts take up to four bytes for each of their own.
    const COSTS: Costs = Costs { value: 40, text: (4, 64), list: 64, object: 320, member: 240 };
    py.detach(|| {
        let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
        weigh_by(text, COSTS, most).map_err(|error| error.to_string())
    })
    .map_err(PyValueError::new_err)
}

/// The names of the shards that an index of this machine names.
#[pyfunction]
fn index_shards(py: Python<'_>, path: PathBuf) -> PyResult<Vec<String>> {
    let progress: Arc<Progress> = Arc::default();
    let location = Location::from(path).cancelled_by(&progress.cancelled);
    opening(py, &progress, move |_| index_shards_of(&location))
}

/// What the configuration of an adapter says.
#[pyclass(frozen, get_all, module = "alps._alps")]
struct Adapter {
    folder: String,
    /// Whether the folder holds the weights of a model as well.
    is_whole: bool,
    /// What its base was called where it was trained.
    base: Option<String>,
    /// The revision of the base on the hub.
    revision: Option<String>,
}

/// Reads the configuration of the adapter at `path`; `None` if there is no adapter.
#[pyfunction]
fn adapter(py: Python<'_>, location: PyLocation) -> PyResult<Option<Adapter>> {
    let progress: Arc<Progress> = Arc::default();
    let location = store::location(location, &progress.cancelled);
    // Most checkpoints are none, which a look at the folder tells without a thread.
    if py.detach(|| !may_be_adapter(&location)) {
        return Ok(None);
    }
    let origin = opening(py, &progress, move |_| adapter_origin(&location))?;
    Ok(origin.map(|AdapterOrigin { folder, is_whole, base, revision }| Adapter {
        folder: folder.path().to_string_lossy().into_owned(),
        is_whole,
        base,
        revision,
    }))
}

/// Reads the geometry of one checkpoint.
#[pyfunction]
fn geometry(py: Python<'_>, paths: Paths, component: Option<&str>) -> PyResult<Geometry> {
    Ok(open(py, paths, component)?.geometry().into())
}

/// What a scan would read of one checkpoint, and what it leaves out and why.
#[derive(IntoPyObject)]
struct Inspection {
    geometry: Geometry,
    modules: Vec<Module>,
    left_out: Vec<(String, String)>,
    bytes: u64,
    /// The names of the files of weights, and the bytes of all of them.
    weight_files: Vec<String>,
    weight_bytes: u64,
    files: String,
    quantisation: Option<String>,
}

/// A linear layer that holds weights of attention heads.
#[derive(IntoPyObject)]
struct Module {
    name: String,
    dtype: &'static str,
    out_features: usize,
    in_features: usize,
}

/// Says what a scan would read of one checkpoint.
#[pyfunction]
fn inspect(py: Python<'_>, paths: Paths, component: Option<&str>) -> PyResult<Inspection> {
    let model = open(py, paths, component)?;
    let attention = model.attention();
    let modules = attention.projections().iter().zip(model.weights()).map(|(module, weights)| Module {
        name: module.name.clone(),
        dtype: weights.dtype().name(),
        out_features: module.out_features,
        in_features: module.in_features,
    });
    let Provenance { files, quantisation, .. } = model.provenance();
    let stored = model.files();
    Ok(Inspection {
        weight_bytes: stored.iter().map(|file| file.length).sum(),
        weight_files: stored.into_iter().map(|file| file.name).collect(),
        geometry: model.geometry().into(),
        modules: modules.collect(),
        left_out: attention.omissions().iter().map(|it| (it.what.clone(), it.why.clone())).collect(),
        bytes: model.bytes(),
        files,
        quantisation,
    })
}

/// A way in which models store their attention.
#[derive(IntoPyObject)]
struct Layout<'py> {
    name: &'static str,
    description: &'static str,
    /// The model types that store the attention of a component so, by component.
    model_types: Bound<'py, PyDict>,
}

/// The known layouts.
#[pyfunction]
fn layouts(py: Python<'_>) -> PyResult<Vec<Layout<'_>>> {
    let record = |layout: &'static attention::Layout| {
        let mut by_component: BTreeMap<Component, Vec<&str>> = BTreeMap::new();
        for (component, name) in layout.model_types() {
            by_component.entry(component).or_default().push(name);
        }
        let model_types = PyDict::new(py);
        for (component, names) in by_component {
            model_types.set_item(component.name(), PyTuple::new(py, names)?)?;
        }
        Ok(Layout { name: layout.name(), description: layout.description(), model_types })
    };
    attention::layouts()?.iter().map(record).collect()
}

/// The place of one matrix of one head in a live model: a range of one axis of a tensor.
#[derive(IntoPyObject)]
struct MatrixPlace {
    /// The position of the layer among those with attention.
    layer_index: usize,
    role: &'static str,
    /// The number of the query head, or of the key/value group.
    index: usize,
    tensor: String,
    axis: usize,
    first: usize,
    count: usize,
}

/// Finds every head in a live model, given its configuration as JSON and the shapes of its tensors by name.
///
/// `name` is what messages call the model. Returns its geometry and where each matrix is.
#[pyfunction]
fn live_attention(
    name: &str,
    config: &str,
    tensors: BTreeMap<String, Vec<usize>>,
    component: Option<&str>,
) -> PyResult<(Geometry, Vec<MatrixPlace>)> {
    let path = Path::new(name);
    let shapes = TensorShapes {
        stored: StoredShapes::new(tensors.iter().map(|(name, shape)| (&**name, &**shape)))
            .map_err(|error| Error::io(path, error))?,
        ..TensorShapes::default()
    };
    let component = component_of_name(component)?;
    let attention = Attention::resolve(path, &parse_config(path, config)?, &shapes, component)?;
    let geometry = attention.geometry();
    let mut matrices = Vec::new();
    for (layer_index, layer) in geometry.layers.iter().enumerate() {
        for role in layer.own_roles().iter().copied() {
            for index in 0..layer.count(role) {
                let Some(slice) = attention.projection_rows(role, layer_index, index) else { continue };
                let projection = slice.projection;
                let name = shapes.tensor(&projection.name).map_or(&*projection.name, |(name, _)| name);
                matrices.push(MatrixPlace {
                    layer_index,
                    role: role.name(),
                    index,
                    tensor: name.to_owned(),
                    axis: match projection.orientation {
                        Orientation::OutIn => 0,
                        Orientation::InOut => 1,
                    },
                    first: slice.rows.start,
                    count: slice.rows.len(),
                });
            }
        }
    }
    Ok((geometry.into(), matrices))
}

fn component_of_name(name: Option<&str>) -> Result<Option<Component>> {
    let Some(name) = name else { return Ok(None) };
    match Component::of_name(name) {
        Some(component) => Ok(Some(component)),
        None => {
            let known = Component::ALL.map(Component::name).join(", ");
            Err(Error::Argument(format!("there is no component {name:?}; the components are {known}")))
        }
    }
}

/// The heads, counted through all layers, best first.
#[pyfunction]
fn ranking<'py>(py: Python<'py>, scores: PyReadonlyArray2<'py, f64>) -> Bound<'py, PyArray1<i64>> {
    let scores = row_major(&scores);
    let order = py.detach(|| select::ranking(&scores));
    Array1::from_iter(order.into_iter().map(|head| head as i64)).into_pyarray(py)
}

/// Selects by rank: "global", "per_layer" or "key_value_groups".
#[pyfunction]
fn select_ranked<'py>(
    py: Python<'py>,
    scores: PyReadonlyArray2<'py, f64>,
    geometry: GeometrySizes,
    rule: &str,
    ratio: f64,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let rule = match rule {
        "global" => select::global,
        "per_layer" => select::per_layer,
        "key_value_groups" => select::key_value_groups,
        _ => return Err(Error::Argument(format!("no rule {rule:?} ranks heads")).into()),
    };
    let (scores, shape) = (geometry.row_major(&scores)?, geometry.shape());
    geometry.selection(py, py.detach(|| rule(&scores, &shape, ratio))?)
}

/// Selects the longest prefix of the global ranking whose parameters stay within a budget.
#[pyfunction]
fn select_within_budget<'py>(
    py: Python<'py>,
    scores: PyReadonlyArray2<'py, f64>,
    geometry: GeometrySizes,
    budget: u64,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let (scores, shape) = (geometry.row_major(&scores)?, geometry.shape());
    geometry.selection(py, py.detach(|| select::within_budget(&scores, &shape, budget))?)
}

/// Selects by lot: "random" or "layer_consistent".
#[pyfunction]
fn select_random<'py>(
    py: Python<'py>,
    geometry: GeometrySizes,
    rule: &str,
    ratio: f64,
    seed: u64,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let rule = match rule {
        "random" => select::random,
        "layer_consistent" => select::layer_consistent,
        _ => return Err(Error::Argument(format!("no rule {rule:?} draws heads")).into()),
    };
    let shape = geometry.shape();
    geometry.selection(py, py.detach(|| rule(&shape, ratio, seed))?)
}

/// The size of a selection.
#[derive(IntoPyObject)]
struct Report {
    heads: usize,
    total_heads: usize,
    key_value_groups: usize,
    total_key_value_groups: usize,
    trainable_parameters: u64,
    total_parameters: u64,
}

/// Counts the heads, groups and parameters of a selection.
#[pyfunction]
fn report(mask: PyReadonlyArray2<'_, bool>, geometry: GeometrySizes) -> PyResult<Report> {
    let select::Report {
        heads,
        total_heads,
        key_value_groups,
        total_key_value_groups,
        trainable_parameters,
        total_parameters,
    } = select::report(&geometry.row_major(&mask)?, &geometry.shape())?;
    Ok(Report {
        heads,
        total_heads,
        key_value_groups,
        total_key_value_groups,
        trainable_parameters,
        total_parameters,
    })
}

/// The sizes that an `alps.Geometry` holds.
#[derive(FromPyObject)]
struct GeometrySizes {
    query_heads: usize,
    sizes: Vec<LayerSizes>,
}

impl GeometrySizes {
    fn shape(&self) -> Shape {
        let layers = self.sizes.iter().map(|sizes| {
            // What is too large for a number of weights is too large for a model, which the rules refuse.
            let entries = |size: u64, width: u64| size.saturating_mul(width);
            let (keys, values) =
                (entries(sizes.key_size, sizes.key_width), entries(sizes.value_size, sizes.value_width));
            LayerShape {
                query_heads: sizes.query_heads,
                key_value_heads: sizes.key_value_heads,
                head_parameters: entries(sizes.query_size, sizes.query_width),
                group_parameters: keys.saturating_add(values),
            }
        });
        Shape { layers: layers.collect() }
    }

    /// The entries of a matrix with one entry for each head.
    fn row_major<T: Element + Copy>(&self, matrix: &PyReadonlyArray2<'_, T>) -> Result<Vec<T>> {
        let (expected, found) = ([self.sizes.len(), self.query_heads], matrix.as_array().dim());
        if found != expected.into() {
            return Err(Error::Argument(format!(
                "expected an array [layers, heads] of {expected:?}, found {found:?}"
            )));
        }
        Ok(row_major(matrix))
    }

    fn selection<'py>(&self, py: Python<'py>, flags: Vec<bool>) -> PyResult<Bound<'py, PyArray2<bool>>> {
        flags.into_pyarray(py).reshape([self.sizes.len(), self.query_heads])
    }
}

fn row_major<T: Element + Copy>(matrix: &PyReadonlyArray2<'_, T>) -> Vec<T> {
    matrix.as_array().iter().copied().collect()
}

/// The gate for calls that only read what is there: works without the GIL and lets Ctrl-C through, which does not wait for the
/// work to end.
fn opening<T: Send + 'static>(
    py: Python<'_>,
    progress: &Arc<Progress>,
    work: impl FnOnce(&Progress) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let check = || Python::attach(|py| py.check_signals());
    py.detach(|| run_or_leave(progress, REPORT_INTERVAL, work, check))
}

/// The gate for all other long calls: works without the GIL, lets Ctrl-C through, reports progress.
///
/// An exception, be it of a signal handler or of `report`, stops the work and is raised once the work has stopped.
fn long_call<T: Send>(
    py: Python<'_>,
    made: &Progress,
    mut report: impl FnMut(&Progress) -> PyResult<()> + Send,
    work: impl FnOnce(&Progress) -> Result<T> + Send,
) -> PyResult<T> {
    let report = |made: &Progress| {
        Python::attach(|py| py.check_signals())?;
        report(made)
    };
    py.detach(|| run_with_progress(made, REPORT_INTERVAL, work, report))
}

/// Calls `callback(done_bytes, total_bytes)`, if there is one.
fn report_bytes(py: Python<'_>, callback: Option<&Py<PyAny>>, progress: &Progress) -> PyResult<()> {
    callback.map_or(Ok(()), |callback| callback.call1(py, progress.bytes()).map(drop))
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| exception(py, &error).unwrap_or_else(|failure| failure))
    }
}

/// The Python exception of an error, with its fields as attributes.
fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let fields = PyDict::new(py);
    let (class, path) = match error {
        Error::Io { path, source } => return os_error(py, path, source),
        Error::Threads { source } => {
            let number = source.raw_os_error().map_or_else(|| number_of(py, source.kind()), Ok)?;
            return Ok(PyOSError::new_err((number, error.to_string())));
        }
        Error::Interrupted => {
            return Ok(PyErr::take(py).unwrap_or_else(|| PyKeyboardInterrupt::new_err(())));
        }
        Error::Checkpoint { path, .. } => ("CheckpointError", Some(path)),
        Error::Truncated { path, tensor, .. } => {
            fields.set_item("tensor", tensor)?;
            ("CheckpointError", Some(path))
        }
        Error::Changed { path, tensor, .. } => {
            fields.set_item("tensor", tensor)?;
            ("CheckpointError", Some(path))
        }
        Error::Model { path, .. } => ("ModelError", Some(path)),
        Error::Pair { base, tuned, .. } => {
            fields.set_item("base", base.as_os_str())?;
            fields.set_item("tuned", tuned.as_os_str())?;
            ("PairError", None)
        }
        Error::Weight { path, weight: BadWeight { tensor, position: [row, column], head, value, .. } } => {
            fields.set_item("tensor", tensor)?;
            fields.set_item("position", (row, column))?;
            fields.set_item("role", head.role)?;
            fields.set_item("head", head.index)?;
            fields.set_item("layer", head.layer)?;
            fields.set_item("value", value)?;
            ("WeightsError", Some(path))
        }
        Error::Weights { path, .. } => ("WeightsError", Some(path)),
        Error::Argument(_) => ("ArgumentError", None),
    };
    if let Some(path) = path {
        fields.set_item("path", path.as_os_str())?;
    }
    let exception = py.import("alps.errors")?.getattr(class)?.call1((error.to_string(),))?;
    for (name, value) in fields {
        exception.setattr(name.cast::<PyString>()?, value)?;
    }
    Ok(PyErr::from_value(exception))
}

/// Python picks the subclass of OSError (FileNotFoundError, ...) by the error number.
fn os_error(py: Python<'_>, path: &Path, source: &io::Error) -> PyResult<PyErr> {
    let number = source.raw_os_error();
    let text = source.to_string();
    let reason =
        number.and_then(|number| text.strip_suffix(&format!(" (os error {number})"))).unwrap_or(&text);
    let number = number.map_or_else(|| number_of(py, source.kind()), Ok)?;
    // The last argument counts on Windows only.
    Ok(PyErr::from_value(py.get_type::<PyOSError>().call1((
        number,
        reason,
        path.as_os_str(),
        source.raw_os_error(),
    ))?))
}

/// The error number for a refusal that is not the operating system's own.
fn number_of(py: Python<'_>, kind: io::ErrorKind) -> PyResult<i32> {
    let name = match kind {
        io::ErrorKind::NotFound => "ENOENT",
        io::ErrorKind::OutOfMemory => "ENOMEM",
        io::ErrorKind::PermissionDenied => "EACCES",
        io::ErrorKind::IsADirectory => "EISDIR",
        io::ErrorKind::NotADirectory => "ENOTDIR",
        _ => "EIO",
    };
    py.import("errno")?.getattr(name)?.extract()
}
