//! Reads the index of a sharded checkpoint.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::Location;
use super::json::{self, Object, Record};
use crate::error::{Error, Result, quote};

/// The fields of an index file that are used.
#[derive(Deserialize)]
struct Index {
    weight_map: Object<String>,
}

/// Reads the shards that the index at `location` names, each with its tensors, both in order of name.
pub(super) fn read(location: &Location) -> Result<BTreeMap<String, Vec<String>>> {
    let (path, text) = (location.path(), json::read_text(location, json::MAX_INDEX)?);
    let Record(Index { weight_map: Object(weight_map) }) =
        serde_json::from_str(&text).map_err(|error| json::refusal(path, "the index", &error))?;

    if weight_map.is_empty() {
        return Err(Error::checkpoint(path, "the index names no tensor: its `weight_map` is empty"));
    }
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        let Some(shard) = within_folder(&shard) else {
            let problem = format!(
                "the index says that tensor {} is in {}, but a shard must be a file beside the index or in a \
                 folder there",
                quote(&tensor),
                quote(&shard)
            );
            return Err(Error::checkpoint(path, problem));
        };
        shards.entry(shard).or_default().push(tensor);
    }
    Ok(shards)
}

/// Whether `name` can only be a file of the folder that it is joined to, on any operating system.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let normal = matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none();
    normal && !name.contains(['/', '\\', '\0'])
}

/// The path without parts such as `.`: `a/b` for `./a/b`. Nothing unless it can only lead to a file in the folder that
/// it is joined to, or in one within.
fn within_folder(path: &str) -> Option<String> {
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_str().filter(|name| is_plain_name(name))?),
            _ => return None,
        }
    }
    let ends_in_a_name = names.last().is_some_and(|last| path.ends_with(*last));
    ends_in_a_name.then(|| names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_may_be_in_folders_within() {
        for (path, expected) in
            [("a", "a"), ("./a", "a"), ("a/b", "a/b"), ("./a/./b", "a/b"), ("a//b", "a/b")]
        {
            assert_eq!(within_folder(path).as_deref(), Some(expected), "{path}");
        }
        for path in ["", ".", "./", "..", "../a", "a/../b", "/a", "a/", "a/.", "a\\b", "a/b\\c", "a\0"] {
            assert_eq!(within_folder(path), None, "{path}");
        }
    }

    #[test]
    fn only_names_of_files_beside_the_index_are_plain() {
        for name in ["model-00001-of-00002.safetensors", "..a", "a b"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", "/a", "a/b", "a/", "../a", "./a", "a\\b", "..\\a", "a\0"] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
