//! Reads the header of one safetensors file.
//!
//! The `safetensors` crate defines the dtypes. It does not read the header, since it needs the whole file in memory,
//! silently keeps the last of several tensors of one name, and does not name the tensor in its errors. The tests
//! compare this reader with it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::value::{Error as ValueError, MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::file::OpenFile;
use super::json::{self, Members, TakeMember, Text};
use super::name_table::NameTable;
use super::{Shape, Tensor, pickle};
use crate::error::{Error, Result, quote};
use crate::memory;

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// The bytes before the header, which hold its length.
const PREFIX: u64 = 8;

/// The bytes at the beginning of a file that are read together. Most headers are shorter.
const BEGINNING: u64 = 100 << 10;

/// The beginning of the text file that Git LFS puts in place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Reads the tensors of `file`, which has this number among the files of its checkpoint.
///
/// Checks that the tensors fill the file from the header to its end without a gap, and that each is as long as its
/// shape requires.
pub(super) fn read(file: &OpenFile, number: usize) -> Result<NameTable<Tensor>> {
    let path = file.path();
    let text = read_text(file)?;
    let data_start = PREFIX + text.len() as u64;
    let mut reader = HeaderReader { file, number, tensors: NameTable::default(), failure: None };
    let read = json::read_members(&text, &mut reader);
    if let Some(failure) = reader.failure {
        return Err(failure);
    }
    let refusal = |error| json::refusal(path, "the header", &error);
    read.map_err(refusal)?;
    drop(text);
    let mut tensors = reader.tensors;
    file.check_cancelled()?;
    if let Some(name) = tensors.sort() {
        return Err(refusal(serde_json::Error::custom(json::twice(name))));
    }
    file.check_cancelled()?;
    check_ranges(&tensors, data_start, file)?;
    for tensor in tensors.values_mut() {
        tensor.offset += data_start;
    }
    Ok(tensors)
}

/// Reads the text of the header.
fn read_text(file: &OpenFile) -> Result<String> {
    let (path, file_length) = (file.path(), file.length);
    let refusal = |problem: String| Error::checkpoint(path, problem);

    if file_length == 0 {
        return Err(refusal("the file is empty (0 bytes)".to_owned()));
    }
    let beginning = file.read_bytes(0, file_length.min(BEGINNING))?;
    let start = &beginning[..beginning.len().min(LFS_POINTER.len())];
    if pickle::is_content(start) {
        let name = path.file_name().unwrap_or(path.as_os_str());
        return Err(pickle::refusal(path, &name.to_string_lossy()));
    }
    if start == LFS_POINTER {
        return Err(refusal(format!(
            "the file is a Git LFS pointer of {file_length} bytes, not the weights it points to; fetch \
             them with `git lfs pull`"
        )));
    }
    let Some(prefix) = start.first_chunk::<{ PREFIX as usize }>() else {
        return Err(refusal(format!(
            "the file has {file_length} bytes, fewer than the {PREFIX} that hold the length of a safetensors \
             header: it is truncated, or not a safetensors file"
        )));
    };
    let length = u64::from_le_bytes(*prefix);
    if length > MAX_HEADER {
        return Err(refusal(format!(
            "the header claims to have {length} bytes, more than the {MAX_HEADER} that the format \
             allows: this is not a safetensors file, or its beginning is damaged"
        )));
    }
    if length > file_length - PREFIX {
        return Err(refusal(format!(
            "the header claims to have {length} bytes, which with the {PREFIX} before it is more than the \
             {file_length} of the file: it is truncated, or not a safetensors file"
        )));
    }
    let header = match beginning.get(PREFIX as usize..(PREFIX + length) as usize) {
        Some(header) => header.to_vec(),
        None => file.read_rest(PREFIX, length, &beginning[PREFIX as usize..])?,
    };
    let text = String::from_utf8(header).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        refusal(format!("the header is not UTF-8 text: its byte {position} is out of place"))
    })?;
    match text.chars().next() {
        Some('{') => Ok(text),
        Some(other) => {
            let found = quote(other.encode_utf8(&mut [0; 4]));
            Err(refusal(format!("the header should begin with `{{`, but begins with {found}")))
        }
        None => Err(refusal("the header should begin with `{`, but is empty (0 bytes)".to_owned())),
    }
}

/// Reads the members of the header.
struct HeaderReader<'f> {
    file: &'f OpenFile,
    number: usize,
    tensors: NameTable<Tensor>,
    failure: Option<Error>,
}

impl HeaderReader<'_> {
    fn add(&mut self, name: &str, entry: Entry<'_>) -> Result<()> {
        let path = self.file.path();
        if self.tensors.len().is_multiple_of(1024) {
            self.file.check_cancelled()?;
        }
        let tensor = entry
            .check(self.number)
            .map_err(|problem| Error::checkpoint(path, format!("tensor {}: {problem}", quote(name))))?;
        self.tensors.push(name, tensor).map_err(|error| Error::in_file(path, error))
    }
}

impl TakeMember for HeaderReader<'_> {
    fn take<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        members: &mut A,
    ) -> std::result::Result<(), A::Error> {
        if key == "__metadata__" {
            return members.next_value::<Metadata>().map(drop).map_err(|error| json::at(key, &error));
        }
        let entry = members.next_value::<EntryObject>().map_err(|error| json::at(key, &error))?.0;
        self.add(key, entry).map_err(|error| {
            self.failure = Some(error);
            A::Error::custom("")
        })
    }
}

