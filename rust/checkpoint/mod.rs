//! A model's weights in files, on this machine or elsewhere: its tensors, their shapes and their bytes.
//!
//! Opening a checkpoint reads headers only, and checks everything in them. A [`Location`] says where a file is. What is
//! elsewhere is asked of a [`Store`]; a `Plan` of what will be read makes its `Transfers` fetch it beforehand.

mod config;
mod file;
mod gguf;
mod header;
mod index;
mod json;
mod local_file;
mod locate;
mod location;
mod mapping;
mod name_table;
mod pickle;
mod range;
mod remote_file;
mod store;
mod transfers;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Map, Value};
use smallvec::SmallVec;

pub use self::config::parse as parse_config;
use self::file::OpenFile;
use self::index::Index;
#[cfg(feature = "python")]
pub(crate) use self::json::{Costs, weigh_by};
pub(crate) use self::json::{MAX_CONFIG, read_text, refusal as json_refusal, weigh};
use self::local_file::LocalFile;
use self::locate::EntryFile;
pub(crate) use self::locate::has_weights;
pub use self::location::Location;
use self::name_table::NameTable;
pub use self::range::ByteRange;
pub(crate) use self::range::{RangeBuffer, RangeMapper};
pub use self::store::{FileStatus, Reply, Store, StoredBytes};
pub(crate) use self::transfers::Plan;
pub use self::transfers::TransferLimits;
use crate::error::{Error, Result, quote};
use crate::threads::in_threads;

/// The sizes of the dimensions of a tensor.
pub type Shape = SmallVec<[usize; 5]>;

/// The place of one tensor: `length` bytes of a file, in row-major order, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor {
    /// The stored number format.
    pub dtype: safetensors::Dtype,
    /// The sizes of the dimensions, outermost first; none for a scalar.
    pub shape: Shape,
    /// The number of the file in [`Checkpoint::files`].
    pub file: usize,
    /// The first byte, counted from the beginning of the file.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

impl Tensor {
    /// Whether it has `length` bytes from its byte `offset` on.
    fn has_bytes(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.length)
    }
}

/// A file of weights, and what tells it from other states of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its name, without the folder.
    pub name: String,
    /// The number of bytes.
    pub length: u64,
    /// The version that a store names; of a file on this machine the time of its last change.
    pub version: String,
}

/// The model type that is given to weights in the consolidated form.
pub const CONSOLIDATED: &str = "consolidated";

/// A safetensors checkpoint whose files are open and whose headers are checked. Several threads can read it at once.
#[derive(Debug)]
pub struct Checkpoint {
    location: Location,
    entry_file: Location,
    files: Vec<OpenFile>,
    tensors: NameTable<Tensor>,
    index: Index,
}

impl Checkpoint {
    /// Opens a folder, a single safetensors file, or the index of a sharded checkpoint
    /// (`*.safetensors.index.json`).
    ///
    /// In a folder, these files are read, as by transformers: the one that `transformers_weights` in `config.json`
    /// names, else `model.safetensors`, else those of `model.safetensors.index.json`, else the only candidate: a
    /// variant (`model.fp16.safetensors`, `model.safetensors.index.fp16.json`), the consolidated form
    /// (`consolidated.safetensors`) or a file of another name. Tensors of a shard that the index does not list are
    /// ignored, and so are those that the index lists and no shard has, unless the heads need them.
    ///
    /// The parts of tensor names that torch's wrappers add, such as `_orig_mod`, are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file cannot be read, [`Error::Checkpoint`] if one is not what it should be.
    pub fn open(location: impl Into<Location>) -> Result<Self> {
        let location = location.into();
        let entry = locate::locate(&location)?;
        let Opened { files, tensors, index } = match &entry {
            EntryFile::Weights(file) => open_file(file)?,
            EntryFile::Index(index) => open_shards(index)?,
        };
        let (EntryFile::Weights(entry_file) | EntryFile::Index(entry_file)) = entry;
        let tensors = without_wrappers(entry_file.path(), tensors)?;
        Ok(Checkpoint { location, entry_file, files, tensors, index })
    }

