//! Scores every attention head of two checkpoints.
//!
//! The unit of work is one key/value group of one layer: its key and value matrices are read and summed
//! once for all query heads that share them. Threads take groups in the order of the file; each holds, or
//! looks at, the stored bytes of a few matrices, whatever the size of the model.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPoolBuilder;

use crate::checkpoint::CONSOLIDATED;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::mapping::prepare_thread;
use crate::model::{Component, Geometry, Layer, Role};
use crate::pair::{Bytes, Done, Pair};
use crate::side::{Location, Reading, Side};
use crate::statistics::{
    Heads, Measured, NotFiniteIn, Part, PartSums, Product, Refused, STATISTICS, Statistic,
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
    /// Whose heads; without one, the text decoder's, else the encoder's, else those of the only tower there is.
    pub component: Option<Component>,
    /// The temperature of the softmax.
    pub temperature: f64,
    /// Whether to compute the statistic that needs a sort.
    pub sorted: bool,
    /// How many threads; as many as there are cores, if none is given.
    pub threads: Option<usize>,
    /// Bytes read at a time. No result depends on it.
    pub buffer: usize,
    /// Whether bytes that are in memory may be looked at there, where that can be done, instead of being copied. No
    /// result depends on it.
    pub map: bool,
    /// The vector instructions. No result depends on them.
    pub instructions: Instructions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            form: Form::Qkv,
            component: None,
            temperature: 1.0,
            sorted: false,
            threads: None,
            buffer: 256 << 10,
            map: true,
            instructions: Instructions::best(),
        }
    }
}

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
    pub base: Reading,
    /// What the tuned side was read from.
    pub tuned: Reading,
}

