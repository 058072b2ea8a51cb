//! Reads the index of a sharded checkpoint.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::de::{Error as _, IgnoredAny, MapAccess};

use super::Location;
use super::json::{self, Members, TakeMember, Text};
use super::name_table::{LONGEST_NAME, NameTable};
use crate::error::{Error, Result, quote};

/// The most shards of a checkpoint. The largest known ones have some hundred.
const MOST_SHARDS: usize = 65_536;

/// Which tensors are in which shard.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The shards, in order of name.
    pub(super) shards: Vec<String>,
    /// The place of each tensor's shard, and whether the shard has the tensor.
    pub(super) tensors: NameTable<Listed>,
}

/// What is known of a tensor that an index names.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) shard: u32,
    pub(super) is_found: bool,
}

impl Index {
    /// Reads the index at `location`.
    pub(super) fn read(location: &Location) -> Result<Self> {
        let (path, text) = (location.path(), json::read_text(location, json::MAX_INDEX)?);
        let mut reader = IndexReader { location, map: None, failure: None };
        let read = json::read_members(&text, &mut reader);
        if let Some(failure) = reader.failure {
            return Err(failure);
        }
        let refusal = |error| json::refusal(path, "the index", &error);
        read.map_err(refusal)?;
        drop(text);
        let Some(WeightMap { shards, mut tensors }) = reader.map else {
            return Err(refusal(serde_json::Error::custom("missing field `weight_map`")));
        };
        location.check_cancelled()?;
        if let Some(name) = tensors.sort() {
            return Err(refusal(serde_json::Error::custom(json::twice(name))));
        }
        if tensors.len() == 0 {
            return Err(Error::checkpoint(path, "the index names no tensor: its `weight_map` is empty"));
        }
        // The shards were counted as they came; their order is that of their names.
        let mut places = vec![0; shards.len()];
        let mut names = Vec::with_capacity(shards.len());
        for (place, (name, number)) in shards.into_iter().enumerate() {
            places[number as usize] = place as u32;
            names.push(name);
        }
        tensors.values_mut().for_each(|listed| listed.shard = places[listed.shard as usize]);
        Ok(Self { shards: names, tensors })
    }

    /// The number of tensors in a shard, and the first of them.
    pub(super) fn describe(&self, shard: usize) -> (usize, &str) {
        let mut names = self.tensors.iter().filter(|(_, listed)| listed.shard as usize == shard);
        let first = names.next().map_or("", |(name, _)| name);
        (1 + names.count(), first)
    }

    /// The tensors that no shard has, with the names of the shards that should have them.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&str, &str)> {
        let missing = self.tensors.iter().filter(|(_, listed)| !listed.is_found);
        missing.map(|(name, listed)| (name, &*self.shards[listed.shard as usize]))
    }
}

struct IndexReader<'l> {
    location: &'l Location,
    map: Option<WeightMap>,
    failure: Option<Error>,
}

#[derive(Default)]
struct WeightMap {
    /// The number of each shard, in the order in which they were met.
    shards: BTreeMap<String, u32>,
    tensors: NameTable<Listed>,
}

impl TakeMember for IndexReader<'_> {
    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        members: &mut A,
    ) -> std::result::Result<(), A::Error> {
        if key != "weight_map" {
            return members.next_value::<IgnoredAny>().map(drop);
        }
        if self.map.is_some() {
            return Err(A::Error::custom(json::twice(key)));
        }
        let mut entries =
            WeightMapReader { location: self.location, map: WeightMap::default(), failure: None };
        let read = members.next_value_seed(Members(&mut entries));
        (self.map, self.failure) = (Some(entries.map), entries.failure);
        read
    }
}

struct WeightMapReader<'l> {
    location: &'l Location,
    map: WeightMap,
    failure: Option<Error>,
}

impl WeightMapReader<'_> {
    fn add(&mut self, tensor: &str, shard: &str) -> Result<()> {
        let path = self.location.path();
        let WeightMap { shards, tensors } = &mut self.map;
        if tensors.len().is_multiple_of(1024) {
            self.location.check_cancelled()?;
        }
        let number = match shards.get(shard) {
            Some(number) => *number,
            None => {
                let Some(plain) = within_folder(shard).filter(|_| shard.len() <= LONGEST_NAME) else {
                    let problem = format!(
                        "the index says that tensor {} is in {}, but a shard must be a file beside the index or in a \
                         folder there",
                        quote(tensor),
                        quote(shard)
                    );
                    return Err(Error::checkpoint(path, problem));
                };
                let next = shards.len() as u32;
                if shards.len() == MOST_SHARDS {
                    let problem = format!("expected an index of at most {MOST_SHARDS} shards, found more");
                    return Err(Error::checkpoint(path, problem));
                }
                *shards.entry(plain).or_insert(next)
            }
        };
        let listed = Listed { shard: number, is_found: false };
        tensors.push(tensor, listed).map_err(|error| Error::in_file(path, error))
    }
}

impl TakeMember for WeightMapReader<'_> {
    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        members: &mut A,
    ) -> std::result::Result<(), A::Error> {
        let Text(shard) = members.next_value().map_err(|error| json::at(key, &error))?;
        self.add(key, &shard).map_err(|error| {
            self.failure = Some(error);
            A::Error::custom("")
        })
    }
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