    /// Opens the file of this name in a folder. The error says so if there is only a pickle in its place.
    pub(crate) fn open_file(folder: &Location, name: &str) -> Result<Self> {
        let location = folder.join(name);
        let pickled = Path::new(name).with_extension("bin").to_string_lossy().into_owned();
        if !location.exists()? && folder.join(&pickled).exists()? {
            return Err(pickle::refusal(folder.path(), &pickled));
        }
        let Opened { files, tensors, index } = open_file(&location)?;
        let tensors = without_wrappers(location.path(), tensors)?;
        Ok(Checkpoint { entry_file: location.clone(), location, files, tensors, index })
    }

    /// Fails if a file was replaced or written to since it was opened.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] names the file; [`Error::Io`] if it is no longer there.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let remote = self.files.iter().filter_map(OpenFile::remote);
        let asked: Vec<_> = remote.map(|file| (file, file.ask_status())).collect();
        self.files.iter().filter_map(OpenFile::local).try_for_each(LocalFile::check_unchanged)?;
        asked.into_iter().try_for_each(|(file, now)| file.check_unchanged(now))
    }

    /// Fails with [`Error::Interrupted`] once the call that opened it is to stop.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        self.location.check_cancelled()
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        self.location.path()
    }

    /// The file from which the tensors were found: the file of weights, or the index of several.
    pub fn entry_file(&self) -> &Path {
        self.entry_file.path()
    }

    /// Reads the model's configuration: `config.json` beside the weights, or `params.json` beside weights in the
    /// consolidated form. The latter names no model type and is given [`CONSOLIDATED`].
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is none, or if it is not a JSON object.
    pub fn config(&self) -> Result<Map<String, Value>> {
        let file = self.config_file();
        let location = self.entry_file.with_file_name(file);
        let mut config = config::read(&location)?.ok_or_else(|| {
            let problem = format!(
                "the number and the size of the heads are read from the model's {file}, which \
                 should be beside the weights, but there is no {location}"
            );
            Error::checkpoint(self.path(), problem)
        })?;
        if self.is_consolidated() {
            config.insert("model_type".to_owned(), CONSOLIDATED.into());
        }
        Ok(config)
    }

    /// The name of the file of the model's configuration.
    pub(crate) fn config_file(&self) -> &'static str {
        if self.is_consolidated() { "params.json" } else { "config.json" }
    }

    /// Reads another JSON object beside the weights, if there is one of that name.
    pub(crate) fn read_beside(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        config::read(&self.entry_file.with_file_name(name))
    }

    /// Whether the weights are in the form in which Meta and Mistral publish them.
    fn is_consolidated(&self) -> bool {
        let name = self.entry_file.file_name();
        name.starts_with("consolidated.") || name.starts_with("consolidated-")
    }

    /// The files that hold the tensors; [`Tensor::file`] counts them from 0.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(OpenFile::path)
    }

    /// The tensors in order of name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.tensors.iter()
    }

    /// The tensors in order of name, from this name on.
    pub(crate) fn tensors_from(&self, name: &str) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter_from(name)
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.named_tensor(name).map(|(_, tensor)| tensor)
    }

    /// The tensors that the index names and no shard has.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &str> {
        self.index.missing().map(|(name, _)| name)
    }

    /// The error of a tensor that is [missing](Self::missing).
    pub(crate) fn missing_tensor_refusal(&self, tensor: &str) -> Error {
        let shard = self.index.missing().find(|(name, _)| *name == tensor).map_or("", |(_, shard)| shard);
        let (tensor, shard) = (quote(tensor), quote(shard));
        let problem =
            format!("the index says that tensor {tensor} is in {shard}, but that file has no such tensor");
        Error::checkpoint(self.entry_file(), problem)
    }

    /// The tensor of that name, with a name that lives as long as the checkpoint.
    pub(crate) fn named_tensor(&self, name: &str) -> Option<(&str, &Tensor)> {
        self.tensors.get(name)
    }

    /// The file that holds a tensor of this checkpoint.
    ///
    /// # Panics
    ///
    /// May panic if the tensor is one of another checkpoint.
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        self.files[tensor.file].path()
    }

    /// Gives a file that is in a store to `to`, piece by piece, and fetches the next ones meanwhile. Returns whether the
    /// file is in a store; one that is not has to be copied by the system.
    pub(crate) fn fetch_file(&self, file: usize, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let file = &self.files[file];
        let Some(remote) = file.remote() else { return Ok(false) };
        let starts = || (0..file.length).step_by(COPIED_AT_A_TIME as usize);
        let range = |start: u64| start..file.length.min(start + COPIED_AT_A_TIME);
        let mut plan = Plan::default();
        for (step, start) in starts().enumerate() {
            plan.add(step, remote, range(start));
        }
        let transfers = plan.begin(TransferLimits::default());
        let mut buffer = Vec::new();
        for (step, start) in starts().enumerate() {
            buffer.resize((range(start).end - start) as usize, 0);
            file.read(start, &mut buffer, || None)?;
            to(&buffer)?;
            transfers.end_step(step);
        }
        Ok(true)
    }

    /// The files of weights, with what tells them from other states of themselves.
    pub(crate) fn stored_files(&self) -> impl Iterator<Item = StoredFile> {
        self.files.iter().map(|file| StoredFile {
            name: file.name(),
            length: file.length,
            version: file.version(),
        })
    }

    /// The number of bytes of a file when it was opened.
    pub(crate) fn file_length(&self, file: usize) -> u64 {
        self.files[file].length
    }

    /// Fills `buffer` with the bytes of a tensor of this checkpoint, from its byte `offset` on.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if the tensor has fewer bytes, [`Error::Truncated`] if the file has become
    /// shorter since it was opened, [`Error::Io`] if it cannot be read.
    ///
    /// # Panics
    ///
    /// May panic if the tensor is one of another checkpoint.
    pub fn read_at(&self, tensor: &Tensor, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let wanted = buffer.len() as u64;
        if !tensor.has_bytes(offset, wanted) {
            return Err(Error::Argument(format!(
                "{}: {wanted} bytes from byte {offset} on were asked for of tensor {}, which has {}",
                self.file_of(tensor).display(),
                quote(&self.name_of(tensor)),
                tensor.length
            )));
        }
        self.files[tensor.file].read(tensor.offset + offset, buffer, || Some(self.name_of(tensor)))
    }

    /// The name of a tensor of this checkpoint.
    fn name_of(&self, tensor: &Tensor) -> String {
        self.tensors().find(|(_, other)| *other == tensor).map_or("?", |(name, _)| name).to_owned()
    }
}

