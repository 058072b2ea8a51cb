//! The Python module `alps._alps`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use numpy::ndarray::Array1;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::attention as heads;
use crate::attention::{Attention, Component, Layout, MatrixSize, Orientation, TensorShapes};
use crate::checkpoint::parse_config;
use crate::error::{BadWeight, Error, Result};
use crate::progress::{Progress, run_with_progress};
use crate::scan::{Form, Options, scan as scan_checkpoints};
use crate::scan::{ModelPath, OpenedModel, Provenance};
use crate::select::{self, LayerShape, Report, Shape};
use crate::statistics::STATISTICS;
use crate::weights::WeightMatrix;
use crate::weights::adapter::{AdapterOrigin, adapter_origin};

/// How often a long call checks for signals and reports its progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

#[pymodule]
mod _alps {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        Adapter, Scan, adapter, attention, geometry, inspect, layouts, ranking, report, scan, select_random,
        select_ranked, select_within_budget,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module
            .add("STATISTICS", super::STATISTICS.map(|it| (it.name, it.of_stored_entries, it.on_request)))?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// What a scan found.
#[pyclass(frozen, get_all, module = "alps._alps")]
struct Scan {
    /// A float64 array [layers, heads] for each statistic.
    statistics: Py<PyDict>,
    /// The fields of the model's geometry.
    geometry: Py<PyDict>,
    /// Bytes of weights read, from both sides.
    bytes: u64,
    /// What the base was read from: `files`, and where there are, `adapter`, `quantisation` and `note`.
    base: BTreeMap<&'static str, String>,
    /// What the tuned side was read from, likewise.
    tuned: BTreeMap<&'static str, String>,
}

/// A checkpoint, and the folder of an adapter that changes it.
type Paths = (String, Option<String>);

fn model_path((checkpoint, adapter): Paths) -> ModelPath {
    ModelPath { checkpoint: checkpoint.into(), adapter: adapter.map(Into::into) }
}

fn reading_fields(reading: Provenance) -> BTreeMap<&'static str, String> {
    let optional = [
        ("adapter", reading.adapter.map(str::to_owned)),
        ("quantisation", reading.quantisation),
        ("note", reading.note),
    ];
    let mut fields = BTreeMap::from([("files", reading.files)]);
    fields.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    fields
}

/// Reads two checkpoints and scores every head.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "one for each argument of alps.scan")]
fn scan(
    py: Python<'_>,
    base: Paths,
    tuned: Paths,
    form: &str,
    temperature: f64,
    sorted: bool,
    threads: Option<usize>,
    mmap: bool,
    progress: Option<Py<PyAny>>,
    component: Option<&str>,
) -> PyResult<Scan> {
    let form = match form {
        "qkv" => Form::Qkv,
        "product" => Form::Product,
        _ => return Err(Error::Argument(format!("no form {form:?}; expected \"qkv\" or \"product\"")).into()),
    };
    let component = component_of_name(component)?;
    let options = Options { form, component, temperature, sorted, threads, mmap, ..Options::default() };
    let (base, tuned) = (model_path(base), model_path(tuned));
    let scores = long_call(py, progress, |progress| scan_checkpoints(base, tuned, &options, progress))?;
    let shape = [scores.geometry.layers.len(), scores.geometry.width()];
    let statistics = PyDict::new(py);
    for (name, values) in scores.statistics {
        statistics.set_item(name, values.into_pyarray(py).reshape(shape)?)?;
    }
    let geometry = geometry_fields(py, &scores.geometry)?;
    Ok(Scan {
        statistics: statistics.unbind(),
        geometry: geometry.unbind(),
        bytes: scores.bytes,
        base: reading_fields(scores.base),
        tuned: reading_fields(scores.tuned),
    })
}

/// What an adapter says of itself.
#[pyclass(frozen, get_all, module = "alps._alps")]
struct Adapter {
    /// Its folder.
    folder: String,
    /// Whether the folder holds the weights of a model as well.
    is_whole: bool,
    /// What its base was called where it was trained.
    base: Option<String>,
    /// The revision of the base on the hub.
    revision: Option<String>,
}

/// Reads the configuration of the adapter at `path`; nothing if there is something else.
#[pyfunction]
fn adapter(path: &str) -> PyResult<Option<Adapter>> {
    Ok(adapter_origin(Path::new(path))?.map(|AdapterOrigin { folder, is_whole, base, revision }| Adapter {
        folder: folder.to_string_lossy().into_owned(),
        is_whole,
        base,
        revision,
    }))
}

/// Reads the geometry of one checkpoint.
#[pyfunction]
fn geometry<'py>(py: Python<'py>, path: Paths, component: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
    let component = component_of_name(component)?;
    let side = py.detach(|| OpenedModel::open(&model_path(path), component))?;
    geometry_fields(py, side.geometry())
}

