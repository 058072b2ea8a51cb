//! The header of a safetensors file. An input is a whole file.

use alps::checkpoint::Checkpoint;
use safetensors::SafeTensors;

use super::store::{Files, location};

/// What alps refuses and the `safetensors` crate accepts: it keeps the last of two tensors of one name, ignores unknown
/// keys, and knows nothing of torch's wrappers.
const STRICTER: [&str; 4] =
    ["appears twice", "unknown field", "which a wrapper of torch has renamed", "expected a JSON object"];

/// Opens the file, and compares what is read with what the `safetensors` crate reads.
pub fn run(input: &[u8]) -> bool {
    const PATH: &str = "m/model.safetensors";
    let opened = Checkpoint::open(location(Files::default().with(PATH, input), PATH));
    let expected = SafeTensors::deserialize(input);
    let (checkpoint, expected) = match (opened, expected) {
        (Ok(checkpoint), Ok(expected)) => (checkpoint, expected),
        (Err(_), Err(_)) => return false,
        (Ok(_), Err(error)) => panic!("only safetensors refuses the file: {error}"),
        (Err(error), Ok(_)) => {
            let error = error.to_string();
            assert!(
                STRICTER.iter().any(|reason| error.contains(reason)),
                "only alps refuses the file: {error}"
            );
            return false;
        }
    };
    // Names may differ by the parts that wrappers add.
    let mut found = Vec::new();
    for (_, tensor) in checkpoint.tensors() {
        let mut bytes = vec![0; tensor.length as usize];
        checkpoint.read_at(tensor, 0, &mut bytes).expect("a tensor is in its file");
        assert!(checkpoint.read_at(tensor, 1, &mut bytes).is_err(), "there is a byte after a tensor");
        found.push((tensor.offset, tensor.dtype, tensor.shape.to_vec(), bytes));
    }
    let start = input.as_ptr().addr();
    let mut expected: Vec<_> = (expected.tensors().into_iter())
        .map(|(_, view)| {
            let offset = (view.data().as_ptr().addr() - start) as u64;
            (offset, view.dtype(), view.shape().to_vec(), view.data().to_vec())
        })
        .collect();
    let key = |(offset, dtype, shape, _): &(u64, safetensors::Dtype, Vec<usize>, Vec<u8>)| {
        (*offset, format!("{dtype}"), shape.clone())
    };
    found.sort_by_key(key);
    expected.sort_by_key(key);
    assert_eq!(found, expected);
    true
}