/// Compares two checkpoints of one model.
///
/// # Errors
///
/// As of [`Side::open`]; [`Error::Pair`] if the two are of different models or sizes; [`Error::Model`] if the
/// form makes no sense for the model; [`Error::Weights`] if a weight is NaN or infinite; [`Error::Argument`] if
/// an option is out of its domain; [`Error::Interrupted`] if `control` asks to stop.
pub fn scan(
    base: impl Into<Location>,
    tuned: impl Into<Location>,
    options: &Options,
    control: &Control,
) -> Result<Scores> {
    let threads = checked_threads(options)?;
    let open = |location: Location| Side::open(&location, options.component);
    let (base, tuned) = (open(base.into())?, open(tuned.into())?);
    check_pair(&base, &tuned)?;
    if options.form == Form::Product {
        check_product(&base)?;
    }
    let geometry = base.geometry();
    let done = Done::new(threads);
    let walk = Walk { base: &base, tuned: &tuned, options, control, repeats: false, done: &done };
    let bytes = base.bytes() + tuned.bytes();
    control.total.store(bytes, Ordering::Relaxed);

    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(|_| prepare_thread())
        .build()
        .map_err(|error| Error::Argument(format!("{threads} threads cannot be started: {error}")))?;
    let groups: Vec<(usize, usize)> = (geometry.layers.iter().enumerate())
        .flat_map(|(layer, sizes)| (0..sizes.key_value_heads).map(move |group| (layer, group)))
        .collect();
    let next = AtomicUsize::new(0);
    let measured = Mutex::new(vec![None; geometry.layers.len() * geometry.heads()]);
    // Of several failures that of the first group counts, whichever thread meets its own first.
    let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    pool.broadcast(|_| {
        let mut workspace = Workspace::new(options);
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let Some((layer, group)) = groups.get(job).copied() else { return };
            if matches!(&*lock(&failure), Some((failed, _)) if *failed < job) {
                return;
            }
            match walk.measure_group(layer, group, &mut workspace) {
                Ok(heads) => {
                    let first = layer * geometry.heads() + geometry.layers[layer].heads_of(group).start;
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
    let statistics = walk.tabulate(&lock(&measured))?;
    let (of_base, of_tuned) = (base.reading(), tuned.reading());
    Ok(Scores { geometry: geometry.clone(), statistics, bytes, base: of_base, tuned: of_tuned })
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
        (base != tuned).then(|| format!("{what} is {base} in the one, {tuned} in the other"))
    };
    // A model's heads may be stored fused here and apart there, in two families.
    let (type_of_base, type_of_tuned) = (base.attention().owner_type(), tuned.attention().owner_type());
    let family = if type_of_base == type_of_tuned {
        None
    } else {
        let name = |geometry: &Geometry, of: &str| format!("{} (model type {of})", geometry.family);
        (of_base.family != of_tuned.family)
            .then(|| differs("the layout family", name(of_base, type_of_base), name(of_tuned, type_of_tuned)))
            .flatten()
    };
    let mut problems: Vec<String> = [
        family,
        differs("the component", of_base.component.to_string(), of_tuned.component.to_string()),
        differs(
            "the number of layers with attention",
            of_base.layers.len().to_string(),
            of_tuned.layers.len().to_string(),
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    if (type_of_base == CONSOLIDATED) != (type_of_tuned == CONSOLIDATED) {
        problems.push(
            "consolidated weights have the rows within a head in another order; compare them with others of that \
             form, or convert them with transformers first"
                .into(),
        );
    }
    let numbers = |geometry: &Geometry| geometry.layers.iter().map(|layer| layer.number).collect::<Vec<_>>();
    if problems.is_empty() && numbers(of_base) != numbers(of_tuned) {
        problems.push("their layers with attention are not the same".into());
    }
    type OfLayer = fn(&Layer) -> usize;
    let sizes: [(&str, OfLayer); 8] = [
        ("the number of query heads", |layer| layer.query_heads),
        ("the number of key/value heads", |layer| layer.key_value_heads),
        ("the size of a head", |layer| layer.query.rows),
        ("the size of a key head", |layer| layer.key.map_or(0, |key| key.rows)),
        ("the size of a value head", |layer| layer.value.map_or(0, |value| value.rows)),
        ("the hidden size", |layer| layer.query.columns),
        ("the number of inputs of a key", |layer| layer.key.map_or(0, |key| key.columns)),
        ("the number of inputs of a value", |layer| layer.value.map_or(0, |value| value.columns)),
    ];
    let pairs = of_base.layers.iter().zip(&of_tuned.layers).filter(|_| problems.is_empty());
    if let Some((base, tuned)) = pairs.into_iter().find(|(base, tuned)| base != tuned) {
        let found = sizes.iter().filter_map(|(what, of)| {
            let problem = differs(what, of(base).to_string(), of(tuned).to_string())?;
            Some(format!("{problem} (layer {})", base.number))
        });
        problems.extend(found);
    }
    if problems.is_empty() {
        return Ok(());
    }
    let (base, tuned) = (base.path().to_path_buf(), tuned.path().to_path_buf());
    Err(Error::Pair { base, tuned, problem: problems.join("; ") })
}

/// Refuses a model whose weights Q^T (K V^T) is not defined for.
fn check_product(side: &Side) -> Result<()> {
    let problem = |layer: &Layer| match (layer.query, layer.key, layer.value) {
        (_, None, _) | (_, _, None) => Some("has no keys and values of its own".to_owned()),
        (query, Some(key), _) if query.rows != key.rows => {
            Some(format!("has queries of size {} and keys of size {}", query.rows, key.rows))
        }
        (_, Some(key), Some(value)) if key.columns != value.columns => {
            Some(format!("has keys of {} and values of {} inputs", key.columns, value.columns))
        }
        _ => None,
    };
    match side.geometry().layers.iter().find_map(|layer| Some((layer.number, problem(layer)?))) {
        None => Ok(()),
        Some((number, problem)) => Err(Error::model(
            side.path(),
            format!("the form product is not defined for layer {number}, which {problem}; use the form qkv"),
        )),
    }
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
    /// Whether a group is measured once more, from what is read this time.
    repeats: bool,
    done: &'a Done<'a>,
}

/// What a thread needs, kept from group to group.
struct Workspace<'a> {
    query: Loaded<'a>,
    key: Loaded<'a>,
    value: Loaded<'a>,
    product: Product,
    product_sums: PartSums,
    scratch: Vec<u8>,
}

/// The bytes of one matrix from both sides, and their sums.
struct Loaded<'a> {
    bytes: Bytes<'a>,
    sums: PartSums,
}

impl Workspace<'_> {
    fn new(options: &Options) -> Self {
        let sums = || PartSums::new(options.temperature, options.instructions);
        let loaded = || Loaded { bytes: Bytes::default(), sums: sums() };
        Self {
            query: loaded(),
            key: loaded(),
            value: loaded(),
            product: Product::new(options.instructions),
            product_sums: sums(),
            scratch: Vec::new(),
        }
    }

    /// Whether bytes were looked at that their file no longer had.
    fn take_gap(&mut self) -> bool {
        let Self { query, key, value, .. } = self;
        // All are asked, or the next group would hear of this one's.
        [query, key, value].map(|loaded| loaded.bytes.take_gap()).contains(&true)
    }
}

impl<'a> Walk<'a> {
    /// The matrices of a role; nothing if the layer has none of its own.
    fn pair(&self, role: Role, layer: usize, index: usize) -> Option<Pair<'a>> {
        let what = match role {
            Role::Query => "query head",
            Role::Key => "key head",
            Role::Value => "value head",
        };
        Some(Pair {
            base: self.base.matrix(role, layer, index)?,
            tuned: self.tuned.matrix(role, layer, index)?,
            whose: format!("{what} {index} of layer {}", self.base.geometry().layers[layer].number),
        })
    }

    fn measure_group(
        &self,
        layer: usize,
        group: usize,
        workspace: &mut Workspace<'a>,
    ) -> Result<Vec<Measured>> {
        let measured = self.look_at_group(layer, group, workspace);
        if workspace.take_gap() {
            // A file has become shorter under the eyes of the scan. To read it says which, and from where on.
            return Walk { repeats: true, ..*self }.look_at_group(layer, group, workspace);
        }
        measured
    }

    fn look_at_group(
        &self,
        layer: usize,
        group: usize,
        workspace: &mut Workspace<'a>,
    ) -> Result<Vec<Measured>> {
        let sizes = &self.base.geometry().layers[layer];
        let key = self.pair(Role::Key, layer, group);
        let value = self.pair(Role::Value, layer, group).filter(|_| !sizes.keys_are_values);
        if self.options.form == Form::Product {
            workspace.query.bytes = Bytes::default();
            workspace.product.clear();
        }
        let Workspace { scratch, .. } = workspace;
        if let Some(key) = &key {
            self.read(key, &mut workspace.key, scratch)?;
        }
        if let Some(value) = &value {
            self.read(value, &mut workspace.value, scratch)?;
        }
        let value_or_key = value.as_ref().or(key.as_ref());
        if let (Form::Product, Some(key), Some(value)) = (self.options.form, &key, value_or_key) {
            let keys = &workspace.key.bytes;
            let values = if sizes.keys_are_values { keys } else { &workspace.value.bytes };
            let loaded = workspace.product.load_group(&key.matrices(keys), &value.matrices(values));
            loaded.map_err(|refused| match refused {
                Refused::Key(entry) => key.refuse(keys, entry),
                Refused::Value(entry) => value.refuse(values, entry),
            })?;
            // The product of the two is all that the heads need: theirs takes the place of the matrices.
            (workspace.key.bytes, workspace.value.bytes) = Default::default();
        }
        let queries = sizes.heads_of(group).filter_map(|head| self.pair(Role::Query, layer, head));
        let measured = match self.options.form {
            Form::Qkv => {
                let Workspace { query, key: of_key, value: of_value, scratch, .. } = workspace;
                let keys = key.as_ref().map(|key| (key, &*of_key));
                let own_values = value.as_ref().map(|value| (value, &*of_value));
                let shared: Vec<_> = keys.into_iter().chain(own_values.or(keys)).collect();
                self.measure_qkv(&queries.collect::<Vec<_>>(), &shared, query, scratch)?
            }
            Form::Product => {
                queries.map(|query| self.measure_product(&query, workspace)).collect::<Result<_>>()?
            }
        };
        for loaded in [&workspace.key, &workspace.value] {
            self.done.add(&loaded.bytes);
        }
        Ok(measured)
    }

    fn measure_qkv(
        &self,
        queries: &[Pair<'a>],
        shared: &[(&Pair<'a>, &Loaded<'a>)],
        own: &mut Loaded<'a>,
        scratch: &mut Vec<u8>,
    ) -> Result<Vec<Measured>> {
        let parts = shared.iter().map(|(pair, loaded)| (pair.part(&loaded.bytes), &loaded.sums)).collect();
        let mut heads = self.heads(parts);
        // Every entry was found finite when it was summed, so somebody writes to the weights.
        let refuse = |query: &Pair, bytes: &Bytes, (part, entry): NotFiniteIn| match part.checked_sub(1) {
            None => query.refuse(bytes, entry),
            Some(part) => shared[part].0.refuse(&shared[part].1.bytes, entry),
        };
        for query in queries {
            self.read(query, own, scratch)?;
            let Loaded { bytes, sums } = &*own;
            heads.add(query.part(bytes), sums).map_err(|entry| refuse(query, bytes, entry))?;
            self.done.add(bytes);
        }
        let mut measured = heads.finish();
        for (query, measured) in queries.iter().zip(&mut measured).filter(|(_, head)| head.is_delicate()) {
            self.control.check()?;
            let bytes = &mut own.bytes;
            if !self.look_at(query, bytes) {
                bytes.copy(query, 0..query.base.rows(), scratch)?;
            }
            let again = heads.measure_again(query.part(bytes), measured);
            *measured = again.map_err(|entry| refuse(query, bytes, entry))?;
            self.done.add(bytes);
        }
        Ok(measured)
    }

    fn heads<'b>(&self, shared: Vec<(Part<'b>, &'b PartSums)>) -> Heads<'b> {
        let Options { temperature, sorted, instructions, .. } = *self.options;
        Heads::new(shared, temperature, sorted, instructions)
    }

    /// Looks at a pair where it lies, or makes room for a copy; whether it is the former. Beside the multiplications of the
    /// form `product` copying is nothing, and a copy can be given back at once.
    fn look_at(&self, pair: &Pair<'a>, bytes: &mut Bytes<'a>) -> bool {
        let may_map = self.options.map && self.options.form == Form::Qkv && !self.repeats;
        let is_mapped = may_map && bytes.look_at(pair);
        if !is_mapped {
            bytes.make_room(pair);
        }
        is_mapped
    }

    fn measure_product(&self, pair: &Pair<'a>, workspace: &mut Workspace<'a>) -> Result<Measured> {
        let Workspace { query, product, product_sums, scratch, .. } = workspace;
        self.read(pair, query, scratch)?;
        product.load_head(&pair.matrices(&query.bytes)).map_err(|entry| pair.refuse(&query.bytes, entry))?;
        let part = product.part();
        product_sums.clear();
        let mut head = self.heads(Vec::new());
        let overflows = || {
            let problem = format!("the product form of {} overflows: its weights are too large", pair.whose);
            Error::weights(self.tuned.path(), problem)
        };
        product_sums.add_up_to(part.entries(), &part).map_err(|_| overflows())?;
        head.add(part, product_sums).map_err(|_| overflows())?;
        Ok(head.finish().remove(0))
    }

    /// Takes up one matrix from both sides; in the form `qkv` sums it piece by piece, while it is in cache.
    fn read(&self, pair: &Pair<'a>, loaded: &mut Loaded<'a>, scratch: &mut Vec<u8>) -> Result<()> {
        let Pair { base, tuned, .. } = pair;
        let Loaded { bytes, sums } = loaded;
        let is_mapped = self.look_at(pair, bytes);
        sums.clear();
        let step = if base.linear.is_scattered() || tuned.linear.is_scattered() {
            base.rows()
        } else {
            (self.options.buffer / base.row_bytes().max(tuned.row_bytes())).max(1)
        };
        let mut stored = 0;
        for start in (0..base.rows()).step_by(step) {
            self.control.check()?;
            let end = base.rows().min(start + step);
            if !is_mapped {
                bytes.copy(pair, start..end, scratch)?;
            }
            if self.options.form == Form::Qkv {
                let entries = end * base.columns();
                sums.add_up_to(entries, &pair.part(bytes)).map_err(|entry| pair.refuse(bytes, entry))?;
            }
            let so_far = pair.stored_bytes() * end as u64 / base.rows() as u64;
            if !self.repeats {
                self.control.done.fetch_add(so_far - stored, Ordering::Relaxed);
            }
            stored = so_far;
        }
        Ok(())
    }

    fn tabulate(&self, measured: &[Option<Measured>]) -> Result<Vec<(&'static str, Vec<f64>)>> {
        let computed = |statistic: &&Statistic| {
            !(statistic.of_stored_entries && self.options.form == Form::Product)
                && (!statistic.on_request || self.options.sorted)
        };
        let geometry = self.base.geometry();
        let mut table = Vec::new();
        for statistic in STATISTICS.iter().filter(computed) {
            let mut values = Vec::with_capacity(measured.len());
            for (head, measured) in measured.iter().enumerate() {
                let value = measured.as_ref().map(statistic.value);
                if value.is_some_and(|value| !statistic.allows(value)) {
                    let (layer, head) = (head / geometry.heads(), head % geometry.heads());
                    return Err(Error::weights(
                        self.tuned.path(),
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
}
