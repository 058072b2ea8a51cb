//! Recognises pickled weights, which can run code when loaded and are therefore never parsed.

use std::path::Path;

use crate::error::{Error, quote};

const SUFFIXES: [&str; 6] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"];

/// The state of training that the Trainer and similar programs pickle beside the weights.
const TRAINING_STATE: [&str; 5] = ["optimizer", "scheduler", "scaler", "rng_state", "training_args"];

/// Whether the name of a file is that of a pickle.
pub(super) fn is_name(name: &str) -> bool {
    SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether the name of a file is that of pickled weights.
pub(super) fn is_weights_name(name: &str) -> bool {
    is_name(name) && !TRAINING_STATE.iter().any(|state| name.starts_with(state))
}

/// Whether the first nine bytes of a file are those of a pickle.
///
/// The length of a safetensors header may begin with the same bytes as a pickle or a zip archive (which torch writes),
/// but a brace follows it, the beginning of the header.
pub(super) fn is_content(start: &[u8]) -> bool {
    let zip = start.starts_with(b"PK\x03\x04");
    let pickle = start.first() == Some(&0x80) && matches!(start.get(1), Some(1..=5));
    (zip || pickle) && start.get(8) != Some(&b'{')
}

/// The error of `path` whose file `name` is a pickle.
pub(super) fn refusal(path: &Path, name: &str) -> Error {
    Error::checkpoint(
        path,
        format!(
            "{} is a pickle file, which can run code when loaded, so it is never opened; expected \
             safetensors. To convert it, load the model with transformers and save it with \
             `model.save_pretrained(folder, safe_serialization=True)`",
            quote(name)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_length_that_begins_like_a_pickle_is_not_one() {
        let mut start = 640u64.to_le_bytes().to_vec();
        assert_eq!(start[..2], [0x80, 0x02]);
        start.push(b'{');
        assert!(!is_content(&start));
        start[8] = b'}';
        assert!(is_content(&start));
    }

    #[test]
    fn state_of_training_is_not_weights() {
        assert!(is_weights_name("pytorch_model-00001-of-00002.bin"));
        assert!(!is_weights_name("optimizer.pt"));
        assert!(is_name("optimizer.pt"));
    }
}
