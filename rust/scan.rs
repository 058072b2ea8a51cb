//! Scores every attention head of two checkpoints.
//!
//! The unit of work is one key/value group of one layer: its key and value matrices are read and summed
//! once for all query heads that share them. Threads take groups in the order of the file; each holds the
//! stored bytes of one head's three matrices from both sides, whatever the size of the model.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPoolBuilder;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::model::{Geometry, Role};
use crate::side::{Matrix, Side};
use crate::statistics::{
    MatrixPair, Measured, NotFinite, Part, PartSums, Product, Refused, STATISTICS, Statistic, Stored, measure,
};
use crate::vector::Instructions;

/// What the weight vector of a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The query, key and value weights one after the other, as in the authors' code.
    Qkv,
    /// Q^T (K V^T), equation 5 of the paper.
    Product,
}

/// How to scan.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the weight vector of a head is.
    pub form: Form,
    /// The temperature of the softmax.
    pub temperature: f64,
    /// Whether to compute the statistic that needs a sort.
    pub sorted: bool,
    /// How many threads; as many as there are cores, if none is given.
    pub threads: Option<usize>,
    /// Bytes read at a time. No result depends on it.
    pub buffer: usize,
    /// The vector instructions. No result depends on them.
    pub instructions: Instructions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            form: Form::Qkv,
            temperature: 1.0,
            sorted: false,
            threads: None,
            buffer: 256 << 10,
            instructions: Instructions::best(),
        }
    }
}

/// The statistics of every head.
#[derive(Clone, Debug)]
pub struct Scores {
    /// The sizes of the heads, and of the layers that have them.
    pub geometry: Geometry,
    /// Each statistic with its values, [layers, query heads] in row-major order.
    pub statistics: Vec<(&'static str, Vec<f64>)>,
    /// Bytes of weights read, from both sides.
    pub bytes: u64,
}

/// Compares two checkpoints of one model.
///
/// # Errors
///
/// As of [`Side::open`]; [`Error::Pair`] if the two are of different families or sizes; [`Error::Weights`]
/// if a weight is NaN or infinite; [`Error::Argument`] if an option is out of its domain;
/// [`Error::Interrupted`] if `control` asks to stop.
pub fn scan(base: &Path, tuned: &Path, options: &Options, control: &Control) -> Result<Scores> {
    let threads = checked_threads(options)?;
    let (base, tuned) = (Side::open(base)?, Side::open(tuned)?);
    check_pair(&base, &tuned)?;
    let geometry = base.geometry();
    let walk = Walk { base: &base, tuned: &tuned, options, control };
    let bytes = walk.total_bytes()?;
    control.total.store(bytes, Ordering::Relaxed);

    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::Argument(format!("{threads} threads cannot be started: {error}")))?;
    let groups = geometry.layers.len() * geometry.key_value_heads;
    let next = AtomicUsize::new(0);
    let measured = Mutex::new(vec![None; geometry.layers.len() * geometry.query_heads]);
    // Of several failures that of the first group counts, whichever thread meets its own first.
    let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    pool.broadcast(|_| {
        let mut workspace = Workspace::new(options);
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= groups || matches!(&*lock(&failure), Some((failed, _)) if *failed < job) {
                return;
            }
            let (layer, group) = (job / geometry.key_value_heads, job % geometry.key_value_heads);
            match walk.measure_group(layer, group, &mut workspace) {
                Ok(heads) => {
                    let first = layer * geometry.query_heads + geometry.heads_of(group).start;
                    let mut measured = lock(&measured);
                    for (head, of_head) in heads.into_iter().enumerate() {
                        measured[first + head] = Some(of_head);
                    }
                }
                Err(error) => {
                    let mut failure = lock(&failure);
                    if failure.as_ref().is_none_or(|(failed, _)| job < *failed) {
                        *failure = Some((job, error));
                    }
                }
            }
        }
    });
    if let Some((_, error)) = lock(&failure).take() {
        return Err(error);
    }
    let measured: Vec<Measured> = lock(&measured).iter().flatten().copied().collect();
    Ok(Scores { geometry: geometry.clone(), statistics: walk.tabulate(&measured)?, bytes })
}

fn checked_threads(options: &Options) -> Result<usize> {
    let temperature = options.temperature;
    if !(1e-6..=1e6).contains(&temperature) {
        return Err(Error::Argument(format!(
            "the temperature is {temperature}; expected a number from 1e-6 to 1e6"
        )));
    }
    match options.threads {
        Some(threads @ 1..=4096) => Ok(threads),
        Some(threads) => Err(Error::Argument(format!("threads is {threads}; expected 1 to 4096"))),
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
    }
}

