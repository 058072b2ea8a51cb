//! Decides which file of a folder to start from, as transformers does.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::index::is_plain_name;
use super::json::quote;
use super::{config, pickle};
use crate::{Error, Result};

/// The file that says where the tensors are.
pub(super) enum Start {
    /// One file with all of them.
    File(PathBuf),
    /// The index of several.
    Index(PathBuf),
}

/// Where to start from, given the path of a folder, of a file of weights or of an index.
pub(super) fn locate(path: &Path) -> Result<Start> {
    if fs::metadata(path).map_err(|error| Error::io(path, error))?.is_dir() {
        locate_in_folder(path)
    } else {
        classify(path)
    }
}

fn classify(path: &Path) -> Result<Start> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if is_adapter(&name) {
        Err(refuse_adapter(path, &name))
    } else if pickle::is_name(&name) {
        Err(pickle::refusal(path, &name))
    } else if name.contains(".safetensors.index.") && name.ends_with(".json") {
        Ok(Start::Index(path.to_path_buf()))
    } else {
        Ok(Start::File(path.to_path_buf()))
    }
}

fn locate_in_folder(folder: &Path) -> Result<Start> {
    if let Some(name) = configured_name(folder)? {
        return classify(&folder.join(name));
    }
    // A dangling link counts as present: to pass over it would be to read other weights than those meant.
    let names = list(folder)?;
    for usual in ["model.safetensors", "model.safetensors.index.json"] {
        if names.iter().any(|name| name == usual) {
            return classify(&folder.join(usual));
        }
    }
    if let Some(adapter) = names.iter().find(|name| is_adapter(name)) {
        return Err(refuse_adapter(folder, adapter));
    }
    if let Some(pickled) = names.iter().find(|name| pickle::is_weights_name(name)) {
        return Err(pickle::refusal(folder, pickled));
    }
    let expected = "expected `model.safetensors` or `model.safetensors.index.json`";
    let weights: Vec<&String> =
        names.iter().filter(|name| name.ends_with(".safetensors") && !name.starts_with('.')).collect();
    match weights[..] {
        [name] => match shard_count(name) {
            Some(count) if count != 1 => Err(Error::checkpoint(
                folder,
                format!("{expected}, found only {}, one of {count} shards, without an index", quote(name)),
            )),
            _ => classify(&folder.join(name)),
        },
        [] => {
            let found = if names.is_empty() { "an empty folder".to_owned() } else { describe(&names) };
            Err(Error::checkpoint(folder, format!("{expected}, found {found}")))
        }
        _ => Err(Error::checkpoint(
            folder,
            format!(
                "{expected}, found {} safetensors files without an index: {}; pass the path of the one \
                 that is meant",
                weights.len(),
                describe(&weights)
            ),
        )),
    }
}

/// The file that the configuration names as the one with the weights, which goes before the usual names.
fn configured_name(folder: &Path) -> Result<Option<String>> {
    let named = config::read(folder)?.and_then(|mut config| config.remove("transformers_weights"));
    match named {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if is_plain_name(&name) => Ok(Some(name)),
        Some(other) => Err(Error::checkpoint(
            &folder.join("config.json"),
            format!(
                "`transformers_weights` should be the plain name of a file in the folder, but is {}",
                quote(&other.to_string())
            ),
        )),
    }
}

/// The names in the folder, in order.
fn list(folder: &Path) -> Result<Vec<String>> {
    let refuse = |error| Error::io(folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(refuse)? {
        names.push(entry.map_err(refuse)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// The first of the names, and how many more there are.
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

fn refuse_adapter(path: &Path, name: &str) -> Error {
    Error::checkpoint(
        path,
        format!(
            "{} is a LoRA adapter, which is not read yet; merge it into its base model first, with peft's \
             `model.merge_and_unload()`, and save the result",
            quote(name)
        ),
    )
}

/// How many shards there are, if the name is that of a shard: 2 in `model-00001-of-00002.safetensors`.
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
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..14).map(|number| number.to_string()).collect();
        assert!(describe(&names).ends_with("`11` and 2 more"));
        assert_eq!(describe(&names[..2]), "`0`, `1`");
    }
}