/// A tensor that is read: (name, number format, out features, in features).
type ModuleFields = (String, &'static str, usize, usize);

/// What a scan would read of one checkpoint, and what it leaves out and why.
#[pyfunction]
fn inspect<'py>(py: Python<'py>, path: Paths, component: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
    let component = component_of_name(component)?;
    let side = py.detach(|| OpenedModel::open(&model_path(path), component))?;
    let module = |(module, linear): (&heads::Projection, &dyn WeightMatrix)| -> ModuleFields {
        (module.name.clone(), linear.dtype().name(), module.out_features, module.in_features)
    };
    let left_out = side.attention().omissions().iter().map(|it| (it.what.clone(), it.why.clone()));
    let fields = PyDict::new(py);
    fields.set_item("geometry", geometry_fields(py, side.geometry())?)?;
    let modules = side.attention().projections().iter().zip(side.weights());
    fields.set_item("modules", modules.map(module).collect::<Vec<_>>())?;
    fields.set_item("left_out", left_out.collect::<Vec<_>>())?;
    fields.set_item("bytes", side.bytes())?;
    let reading = side.provenance();
    fields.set_item("files", reading.files)?;
    fields.set_item("quantisation", reading.quantisation)?;
    Ok(fields)
}

/// A layout of storage: (name, description, (component, model type) of all that are stored so).
type FamilyFields = (&'static str, &'static str, Vec<(&'static str, &'static str)>);

/// The layouts of storage that are known.
#[pyfunction]
fn layouts() -> Result<Vec<FamilyFields>> {
    let fields = |layout: &'static Layout| {
        let types = layout.model_types().map(|(component, model_type)| (component.name(), model_type));
        (layout.name(), layout.description(), types.collect())
    };
    Ok(heads::layouts()?.iter().map(fields).collect())
}

/// One matrix of one head: (row of the layer, role, index, tensor, axis of the tensor, first, count).
type SliceFields = (usize, &'static str, usize, String, usize, usize, usize);

/// Finds every head in a live model, given its configuration as JSON and the shapes of its tensors by name.
///
/// `name` is what messages call the model. Returns the fields of its geometry and where each matrix is.
#[pyfunction]
fn attention<'py>(
    py: Python<'py>,
    name: &str,
    config: &str,
    tensors: BTreeMap<String, Vec<usize>>,
    component: Option<&str>,
) -> PyResult<(Bound<'py, PyDict>, Vec<SliceFields>)> {
    let path = Path::new(name);
    let shapes = TensorShapes {
        stored: tensors.iter().map(|(name, shape)| (&**name, &**shape)).collect(),
        ..TensorShapes::default()
    };
    let component = component_of_name(component)?;
    let attention = Attention::resolve(path, &parse_config(path, config)?, &shapes, component)?;
    let geometry = attention.geometry();
    let mut slices = Vec::new();
    for (row, layer) in geometry.layers.iter().enumerate() {
        for role in layer.own_roles().iter().copied() {
            for index in 0..layer.count(role) {
                let Some(slice) = attention.projection_rows(role, row, index) else { continue };
                let axis = match slice.projection.orientation {
                    Orientation::OutIn => 0,
                    Orientation::InOut => 1,
                };
                let name =
                    shapes.tensor(&slice.projection.name).map_or(&*slice.projection.name, |(name, _)| name);
                slices.push((
                    row,
                    role.name(),
                    index,
                    name.to_owned(),
                    axis,
                    slice.rows.start,
                    slice.rows.len(),
                ));
            }
        }
    }
    Ok((geometry_fields(py, geometry)?, slices))
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

/// The arguments of `alps.Geometry.of_layers`.
fn geometry_fields<'py>(py: Python<'py>, geometry: &heads::Geometry) -> PyResult<Bound<'py, PyDict>> {
    let size = |size: Option<MatrixSize>| size.map_or((0, 0), |MatrixSize { rows, columns }| (rows, columns));
    let sizes = |layer: &heads::LayerSizes| {
        let (query, key) = (size(Some(layer.query)), size(layer.key));
        let value = size(layer.value.filter(|_| !layer.keys_are_values));
        (layer.query_heads, layer.key_value_heads, query.0, key.0, value.0, query.1, key.1, value.1)
    };
    let fields = PyDict::new(py);
    fields.set_item("model_type", &geometry.model_type)?;
    fields.set_item("layout", &geometry.layout)?;
    fields.set_item("component", geometry.component.name())?;
    fields.set_item("layers", geometry.layers.iter().map(|layer| layer.number).collect::<Vec<_>>())?;
    fields.set_item("sizes", geometry.layers.iter().map(sizes).collect::<Vec<_>>())?;
    Ok(fields)
}