fn check_pair(base: &Side, tuned: &Side) -> Result<()> {
    let (of_base, of_tuned) = (base.geometry(), tuned.geometry());
    let differs = |what: &str, base: String, tuned: String| {
        format!("{what} is {base} in the one, {tuned} in the other")
    };
    let sizes = [
        ("the number of query heads", of_base.query_heads, of_tuned.query_heads),
        ("the number of key/value heads", of_base.key_value_heads, of_tuned.key_value_heads),
        ("the size of a head", of_base.head_size, of_tuned.head_size),
        ("the size of a value head", of_base.value_size, of_tuned.value_size),
        ("the hidden size", of_base.hidden_size, of_tuned.hidden_size),
        ("the number of layers with attention", of_base.layers.len(), of_tuned.layers.len()),
    ];
    let mut problems = Vec::new();
    if of_base.family != of_tuned.family {
        let name = |geometry: &Geometry| format!("{} (model type {})", geometry.family, geometry.model_type);
        problems.push(differs("the layout family", name(of_base), name(of_tuned)));
    }
    for (what, base, tuned) in sizes {
        if base != tuned {
            problems.push(differs(what, base.to_string(), tuned.to_string()));
        }
    }
    if problems.is_empty() && of_base.layers != of_tuned.layers {
        problems.push("their layers with attention are not the same".into());
    }
    if problems.is_empty() {
        return Ok(());
    }
    let (base, tuned) = (base.path().to_path_buf(), tuned.path().to_path_buf());
    Err(Error::Pair { base, tuned, problem: problems.join("; ") })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A thread that panics takes the scan with it, so what it left behind is never looked at.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What all threads share.
struct Walk<'a> {
    base: &'a Side,
    tuned: &'a Side,
    options: &'a Options,
    control: &'a Control,
}

/// What a thread needs, kept from group to group.
struct Workspace {
    query: Loaded,
    key: Loaded,
    value: Loaded,
    product: Product,
    product_sums: PartSums,
    strip: Vec<u8>,
}

/// The bytes of one matrix from both sides, and their sums.
struct Loaded {
    bytes: Bytes,
    sums: PartSums,
}

#[derive(Default)]
struct Bytes {
    base: Vec<u8>,
    tuned: Vec<u8>,
}

impl Workspace {
    fn new(options: &Options) -> Self {
        let sums = || PartSums::new(options.temperature, options.instructions);
        let loaded = || Loaded { bytes: Bytes::default(), sums: sums() };
        Self {
            query: loaded(),
            key: loaded(),
            value: loaded(),
            product: Product::new(options.instructions),
            product_sums: sums(),
            strip: Vec::new(),
        }
    }
}

/// One matrix on both sides.
struct Pair<'a> {
    base: Matrix<'a>,
    tuned: Matrix<'a>,
    /// Whose matrix it is, for messages.
    whose: String,
}

impl Pair<'_> {
    fn bytes(&self) -> usize {
        self.base.bytes() + self.tuned.bytes()
    }

    fn part<'b>(&self, bytes: &'b Bytes) -> Part<'b> {
        let MatrixPair { base, tuned, .. } = self.matrices(bytes);
        Part::Stored { base, tuned }
    }

    fn matrices<'b>(&self, Bytes { base, tuned }: &'b Bytes) -> MatrixPair<'b> {
        MatrixPair {
            base: Stored { dtype: self.base.dtype, bytes: base },
            tuned: Stored { dtype: self.tuned.dtype, bytes: tuned },
            columns: self.base.columns(),
        }
    }

    fn refuse(&self, bytes: &Bytes, NotFinite { entry, tuned }: NotFinite) -> Error {
        let matrices = self.matrices(bytes);
        let (matrix, stored) = if tuned { (self.tuned, matrices.tuned) } else { (self.base, matrices.base) };
        matrix.refuse(entry, stored.entry(entry), &self.whose)
    }
}

