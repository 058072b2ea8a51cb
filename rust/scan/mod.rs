//! Scores every attention head of two checkpoints.
//!
//! # How a scan works
//!
//! 1. Both models are opened (`opened_model`), their tensors checked (`tensor_names`) and their layers, heads and
//!    sizes compared (`compatibility`, by `model_pair`).
//! 2. The threads take one key/value group after the other, in the order of the layers, and share the heads of the last
//!    ones (`schedule`). The key and value matrices of a group are read and summed once for all query heads that share
//!    them (`measure`, `group`, with `matrix_pair` and `head_rows`).
//! 3. What a store has is fetched beforehand, in the order of the groups (`checkpoint/transfers.rs`).
//! 4. The measurements of each head of a layer become one number for each statistic (`layer_scores`).
//!
//! Each thread holds the bytes of a few matrices, whatever the size of the model: it uses the memory of one group again
//! for the next, and maps at most `MAPPED_PER_THREAD` bytes (`checkpoint/range.rs`).

mod compatibility;
mod group;
mod head_rows;
mod layer_scores;
mod matrix_pair;
mod measure;
mod model_pair;
mod opened_model;
mod options;
mod schedule;
mod tensor_names;

pub(crate) use self::compatibility::check_pair;
pub(crate) use self::head_rows::StoredNumbers;
pub use self::layer_scores::{FinishedLayers, LayerScores};
pub use self::model_pair::{ModelPair, Scores};
pub use self::opened_model::{ModelPath, OpenedModel, Provenance, StoredFile};
pub use self::options::{Form, Options};
use crate::error::Result;
use crate::progress::Progress;

/// Compares two checkpoints of one model.
///
/// # Errors
///
/// Those of [`ModelPair::open`] and [`ModelPair::scan`].
pub fn scan(
    base: impl Into<ModelPath>,
    tuned: impl Into<ModelPath>,
    options: &Options,
    progress: &Progress,
) -> Result<Scores> {
    let pair = ModelPair::open(&base.into(), &tuned.into(), options.component)?;
    pair.scan(options, None, &FinishedLayers::default(), progress)
}
