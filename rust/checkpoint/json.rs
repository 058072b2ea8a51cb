//! Reads the JSON files of a checkpoint, more strictly than JSON is defined, in memory that their size bounds.
//!
//! # How memory is bounded
//!
//! Headers and indexes, which may have millions of entries, are read member by member ([`Members`]) into tables
//! (`name_table`). Configurations become trees of values, which take up to a hundred times the memory of their text, so
//! [`weigh`] first adds up what the values will take and refuses the text if that is too much.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Location;
use super::file::OpenFile;
use crate::error::{Error, Result, shorten};

/// The largest index that is read into memory. The largest known ones have about 10 MB.
pub(super) const MAX_INDEX: u64 = 256 << 20;

/// The largest configuration that is read. The largest known ones have about 1 MB.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;

/// The most memory that the values of a configuration may take. Those of the largest known ones, which name 21,000 classes,
/// take almost as much.
const MAX_VALUES: u64 = 8 << 20;

/// Reads the whole text of a file of at most `most` bytes.
pub(crate) fn read_text(location: &Location, most: u64) -> Result<String> {
    let file = OpenFile::open(location, 0, &Arc::default())?;
    let (path, length) = (location.path(), file.length);
    if length > most {
        let problem =
            format!("the file has {length} bytes, more than the {most} that are read of such a file");
        return Err(Error::checkpoint(path, problem));
    }
    String::from_utf8(file.read_bytes(0, length)?).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        Error::checkpoint(path, format!("the file is not UTF-8 text: byte {position} is out of place"))
    })
}

/// The error of the `part` (the index, the header) of a file that does not parse.
pub(crate) fn refusal(path: &Path, part: &str, error: &serde_json::Error) -> Error {
    Error::checkpoint(path, format!("{part} cannot be read: {}", shorten(&error.to_string(), 500)))
}

/// A text that is borrowed from the document unless it has escapes.
#[derive(Deserialize)]
pub(super) struct Text<'t>(#[serde(borrow)] pub(super) Cow<'t, str>);

/// Takes the members of an object, one by one.
pub(super) trait TakeMember {
    /// Takes the value of a key from `members`.
    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        members: &mut A,
    ) -> std::result::Result<(), A::Error>;
}

/// The members of a JSON object, which are given to the taker.
pub(super) struct Members<'t, T>(pub(super) &'t mut T);

impl<'de, T: TakeMember> DeserializeSeed<'de> for Members<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: TakeMember> Visitor<'de> for Members<'_, T> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key()? {
            self.0.take(&key, &mut map)?;
        }
        Ok(())
    }
}

/// Reads the object in `text`.
pub(super) fn read_members(text: &str, taker: &mut impl TakeMember) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Members(taker).deserialize(&mut deserializer)?;
    deserializer.end()
}

/// The memory that the parts of a tree of values take at most, besides the bytes of texts.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    /// A value in a list or by itself.
    pub(crate) value: u64,
    /// A text, for each byte as well as by itself.
    pub(crate) text: (u64, u64),
    pub(crate) list: u64,
    pub(crate) object: u64,
    /// A member of an object, besides its name and its value.
    pub(crate) member: u64,
}

/// Those of `serde_json::Value`.
const VALUE_COSTS: Costs = Costs { value: 64, text: (1, 24), list: 16, object: 720, member: 64 };

/// Refuses the text of a configuration whose values would take more memory than that of any known one.
pub(crate) fn weigh(text: &str) -> serde_json::Result<()> {
    weigh_by(text, VALUE_COSTS, MAX_VALUES)
}

/// Refuses a JSON document whose values would take more than `most` bytes by these costs.
pub(crate) fn weigh_by(text: &str, costs: Costs, most: u64) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut left = most;
    Weigh { costs, most, left: &mut left }.deserialize(&mut deserializer)?;
    deserializer.end()
}

struct Weigh<'l> {
    costs: Costs,
    most: u64,
    left: &'l mut u64,
}

impl Weigh<'_> {
    fn again(&mut self) -> Weigh<'_> {
        Weigh { costs: self.costs, most: self.most, left: self.left }
    }

    fn add<E: serde::de::Error>(&mut self, cost: u64) -> std::result::Result<(), E> {
        let most = self.most;
        *self.left = self.left.checked_sub(cost).ok_or_else(|| {
            E::custom(format_args!("its values would take more than {most} bytes of memory"))
        })?;
        Ok(())
    }

    fn add_text<E: serde::de::Error>(&mut self, text: &str) -> std::result::Result<(), E> {
        let (of_byte, of_text) = self.costs.text;
        self.add((text.len() as u64).saturating_mul(of_byte).saturating_add(of_text))
    }
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(mut self) -> std::result::Result<(), E> {
        self.add(self.costs.value)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> std::result::Result<(), E> {
        self.visit_unit()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> std::result::Result<(), E> {
        self.visit_unit()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> std::result::Result<(), E> {
        self.visit_unit()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> std::result::Result<(), E> {
        self.visit_unit()
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> std::result::Result<(), E> {
        self.add(self.costs.value)?;
        self.add_text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<(), A::Error> {
        self.add(self.costs.value + self.costs.list)?;
        while list.next_element_seed(self.again())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<(), A::Error> {
        self.add(self.costs.value + self.costs.object)?;
        while let Some(Text(key)) = map.next_key()? {
            self.add_text(&key)?;
            self.add(self.costs.member)?;
            map.next_value_seed(self.again())?;
        }
        Ok(())
    }
}

/// The error of a name that appears twice.
pub(super) fn twice(name: &str) -> String {
    format!("{} appears twice", crate::error::quote(name))
}

/// An error of a reader of members, with a name that says where.
pub(super) fn at<E: serde::de::Error>(name: &str, error: &E) -> E {
    E::custom(format_args!("{}: {error}", crate::error::quote(name)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn dense_documents_are_refused_and_usual_ones_are_not() {
        for piece in ["0", "[]", "{}", "\"\"", "{\"\":0}", "\"\\u0061\"", "1e9", "null", "[[]]"] {
            let text = format!("[{}]", vec![piece; 1 << 18].join(","));
            let error = weigh(&text).unwrap_err().to_string();
            assert!(error.starts_with("its values would take more than 8388608 bytes"), "{piece}: {error}");
        }
        let labels: Vec<String> =
            (0..21_843).map(|label| format!("\"{label}\": \"n{label:08} kind\"")).collect();
        let inverse: Vec<String> =
            (0..21_843).map(|label| format!("\"n{label:08} kind\": {label}")).collect();
        let text =
            format!("{{\"id2label\": {{{}}}, \"label2id\": {{{}}}}}", labels.join(","), inverse.join(","));
        weigh(&text).unwrap();
        for malformed in ["", "{", "[1,]", "{\"a\":1} 2", "\"\\ud800\"", &"[".repeat(1000)] {
            assert!(weigh(malformed).is_err(), "{malformed}");
        }
    }
}