impl<'a> Walk<'a> {
    fn pair(&self, role: Role, layer: usize, index: usize) -> Result<Pair<'a>> {
        let what = match role {
            Role::Query => "query head",
            Role::Key => "key head",
            Role::Value => "value head",
        };
        Ok(Pair {
            base: self.base.matrix(role, layer, index)?,
            tuned: self.tuned.matrix(role, layer, index)?,
            whose: format!("{what} {index} of layer {}", self.base.geometry().layers[layer]),
        })
    }

    /// What the whole scan reads. Also finds every matrix once, so that a bad one is refused at once.
    fn total_bytes(&self) -> Result<u64> {
        let geometry = self.base.geometry();
        let mut bytes = 0;
        for layer in 0..geometry.layers.len() {
            bytes += self.pair(Role::Query, layer, 0)?.bytes() as u64 * geometry.query_heads as u64;
            for role in [Role::Key, Role::Value] {
                bytes += self.pair(role, layer, 0)?.bytes() as u64 * geometry.key_value_heads as u64;
            }
        }
        Ok(bytes)
    }

    fn measure_group(&self, layer: usize, group: usize, workspace: &mut Workspace) -> Result<Vec<Measured>> {
        let heads = self.base.geometry().heads_of(group);
        let key = self.pair(Role::Key, layer, group)?;
        let value = self.pair(Role::Value, layer, group)?;
        let Workspace { strip, .. } = workspace;
        self.read(&key, &mut workspace.key, strip)?;
        self.read(&value, &mut workspace.value, strip)?;
        if self.options.form == Form::Product {
            let (keys, values) = (&workspace.key.bytes, &workspace.value.bytes);
            let loaded = workspace.product.load_group(&key.matrices(keys), &value.matrices(values));
            loaded.map_err(|refused| match refused {
                Refused::Key(entry) => key.refuse(keys, entry),
                Refused::Value(entry) => value.refuse(values, entry),
            })?;
            // The product of the two is all that the heads need: theirs takes the place of the matrices.
            (workspace.key.bytes, workspace.value.bytes) = Default::default();
        }
        heads
            .map(|head| {
                let query = self.pair(Role::Query, layer, head)?;
                self.read(&query, &mut workspace.query, &mut workspace.strip)?;
                match self.options.form {
                    Form::Qkv => self.measure_qkv([&query, &key, &value], workspace),
                    Form::Product => self.measure_product(&query, workspace),
                }
            })
            .collect()
    }

    fn measure_qkv(&self, pairs: [&Pair; 3], workspace: &Workspace) -> Result<Measured> {
        let Workspace { query, key, value, .. } = workspace;
        let parts = [(pairs[0], query), (pairs[1], key), (pairs[2], value)]
            .map(|(pair, loaded)| (pair.part(&loaded.bytes), &loaded.sums));
        // Every entry was found finite while it was read.
        measure(&parts, self.options.sorted).map_err(|entry| pairs[0].refuse(&query.bytes, entry))
    }

    fn measure_product(&self, pair: &Pair, workspace: &mut Workspace) -> Result<Measured> {
        let Workspace { query, product, product_sums, .. } = workspace;
        product.load_head(&pair.matrices(&query.bytes)).map_err(|entry| pair.refuse(&query.bytes, entry))?;
        let part = product.part();
        product_sums.clear();
        product_sums
            .add_up_to(part.entries(), &part)
            .and_then(|()| measure(&[(part, product_sums)], self.options.sorted))
            .map_err(|_| {
                let problem =
                    format!("the product form of {} overflows: its weights are too large", pair.whose);
                Error::weights(self.tuned.path(), problem)
            })
    }

    /// Reads one matrix from both sides; in the form `qkv` sums it piece by piece, while it is in cache.
    fn read(&self, pair: &Pair, loaded: &mut Loaded, strip: &mut Vec<u8>) -> Result<()> {
        let Pair { base, tuned, .. } = pair;
        let Loaded { bytes, sums } = loaded;
        let entries = base.entries();
        bytes.base.resize(base.bytes(), 0);
        bytes.tuned.resize(tuned.bytes(), 0);
        sums.clear();
        let sizes = (base.dtype.size(), tuned.dtype.size());
        let contiguous = base.is_contiguous() && tuned.is_contiguous();
        let step = if contiguous { (self.options.buffer / sizes.0.max(sizes.1)).max(1) } else { entries };
        for start in (0..entries).step_by(step) {
            self.control.check()?;
            let end = entries.min(start + step);
            for (matrix, into) in [(base, &mut bytes.base), (tuned, &mut bytes.tuned)] {
                let size = matrix.dtype.size();
                let into = &mut into[start * size..end * size];
                if matrix.is_contiguous() {
                    matrix.read(start, into)?;
                } else {
                    matrix.read_transposed(into, strip)?;
                }
            }
            if self.options.form == Form::Qkv {
                sums.add_up_to(end, &pair.part(bytes)).map_err(|entry| pair.refuse(bytes, entry))?;
            }
            self.control.done.fetch_add(((end - start) * (sizes.0 + sizes.1)) as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn tabulate(&self, measured: &[Measured]) -> Result<Vec<(&'static str, Vec<f64>)>> {
        let computed = |statistic: &&Statistic| {
            !(statistic.of_stored_entries && self.options.form == Form::Product)
                && (!statistic.on_request || self.options.sorted)
        };
        let mut table = Vec::new();
        for statistic in STATISTICS.iter().filter(computed) {
            let values: Vec<f64> = measured.iter().map(statistic.value).collect();
            if let Some(head) = values.iter().position(|value| !statistic.allows(*value)) {
                let geometry = self.base.geometry();
                let (layer, head) = (head / geometry.query_heads, head % geometry.query_heads);
                return Err(Error::weights(
                    self.tuned.path(),
                    format!(
                        "the {} of head {head} of layer {} overflows: its weights are too large",
                        statistic.name, geometry.layers[layer]
                    ),
                ));
            }
            table.push((statistic.name, values));
        }
        Ok(table)
    }
}
