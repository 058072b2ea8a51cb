//! Reads the header of one safetensors file.
//!
//! The `safetensors` crate defines the dtypes. It does not read the header, since it needs the whole file in memory,
//! silently keeps the last of several tensors of one name, and does not name the tensor in its errors. The tests
//! compare this reader with it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{IntoDeserializer, MapAccess};

use super::file::OpenFile;
use super::json::{self, Member, Object, Record};
use super::{Tensor, pickle};
use crate::error::{Error, Result, quote};

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
pub(super) fn read(file: &OpenFile, number: usize) -> Result<BTreeMap<String, Tensor>> {
    let path = file.path();
    let text = read_text(file)?;
    let Object(members) = serde_json::from_str::<Object<HeaderMember>>(&text)
        .map_err(|error| json::refusal(path, "the header", &error))?;

    let mut tensors = BTreeMap::new();
    for (name, member) in members {
        if let HeaderMember::Tensor(entry) = member {
            let tensor = entry
                .check(number)
                .map_err(|problem| Error::checkpoint(path, format!("tensor {}: {problem}", quote(&name))))?;
            tensors.insert(name, tensor);
        }
    }
    let data_start = PREFIX + text.len() as u64;
    check_ranges(&tensors, data_start, file.length).map_err(|problem| Error::checkpoint(path, problem))?;
    for tensor in tensors.values_mut() {
        tensor.offset += data_start;
    }
    Ok(tensors)
}

/// Reads the text of the header.
fn read_text(file: &OpenFile) -> Result<String> {
    let (path, file_length) = (file.path(), file.length);
    let refusal = |problem: String| Error::checkpoint(path, problem);
    let fetch = |offset: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        file.read(offset, &mut bytes, || None).map(|()| bytes)
    };

    if file_length == 0 {
        return Err(refusal("the file is empty (0 bytes)".to_owned()));
    }
    let beginning = fetch(0, file_length.min(BEGINNING))?;
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
    let mut header = beginning;
    if let Some(missing) = (PREFIX + length).checked_sub(header.len() as u64) {
        header.extend(fetch(header.len() as u64, missing)?);
    }
    header.truncate((PREFIX + length) as usize);
    header.drain(..PREFIX as usize);
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

/// The value of one key of the header.
enum HeaderMember {
    /// Free text, which is ignored.
    Metadata,
    Tensor(Entry),
}

impl<'de> Member<'de> for HeaderMember {
    fn read<A: MapAccess<'de>>(key: &str, map: &mut A) -> std::result::Result<Self, A::Error> {
        if key == "__metadata__" {
            map.next_value::<Option<Object<String>>>().map(|_| HeaderMember::Metadata)
        } else {
            map.next_value::<Record<Entry>>().map(|Record(entry)| HeaderMember::Tensor(entry))
        }
    }
}

/// The entry of one tensor in the header.
///
/// An unknown key is refused, since it could mean that the bytes have another meaning. The `safetensors` crate ignores
/// it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl Entry {
    /// Makes the tensor, whose offset counts from the end of the header; the error says what is wrong with it.
    fn check(self, file: usize) -> std::result::Result<Tensor, String> {
        let Entry { dtype, shape, data_offsets: (start, end) } = self;
        let name: StrDeserializer<ValueError> = dtype.as_str().into_deserializer();
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
fn check_ranges(
    tensors: &BTreeMap<String, Tensor>,
    data_start: u64,
    file_length: u64,
) -> std::result::Result<(), String> {
    let mut ranges: Vec<(u64, u64, &str)> = tensors
        .iter()
        .map(|(name, tensor)| (tensor.offset, tensor.offset + tensor.length, &**name))
        .collect();
    ranges.sort_unstable();

    let data_length = file_length - data_start;
    let mut expected = 0;
    let mut before: Option<&str> = None;
    let mut outside: Option<(u64, u64, &str)> = None;
    for (start, end, name) in ranges {
        if start != expected {
            let relation = if start < expected { "overlap" } else { "leave a gap" };
            let neighbour = before.map_or_else(
                || "the data begins".to_owned(),
                |before| format!("tensor {} before it ends", quote(before)),
            );
            return Err(format!(
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
        return Err(format!(
            "tensor {} is at bytes {start} to {end} of the data, but the file, of {file_length} bytes, \
             has only {data_length} bytes of data and should have {expected}: it is truncated",
            quote(name)
        ));
    }
    if expected < data_length {
        return Err(format!(
            "the tensors end at byte {expected} of the data, but the file, of {file_length} bytes, has \
             {data_length} bytes of data; bytes at the end belonging to no tensor: {}",
            data_length - expected
        ));
    }
    Ok(())
}