/// The free texts of the header, which are ignored.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Texts;

        impl TakeMember for Texts {
            fn take<'de, A: MapAccess<'de>>(
                &mut self,
                key: &str,
                members: &mut A,
            ) -> std::result::Result<(), A::Error> {
                members.next_value::<Text<'_>>().map(drop).map_err(|error| json::at(key, &error))
            }
        }

        struct OrNull;

        impl<'de> Visitor<'de> for OrNull {
            type Value = Metadata;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_unit<E>(self) -> std::result::Result<Metadata, E> {
                Ok(Metadata)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Metadata, A::Error> {
                Members(&mut Texts).visit_map(map).map(|()| Metadata)
            }
        }

        deserializer.deserialize_any(OrNull)
    }
}

/// The entry of one tensor in the header.
///
/// An unknown key is refused, since it could mean that the bytes have another meaning. The `safetensors` crate ignores
/// it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'t> {
    #[serde(borrow)]
    dtype: Cow<'t, str>,
    #[serde(deserialize_with = "read_shape")]
    shape: Shape,
    data_offsets: (u64, u64),
}

/// An entry that must be written as a JSON object. Derived code also accepts an array of its fields.
struct EntryObject<'t>(Entry<'t>);

impl<'de: 't, 't> Deserialize<'de> for EntryObject<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = EntryObject<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
                Entry::deserialize(MapAccessDeserializer::new(map)).map(EntryObject)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// The most dimensions of a tensor, which are those that torch can load.
const MOST_DIMENSIONS: usize = 64;

fn read_shape<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Shape, D::Error> {
    struct Sizes;

    impl<'de> Visitor<'de> for Sizes {
        type Value = Shape;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> std::result::Result<Shape, A::Error> {
            let mut shape = Shape::new();
            while let Some(size) = sizes.next_element()? {
                if shape.len() == MOST_DIMENSIONS {
                    let problem = format!("expected at most {MOST_DIMENSIONS} dimensions, found more");
                    return Err(A::Error::custom(problem));
                }
                shape.try_reserve(1).map_err(A::Error::custom)?;
                shape.push(size);
            }
            Ok(shape)
        }
    }

    deserializer.deserialize_seq(Sizes)
}

impl Entry<'_> {
    /// Makes the tensor, whose offset counts from the end of the header; the error says what is wrong with it.
    fn check(self, file: usize) -> std::result::Result<Tensor, String> {
        let Entry { dtype, shape, data_offsets: (start, end) } = self;
        let name: StrDeserializer<ValueError> = (*dtype).into_deserializer();
        let dtype = safetensors::Dtype::deserialize(name).map_err(|_| {
            format!("its dtype {} is none that the safetensors format defines", quote(&dtype))
        })?;

        let described = || format!("shape {} of {dtype}", describe_shape(&shape));
        let bits = shape
            .iter()
            .try_fold(dtype.bitsize() as u64, |bits, &size| bits.checked_mul(size as u64))
            .ok_or_else(|| format!("{} is more than any file can hold", described()))?;
        if bits % 8 != 0 {
            return Err(format!("{} takes {bits} bits, which is not a whole number of bytes", described()));
        }
        let length = bits / 8;
        match end.checked_sub(start) {
            None => Err(format!("its data_offsets [{start}, {end}] end before they begin")),
            Some(found) if found != length => Err(format!(
                "{} takes {length} bytes, but its data_offsets [{start}, {end}] hold {found}",
                described()
            )),
            Some(_) => Ok(Tensor { dtype, shape, file, offset: start, length }),
        }
    }
}

/// Formats a shape as in the header, cut if it has very many dimensions.
fn describe_shape(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().take(16).map(usize::to_string).collect();
    let rest = if shape.len() > 16 { format!(", … ({} dimensions)", shape.len()) } else { String::new() };
    format!("[{}{rest}]", sizes.join(", "))
}

/// Checks that the tensors fill the rest of the file, each beginning where another ends.
fn check_ranges(tensors: &NameTable<Tensor>, data_start: u64, file: &OpenFile) -> Result<()> {
    let refusal = |problem: String| Err(Error::checkpoint(file.path(), problem));
    let range = |place: &u32| {
        let (name, Tensor { offset, length, .. }) = tensors.at(*place as usize);
        (*offset, offset + length, name)
    };
    let mut places =
        memory::collect(0..tensors.len() as u32).map_err(|error| Error::io(file.path(), error))?;
    places.sort_unstable_by_key(range);

    let file_length = file.length;
    let data_length = file_length - data_start;
    let mut expected = 0;
    let mut before: Option<&str> = None;
    let mut outside: Option<(u64, u64, &str)> = None;
    for (start, end, name) in places.iter().map(range) {
        if start != expected {
            let relation = if start < expected { "overlap" } else { "leave a gap" };
            let neighbour = before.map_or_else(
                || "the data begins".to_owned(),
                |before| format!("tensor {} before it ends", quote(before)),
            );
            return refusal(format!(
                "tensor {} begins at byte {start} of the data, but {neighbour} at byte {expected}: they \
                 {relation}",
                quote(name)
            ));
        }
        if end > data_length {
            outside = outside.or(Some((start, end, name)));
        }
        expected = end;
        before = Some(name);
    }
    if let Some((start, end, name)) = outside {
        return refusal(format!(
            "tensor {} is at bytes {start} to {end} of the data, but the file, of {file_length} bytes, \
             has only {data_length} bytes of data and should have {expected}: it is truncated",
            quote(name)
        ));
    }
    if expected < data_length {
        return refusal(format!(
            "the tensors end at byte {expected} of the data, but the file, of {file_length} bytes, has \
             {data_length} bytes of data; bytes at the end belonging to no tensor: {}",
            data_length - expected
        ));
    }
    Ok(())
}
