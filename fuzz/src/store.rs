//! Files in memory, and the parts of an input.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use alps::checkpoint::{FileStatus, Location, Reply, Store, StoredBytes};

/// A store whose files are in memory, by their paths.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files(BTreeMap<String, Arc<[u8]>>);

impl Files {
    pub(crate) fn with(mut self, path: &str, bytes: &[u8]) -> Self {
        self.0.insert(path.to_owned(), bytes.into());
        self
    }

    pub(crate) fn into_store(self) -> Arc<dyn Store> {
        Arc::new(self)
    }

    fn get(&self, path: &str) -> io::Result<&Arc<[u8]>> {
        self.0.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The file or folder in a store of its own.
pub(crate) fn location(files: Files, path: &str) -> Location {
    Location::in_store(path, files.into_store())
}

impl Store for Files {
    fn names(&self, folder: &str, reply: Reply<Vec<String>>) {
        let folder_prefix = format!("{folder}/");
        let within = self.0.keys().filter_map(|path| path.strip_prefix(&folder_prefix));
        let names: Vec<String> =
            within.map(|rest| rest.split('/').next().unwrap_or(rest).to_owned()).collect();
        reply(match (self.0.contains_key(folder), names.is_empty()) {
            (true, _) => Err(io::ErrorKind::NotADirectory.into()),
            (false, true) => Err(io::ErrorKind::NotFound.into()),
            (false, false) => Ok(names),
        });
    }

    fn status(&self, file: &str, _fresh: bool, reply: Reply<FileStatus>) {
        let status = |bytes: &Arc<[u8]>| FileStatus { length: bytes.len() as u64, version: String::new() };
        reply(self.get(file).map(status));
    }

    fn read(&self, file: &str, range: Range<u64>, reply: Reply<StoredBytes>) {
        let part = |bytes: &Arc<[u8]>| -> StoredBytes {
            // A range beyond the file would be a fault of the caller.
            Box::new(bytes[range.start as usize..range.end as usize].to_vec())
        };
        reply(self.get(file).map(part));
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// The parts of an input, which zero bytes divide; those that it lacks are empty. The last one holds the rest.
pub(crate) fn parts<const COUNT: usize>(input: &[u8]) -> [&[u8]; COUNT] {
    let mut parts = input.splitn(COUNT, |byte| *byte == 0);
    [(); COUNT].map(|()| parts.next().unwrap_or_default())
}

/// The largest file that [`file_with_header`] makes.
const LARGEST: usize = 1 << 16;

/// A safetensors file with this text as its header. The data reach to the largest number after a `data_offsets`, and
/// repeat `data`, or else numbers that are small and finite in every format.
pub(crate) fn file_with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    let length = data_length(header).min(LARGEST);
    if data.is_empty() {
        // Odd bytes hold the exponents.
        file.extend(
            (0..length).map(|at| if at % 2 == 1 { 0x38 + (at / 16 % 3) as u8 } else { (at * 37) as u8 }),
        );
    } else {
        file.extend(data.iter().cycle().take(length));
    }
    file
}

fn data_length(header: &[u8]) -> usize {
    let Ok(header) = serde_json::from_slice::<serde_json::Value>(header) else { return 0 };
    let tensors = header.as_object().into_iter().flat_map(|members| members.values());
    let ends = tensors.filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    ends.max().unwrap_or(0) as usize
}
