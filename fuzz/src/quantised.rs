//! Quantised modules. An input is the text of `config.json`, a zero byte, the header of the weights, a zero byte, the text
//! of `quantize_config.json`, a zero byte, and the bytes of the weights.

use std::sync::Arc;

use alps::checkpoint::Checkpoint;
use alps::weights::quantised::Quantisation;

use super::store::{Files, file_with_header, location, parts};

/// The most weights of a module that are read.
const MOST_WEIGHTS: usize = 1 << 14;

/// Opens every module, and reads its rows together and one by one.
pub fn run(input: &[u8]) -> bool {
    let [config, header, beside, data] = parts(input);
    let mut files = Files::default().with("m/config.json", config);
    files = files.with("m/model.safetensors", &file_with_header(header, data));
    if !beside.is_empty() {
        files = files.with("m/quantize_config.json", beside);
    }
    let Ok(checkpoint) = Checkpoint::open(location(files, "m")) else { return false };
    let checkpoint = Arc::new(checkpoint);
    let Ok(config) = checkpoint.config() else { return false };
    let Ok(quantisation) = Quantisation::of(&checkpoint, &config) else { return false };
    let mut was_read = false;
    for module in quantisation.modules() {
        let Ok(Some(opened)) = quantisation.open(module) else { continue };
        let (matrix, [rows, columns]) = (&opened.matrix, opened.matrix.features());
        let read = (MOST_WEIGHTS / columns.max(1)).min(rows);
        let row_bytes = columns * matrix.dtype().size();
        let (mut together, mut scratch) = (vec![0; read * row_bytes], Vec::new());
        let whole = matrix.read_rows(0..read, &mut together, &mut scratch);
        let mut apart = vec![0; read * row_bytes];
        let each = (0..read).try_for_each(|row| {
            matrix.read_rows(row..row + 1, &mut apart[row * row_bytes..][..row_bytes], &mut scratch)
        });
        match (whole, each) {
            (Ok(()), Ok(())) => {
                was_read = true;
                assert!(together == apart, "{module}: rows depend on those that are read with them");
            }
            (Err(_), Err(_)) => {}
            (whole, each) => panic!("{module}: read together {whole:?}, one by one {each:?}"),
        }
    }
    was_read
}
