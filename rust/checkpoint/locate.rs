//! Finds the file of a folder that the weights are read from, as transformers does.

use std::path::Path;

use serde_json::Value;

use super::index::is_plain_name;
use super::{Location, config, gguf, pickle};
use crate::error::{Error, Result, quote};

/// The names that transformers looks for, in this order.
const USUAL: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// A program in Python that writes the index of the shards in a folder.
const WRITE_INDEX: &str = "import glob, json; from safetensors import safe_open; \
    json.dump({\"metadata\": {}, \"weight_map\": {name: file for file in sorted(glob.glob(\"*-of-*.safetensors\")) \
    for name in safe_open(file, \"np\").keys()}}, open(\"model.safetensors.index.json\", \"w\"))";

/// The file from which the tensors of a checkpoint are found.
pub(super) enum EntryFile {
    /// A file with all tensors.
    Weights(Location),
    /// The index of several files.
    Index(Location),
}

/// Whether a folder holds the weights of a model under one of the usual names.
pub(crate) fn has_weights(folder: &Location) -> Result<bool> {
    for name in USUAL {
        if folder.join(name).exists()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds the entry file, given a folder, a file of weights or an index.
pub(super) fn locate(location: &Location) -> Result<EntryFile> {
    match location.names().map_err(|error| Error::io(location.path(), error))? {
        Some(names) => locate_in_folder(location, &names),
        None => classify(location),
    }
}

fn classify(location: &Location) -> Result<EntryFile> {
    let (path, name) = (location.path(), location.file_name());
    if is_adapter(&name) {
        Err(adapter_refusal(path, &name))
    } else if pickle::is_name(&name) {
        Err(pickle::refusal(path, &name))
    } else if gguf::is_name(&name) {
        Err(gguf::refusal(path, &name))
    } else if is_index(&name) {
        Ok(EntryFile::Index(location.clone()))
    } else {
        Ok(EntryFile::Weights(location.clone()))
    }
}

/// Finds the entry file in a folder with these names. A dangling link counts as present, since other weights than those
/// meant would be read without it.
fn locate_in_folder(location: &Location, names: &[String]) -> Result<EntryFile> {
    let folder = location.path();
    if let Some(name) = configured_name(location)? {
        return classify(&location.join(&name));
    }
    for usual in USUAL {
        if names.iter().any(|name| name == usual) {
            return classify(&location.join(usual));
        }
    }
    if let Some(adapter) = names.iter().find(|name| is_adapter(name)) {
        return Err(adapter_refusal(folder, adapter));
    }
    if let Some(pickled) = names.iter().find(|name| pickle::is_weights_name(name)) {
        return Err(pickle::refusal(folder, pickled));
    }
    let expected = "expected `model.safetensors` or `model.safetensors.index.json`";
    let candidates: Vec<&String> = names.iter().filter(|name| is_candidate(name)).collect();
    let indexes = candidates.iter().filter(|name| is_index(name)).count();
    // The shards of a lone index do not compete with it.
    let competing: Vec<&String> = candidates
        .into_iter()
        .filter(|name| indexes != 1 || is_index(name) || shard_count(name).is_none_or(|count| count == 1))
        .collect();
    if let Some(first) = competing.iter().find(|name| is_parallel_slice(name)) {
        return Err(Error::checkpoint(
            folder,
            format!(
                "{} is one of the parts into which a model was cut for several devices, which are not put \
                 together here; expected the whole in `consolidated.safetensors` or `model.safetensors`",
                quote(first)
            ),
        ));
    }
    let shards: Vec<&&String> =
        competing.iter().filter(|name| shard_count(name).is_some_and(|count| count > 1)).collect();
    if indexes == 0 && !shards.is_empty() && shards.len() == competing.len() {
        let count = shard_count(shards[0]).unwrap_or(0);
        return Err(Error::checkpoint(
            folder,
            format!(
                "{expected}, found {} of {count} shards without an index: {}. If all shards are there, this writes the \
                 index: `cd {} && python -c '{WRITE_INDEX}'`",
                shards.len(),
                describe(&shards),
                folder.display()
            ),
        ));
    }
    match competing[..] {
        [name] => match shard_count(name) {
            Some(count) if count != 1 => Err(Error::checkpoint(
                folder,
                format!("{expected}, found only {}, one of {count} shards, without an index", quote(name)),
            )),
            _ => classify(&location.join(name)),
        },
        [] => {
            if let Some(name) = names.iter().find(|name| gguf::is_name(name)) {
                return Err(gguf::refusal(folder, name));
            }
            let found = if names.is_empty() { "an empty folder".to_owned() } else { describe(names) };
            let within = |file: &str| -> Vec<&String> {
                let is_there = |name: &&String| location.join(name).join(file).is_file().unwrap_or(false);
                names.iter().filter(is_there).collect()
            };
            let adapters = within("adapter_config.json");
            let inner = USUAL.iter().flat_map(|usual| within(usual)).filter(|name| !adapters.contains(name));
            let (inner, mut hint) = (inner.collect::<Vec<_>>(), String::new());
            for (what, folders) in [("an adapter", adapters), ("a checkpoint", inner)] {
                if !folders.is_empty() {
                    hint +=
                        &format!("; there is {what} in {}: pass the path of that folder", describe(&folders));
                }
            }
            Err(Error::checkpoint(folder, format!("{expected}, found {found}{hint}")))
        }
        _ => Err(Error::checkpoint(
            folder,
            format!(
                "{expected}, found {}{}: {}; pass the path of the one that is meant",
                competing.len(),
                if indexes == 0 { " safetensors files without an index" } else { " checkpoints" },
                describe(&competing)
            ),
        )),
    }
}

/// Whether a folder without the usual names may be read from this file.
fn is_candidate(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".safetensors") || is_index(name))
}

