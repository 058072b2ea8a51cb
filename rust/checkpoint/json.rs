//! Reads the JSON files of a checkpoint, more strictly than JSON is defined.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::Location;
use super::file::OpenFile;
use crate::error::{Error, Result, quote, shorten};

/// The largest index that is read into memory. The largest known ones have about 10 MB.
pub(super) const MAX_INDEX: u64 = 256 << 20;

/// The largest configuration that is read. Its values take up to thirteen times its bytes of memory; the largest known
/// ones have about 1 MB.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;

/// Reads the whole text of a file of at most `most` bytes.
pub(crate) fn read_text(location: &Location, most: u64) -> Result<String> {
    let file = OpenFile::open(location, 0, &Arc::default())?;
    let (path, length) = (location.path(), file.length);
    if length > most {
        let problem =
            format!("the file has {length} bytes, more than the {most} that are read of such a file");
        return Err(Error::checkpoint(path, problem));
    }
    let mut bytes = vec![0; length as usize];
    file.read(0, &mut bytes, || None)?;
    String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        Error::checkpoint(path, format!("the file is not UTF-8 text: byte {position} is out of place"))
    })
}

/// The error of the `part` (the index, the header) of a file that does not parse.
pub(crate) fn refusal(path: &Path, part: &str, error: &serde_json::Error) -> Error {
    Error::checkpoint(path, format!("{part} cannot be read: {}", shorten(&error.to_string(), 500)))
}

/// The value of one key of an [`Object`], whose type may depend on the key.
pub(super) trait Member<'de>: Sized {
    fn read<A: MapAccess<'de>>(key: &str, map: &mut A) -> std::result::Result<Self, A::Error>;
}

impl<'de> Member<'de> for String {
    fn read<A: MapAccess<'de>>(_: &str, map: &mut A) -> std::result::Result<Self, A::Error> {
        map.next_value()
    }
}

/// A JSON object in which no key appears twice. The usual maps keep the last value silently.
pub(super) struct Object<M>(pub(super) BTreeMap<String, M>);

impl<'de, M: Member<'de>> Deserialize<'de> for Object<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<M>(PhantomData<M>);

impl<'de, M: Member<'de>> Visitor<'de> for ObjectVisitor<M> {
    type Value = Object<M>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if members.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{} appears twice", quote(&key))));
            }
            let member = M::read(&key, &mut map)
                .map_err(|error| A::Error::custom(format_args!("{}: {error}", quote(&key))))?;
            members.insert(key, member);
        }
        Ok(Object(members))
    }
}

/// A structure that must be written as a JSON object. Derived code also accepts an array of its fields.
pub(super) struct Record<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Record<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(RecordVisitor(PhantomData))
    }
}

struct RecordVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for RecordVisitor<T> {
    type Value = Record<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Record)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_spelled_in_two_ways_is_still_one_key() {
        let error = serde_json::from_str::<Object<String>>(r#"{"a": "1", "\u0061": "2"}"#).err().unwrap();
        assert!(error.to_string().starts_with("`a` appears twice at line 1"), "{error}");
    }
}
