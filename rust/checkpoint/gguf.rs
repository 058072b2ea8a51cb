//! Recognises the files of llama.cpp, which are not read.

use std::path::Path;

use crate::error::{Error, quote};

/// Whether the name of a file is that of a GGUF file.
pub(super) fn is_name(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// The error of `path` whose file `name` is a GGUF file.
pub(super) fn refusal(path: &Path, name: &str) -> Error {
    Error::checkpoint(
        path,
        format!(
            "{} is a GGUF file, which is not read; expected safetensors. To convert it, load it with transformers \
             (`from_pretrained(folder, gguf_file=...)`), which dequantises it, and save the model with \
             `model.save_pretrained(folder)`",
            quote(name)
        ),
    )
}