/// The names of the shards that an index names.
///
/// # Errors
///
/// Those of [`Checkpoint::open`] for the index.
#[cfg(feature = "python")]
pub(crate) fn index_shards(index: &Location) -> Result<Vec<String>> {
    Index::read(index).map(|index| index.shards)
}

/// The bytes that are written at a time while a file of a store is copied.
const COPIED_AT_A_TIME: u64 = 16 << 20;

/// What the files of a checkpoint hold.
struct Opened {
    files: Vec<OpenFile>,
    tensors: NameTable<Tensor>,
    index: Index,
}

fn open_file(location: &Location) -> Result<Opened> {
    let file = OpenFile::open(location, 0, &Arc::default())?;
    let tensors = header::read(&file, 0)?;
    Ok(Opened { files: vec![file], tensors, index: Index::default() })
}

/// The most headers that are asked for at a time in a store.
const HEADERS_AT_A_TIME: usize = 16;

fn open_shards(location: &Location) -> Result<Opened> {
    let (path, folder, recent) = (location.path(), location.parent(), Arc::default());
    let mut index = Index::read(location)?;
    let open_shard = |(number, shard): (usize, &String)| {
        location.check_cancelled()?;
        if pickle::is_name(shard) {
            return Err(pickle::refusal(path, shard));
        }
        let file = OpenFile::open(&folder.join(shard), number, &recent).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                let (count, first) = index.describe(number);
                let problem = format!(
                    "the shard {} is missing from the folder; the index says that it holds {count} tensors, \
                     among them {}. In the cache of the hub, `hf download` fetches what is missing",
                    quote(shard),
                    quote(first)
                );
                Error::checkpoint(path, problem)
            }
            other => other,
        })?;
        let found = header::read(&file, number)?;
        Ok((file, listed_in(path, &index, number, found)?))
    };
    let at_a_time = if location.store().is_some() { HEADERS_AT_A_TIME } else { 1 };
    let read = map_in_threads(&index.shards, at_a_time, open_shard);
    let (mut files, mut tensors) = (Vec::new(), NameTable::default());
    for read in read {
        let (file, found) = read?;
        for (name, tensor) in found.iter() {
            index.tensors.get_mut(name).into_iter().for_each(|listed| listed.is_found = true);
            tensors.push(name, tensor.clone()).map_err(|error| Error::in_file(path, error))?;
        }
        files.push(file);
    }
    tensors.sort();
    Ok(Opened { files, tensors, index })
}