/// Whether a file is an index, possibly of a variant: `model.safetensors.index.fp16.json`.
fn is_index(name: &str) -> bool {
    name.contains(".safetensors.index.") && name.ends_with(".json")
}

/// Whether a file holds a slice for tensor parallelism: `consolidated.01.safetensors`, not the slice `00`.
fn is_parallel_slice(name: &str) -> bool {
    name.strip_prefix("consolidated.")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .is_some_and(|part| part.parse::<u32>().is_ok_and(|part| part > 0))
}

/// The name of the file of weights in the configuration, which goes before the usual names.
fn configured_name(folder: &Location) -> Result<Option<String>> {
    let location = folder.join("config.json");
    let named = config::read(&location)?.and_then(|mut config| config.remove("transformers_weights"));
    match named {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if is_plain_name(&name) => Ok(Some(name)),
        Some(other) => Err(Error::checkpoint(
            location.path(),
            format!(
                "`transformers_weights` should be the plain name of a file in the folder, but is {}",
                quote(&other.to_string())
            ),
        )),
    }
}

/// Formats the first names and the number of the others.
fn describe(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| quote(name.as_ref())).collect();
    let rest = names.len().saturating_sub(SHOWN);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    shown.join(", ") + &more
}

fn is_adapter(name: &str) -> bool {
    matches!(name, "adapter_model.safetensors" | "adapter_model.bin")
}

fn adapter_refusal(path: &Path, name: &str) -> Error {
    if pickle::is_name(name) {
        return pickle::refusal(path, name);
    }
    Error::checkpoint(
        path,
        format!(
            "{} is an adapter, which holds changes to the weights of a base checkpoint; expected the weights \
             themselves",
            quote(name)
        ),
    )
}

/// The number of shards in the name of a shard: 2 in `model-00001-of-00002.safetensors`.
fn shard_count(name: &str) -> Option<u64> {
    let (before, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (_, number) = before.rsplit_once('-')?;
    number.parse::<u64>().ok()?;
    count.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names() {
        assert_eq!(shard_count("model-00001-of-00002.safetensors"), Some(2));
        assert_eq!(shard_count("model.fp16-00001-of-00163.safetensors"), Some(163));
        assert_eq!(shard_count("best-of-2.safetensors"), None);
        assert_eq!(shard_count("model.safetensors"), None);
    }

    #[test]
    fn slices_for_several_devices_are_known_by_their_numbers() {
        assert!(is_parallel_slice("consolidated.01.safetensors"));
        for name in ["consolidated.safetensors", "consolidated.00.safetensors", "model.01.safetensors"] {
            assert!(!is_parallel_slice(name), "{name}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..14).map(|number| number.to_string()).collect();
        assert!(describe(&names).ends_with("`11` and 2 more"));
        assert_eq!(describe(&names[..2]), "`0`, `1`");
    }
}
