//! A model's weights on disk: its tensors, their shapes and the bytes of the files that hold them.
//!
//! Opening a checkpoint reads headers only, and checks everything in them.

mod config;
mod file;
mod gguf;
mod header;
mod index;
mod json;
mod locate;
mod mapping;
mod pickle;
mod range;

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

pub use self::config::parse as parse_config;
use self::file::OpenFile;
pub(crate) use self::json::{read_text, refusal as json_refusal};
use self::locate::EntryFile;
pub(crate) use self::locate::has_weights;
pub use self::range::ByteRange;
pub(crate) use self::range::{RangeBuffer, RangeMapper};
use crate::error::{Error, Result, quote};

/// The place of one tensor: `length` bytes of a file, in row-major order, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor {
    /// The stored number format.
    pub dtype: safetensors::Dtype,
    /// The sizes of the dimensions, outermost first; none for a scalar.
    pub shape: Vec<usize>,
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

/// The model type that is given to weights in the consolidated form.
pub const CONSOLIDATED: &str = "consolidated";

/// A safetensors checkpoint whose files are open and whose headers are checked. Several threads can read it at once.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    entry_file: PathBuf,
    files: Vec<OpenFile>,
    tensors: BTreeMap<String, Tensor>,
    /// The tensors that the index says are in a shard that lacks them, with the names of the shards.
    missing: BTreeMap<String, String>,
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
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let entry = locate::locate(path)?;
        let Opened { files, tensors, missing } = match &entry {
            EntryFile::Weights(file) => open_file(file)?,
            EntryFile::Index(index) => open_shards(index)?,
        };
        let (EntryFile::Weights(entry_file) | EntryFile::Index(entry_file)) = entry;
        let tensors = without_wrappers(&entry_file, tensors)?;
        Ok(Checkpoint { path: path.to_path_buf(), entry_file, files, tensors, missing })
    }

    /// Opens the file of this name in a folder. The error says so if there is only a pickle in its place.
    pub(crate) fn open_file(folder: &Path, name: &str) -> Result<Self> {
        let path = &folder.join(name);
        let pickled = Path::new(name).with_extension("bin");
        if !path.exists() && folder.join(&pickled).exists() {
            return Err(pickle::refusal(folder, &pickled.to_string_lossy()));
        }
        let Opened { files, tensors, missing } = open_file(path)?;
        let (path, entry_file, tensors) = (path.clone(), path.clone(), without_wrappers(path, tensors)?);
        Ok(Checkpoint { path, entry_file, files, tensors, missing })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file from which the tensors were found: the file of weights, or the index of several.
    pub fn entry_file(&self) -> &Path {
        &self.entry_file
    }

    /// Reads the model's configuration: `config.json` beside the weights, or `params.json` beside weights in the
    /// consolidated form. The latter names no model type and is given [`CONSOLIDATED`].
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is none, or if it is not a JSON object.
    pub fn config(&self) -> Result<Map<String, Value>> {
        let file = self.config_file();
        let path = self.entry_file.with_file_name(file);
        let mut config = config::read(&path)?.ok_or_else(|| {
            let problem = format!(
                "the number and the size of the heads are read from the model's {file}, which \
                 should be beside the weights, but there is no {}",
                path.display()
            );
            Error::checkpoint(&self.path, problem)
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
        let name = self.entry_file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("consolidated.") || name.starts_with("consolidated-")
    }

    /// The files that hold the tensors; [`Tensor::file`] counts them from 0.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| &*file.path)
    }

    /// The tensors in order of name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (&**name, tensor))
    }

    /// The tensors in order of name, from this name on.
    pub(crate) fn tensors_from(&self, name: &str) -> impl Iterator<Item = (&str, &Tensor)> {
        let from = (Bound::Included(name), Bound::Unbounded);
        self.tensors.range::<str, _>(from).map(|(name, tensor)| (&**name, tensor))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensors that the index names and no shard has.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &str> {
        self.missing.keys().map(|name| &**name)
    }

    /// The error of a tensor that is [missing](Self::missing).
    pub(crate) fn missing_tensor_refusal(&self, tensor: &str) -> Error {
        let shard = self.missing.get(tensor).map_or("", |shard| shard);
        let (tensor, shard) = (quote(tensor), quote(shard));
        let problem =
            format!("the index says that tensor {tensor} is in {shard}, but that file has no such tensor");
        Error::checkpoint(&self.entry_file, problem)
    }

    /// The tensor of that name, with a name that lives as long as the checkpoint.
    pub(crate) fn named_tensor(&self, name: &str) -> Option<(&str, &Tensor)> {
        self.tensors.get_key_value(name).map(|(name, tensor)| (&**name, tensor))
    }

    /// The file that holds a tensor of this checkpoint.
    ///
    /// # Panics
    ///
    /// May panic if the tensor is one of another checkpoint.
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.files[tensor.file].path
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

/// What the files of a checkpoint hold.
struct Opened {
    files: Vec<OpenFile>,
    tensors: BTreeMap<String, Tensor>,
    missing: BTreeMap<String, String>,
}

fn open_file(path: &Path) -> Result<Opened> {
    let file = OpenFile::open(path, 0, &Arc::default())?;
    let tensors = header::read(&file, 0)?;
    Ok(Opened { files: vec![file], tensors, missing: BTreeMap::new() })
}

fn open_shards(index: &Path) -> Result<Opened> {
    let folder = index.parent().unwrap_or(Path::new(""));
    let recent = Arc::default();
    let mut opened = Opened { files: Vec::new(), tensors: BTreeMap::new(), missing: BTreeMap::new() };
    for (shard, names) in index::read(index)? {
        let path = folder.join(&shard);
        if pickle::is_name(&shard) {
            return Err(pickle::refusal(index, &shard));
        }
        let number = opened.files.len();
        let file = OpenFile::open(&path, number, &recent).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Error::checkpoint(
                index,
                format!(
                    "the shard {} is missing from the folder; the index says that it holds {} tensors, \
                     among them {}. In the cache of the hub, `hf download` fetches what is missing",
                    quote(&shard),
                    names.len(),
                    quote(&names[0])
                ),
            ),
            other => other,
        })?;
        let mut found = header::read(&file, number)?;
        for name in names {
            match found.remove(&name) {
                Some(tensor) => drop(opened.tensors.insert(name, tensor)),
                None => drop(opened.missing.insert(name, shard.clone())),
            }
        }
        opened.files.push(file);
    }
    Ok(opened)
}

/// The parts of names that torch's wrappers of modules add: `compile`, FSDP and activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The tensors by their names without the parts that wrappers add.
fn without_wrappers(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    if !tensors.keys().any(|name| WRAPPERS.iter().any(|wrapper| name.contains(wrapper))) {
        return Ok(tensors);
    }
    let mut plain = BTreeMap::new();
    for (name, tensor) in tensors {
        let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        let bare = parts.join(".");
        if plain.insert(bare.clone(), tensor).is_some() {
            let (name, bare) = (quote(&name), quote(&bare));
            let problem = format!(
                "there are two tensors {bare}: {name}, which a wrapper of torch has renamed, and another one; expected \
                 one of them"
            );
            return Err(Error::checkpoint(path, problem));
        }
    }
    Ok(plain)
}