/// The tensors of a shard that the index says are there.
fn listed_in(
    path: &Path,
    index: &Index,
    shard: usize,
    found: NameTable<Tensor>,
) -> Result<NameTable<Tensor>> {
    let mut listed = NameTable::default();
    for (name, tensor) in found.iter() {
        if index.tensors.get(name).is_some_and(|(_, listed)| listed.shard as usize == shard) {
            listed.push(name, tensor.clone()).map_err(|error| Error::in_file(path, error))?;
        }
    }
    Ok(listed)
}

/// The results of a function for some numbered items, of which so many are worked on at a time. With one at a time, the
/// items after a failure are left out.
fn map_in_threads<T: Sync, R: Send>(
    items: &[T],
    at_a_time: usize,
    function: impl Fn((usize, &T)) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    let failed = AtomicBool::new(false);
    let run = |item| {
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let result = function(item);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        Some(result)
    };
    if at_a_time == 1 {
        return items.iter().enumerate().map_while(run).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(result) = items.get(number).and_then(|item| run((number, item))) else { return done };
            done.push((number, result));
        }
    };
    let threads = at_a_time.min(items.len());
    let mut results: Vec<_> = match in_threads(threads, work, || failed.store(true, Ordering::Relaxed)) {
        Ok(results) => results.into_iter().flatten().collect(),
        Err(error) => return vec![Err(error)],
    };
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The parts of names that torch's wrappers of modules add: `compile`, FSDP and activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The tensors by their names without the parts that wrappers add.
fn without_wrappers(path: &Path, tensors: NameTable<Tensor>) -> Result<NameTable<Tensor>> {
    if !tensors.iter().any(|(name, _)| WRAPPERS.iter().any(|wrapper| name.contains(wrapper))) {
        return Ok(tensors);
    }
    let bare = |name: &str| {
        let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        parts.join(".")
    };
    let mut plain = NameTable::default();
    for (name, tensor) in tensors.iter() {
        plain.push(&bare(name), tensor.clone()).map_err(|error| Error::in_file(path, error))?;
    }
    let Some(twice) = plain.sort().map(str::to_owned) else { return Ok(plain) };
    let renamed = tensors.iter().map(|(name, _)| name).find(|name| *name != twice && bare(name) == twice);
    let (name, bare) = (quote(renamed.unwrap_or_default()), quote(&twice));
    let problem = format!(
        "there are two tensors {bare}: {name}, which a wrapper of torch has renamed, and another one; expected \
         one of them"
    );
    Err(Error::checkpoint(path, problem))
}
