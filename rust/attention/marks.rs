//! What gives away that a layer's attention is linear, although its tensors are named as those of softmax.

use std::collections::BTreeMap;

/// Tensors that stand beside the projections of linear attention only.
const MARKS: [&str; 9] =
    ["A_log", "dt_bias", "q_conv1d", "k_conv1d", "v_conv1d", "q_conv", "conv1d", "output_gate", "slope_rate"];

/// The paths beside whose projections there is such a tensor, and its name.
pub(super) fn linear_attention<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    let mut marked = BTreeMap::new();
    for name in names {
        for mark in MARKS {
            let own = name.strip_suffix(".weight").unwrap_or(name);
            if let Some(path) = own.strip_suffix(mark).and_then(|path| path.strip_suffix('.')) {
                marked.insert(path, mark);
            }
        }
    }
    marked
}