/// The heads, counted through all layers, best first.
#[pyfunction]
fn ranking<'py>(py: Python<'py>, scores: PyReadonlyArray2<'py, f64>) -> Bound<'py, PyArray1<i64>> {
    let order = select::ranking(&row_major(&scores));
    Array1::from_iter(order.into_iter().map(|head| head as i64)).into_pyarray(py)
}

/// Selects by rank: "global", "per_layer" or "key_value_groups".
#[pyfunction]
fn select_ranked<'py>(
    py: Python<'py>,
    scores: PyReadonlyArray2<'py, f64>,
    geometry: Geometry,
    rule: &str,
    ratio: f64,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let rule = match rule {
        "global" => select::global,
        "per_layer" => select::per_layer,
        "key_value_groups" => select::key_value_groups,
        _ => return Err(Error::Argument(format!("no rule {rule:?} ranks heads")).into()),
    };
    geometry.selection(py, rule(&geometry.row_major(&scores)?, &geometry.shape(), ratio)?)
}

/// Selects the longest prefix of the global ranking whose parameters stay within a budget.
#[pyfunction]
fn select_within_budget<'py>(
    py: Python<'py>,
    scores: PyReadonlyArray2<'py, f64>,
    geometry: Geometry,
    budget: u64,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    geometry.selection(py, select::within_budget(&geometry.row_major(&scores)?, &geometry.shape(), budget)?)
}

/// Selects by lot: "random" or "layer_consistent".
#[pyfunction]
fn select_random<'py>(
    py: Python<'py>,
    geometry: Geometry,
    rule: &str,
    ratio: f64,
    seed: u64,
) -> PyResult<Bound<'py, PyArray2<bool>>> {
    let rule = match rule {
        "random" => select::random,
        "layer_consistent" => select::layer_consistent,
        _ => return Err(Error::Argument(format!("no rule {rule:?} draws heads")).into()),
    };
    geometry.selection(py, rule(&geometry.shape(), ratio, seed)?)
}

/// Counts the heads, groups and parameters of a selection.
#[pyfunction]
fn report<'py>(
    py: Python<'py>,
    mask: PyReadonlyArray2<'py, bool>,
    geometry: Geometry,
) -> PyResult<Bound<'py, PyDict>> {
    let Report {
        heads,
        total_heads,
        key_value_groups,
        total_key_value_groups,
        trainable_parameters,
        total_parameters,
    } = select::report(&geometry.row_major(&mask)?, &geometry.shape())?;
    let fields = PyDict::new(py);
    fields.set_item("heads", heads)?;
    fields.set_item("total_heads", total_heads)?;
    fields.set_item("key_value_groups", key_value_groups)?;
    fields.set_item("total_key_value_groups", total_key_value_groups)?;
    fields.set_item("trainable_parameters", trainable_parameters)?;
    fields.set_item("total_parameters", total_parameters)?;
    Ok(fields)
}

/// The fields of an `alps.geometry.LayerSizes`.
type LayerSizes = (usize, usize, u64, u64, u64, u64, u64, u64);

/// The sizes that an `alps.Geometry` holds.
#[derive(FromPyObject)]
struct Geometry {
    query_heads: usize,
    sizes: Vec<LayerSizes>,
}

impl Geometry {
    fn shape(&self) -> Shape {
        let layers = self.sizes.iter().map(|sizes| {
            let (query_heads, key_value_heads, query, key, value, query_width, key_width, value_width) =
                *sizes;
            // What is too large for a number of weights is too large for a model, which the rules refuse.
            let keys = key.saturating_mul(key_width);
            LayerShape {
                query_heads,
                key_value_heads,
                head_parameters: query.saturating_mul(query_width),
                group_parameters: keys.saturating_add(value.saturating_mul(value_width)),
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

/// The one gate for long calls: works without the GIL, lets Ctrl-C through, reports progress.
///
/// An exception, be it of a signal handler or of `progress(done_bytes, total_bytes)`, stops the work
/// and is raised once the work has stopped.
fn long_call<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&Progress) -> Result<T> + Send,
) -> PyResult<T> {
    let report = |made: &Progress| {
        Python::attach(|py| {
            py.check_signals()?;
            progress.as_ref().map_or(Ok(()), |progress| progress.call1(py, made.bytes()).map(drop))
        })
    };
    py.detach(|| run_with_progress(REPORT_INTERVAL, work, report))
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
        io::ErrorKind::PermissionDenied => "EACCES",
        io::ErrorKind::IsADirectory => "EISDIR",
        io::ErrorKind::NotADirectory => "ENOTDIR",
        _ => "EIO",
    };
    py.import("errno")?.getattr(name)?.extract()
}
