//! How far a head has moved: every statistic, from two weight vectors.
//!
//! # How a head is measured
//!
//! 1. `weight_vector` holds the weights of base and tuned; `block` decodes 2048 of their entries at a time.
//! 2. `precision` chooses `f32` or `f64` and the series for each block; `series` and `exponential` are those.
//! 3. `vector_sums` sums block after block (`block_operation`, `block_sums`, `weight_change`); `segments` and `sign_bounds`
//!    find where the difference of the running sums keeps its sign, so that its area needs no entry.
//! 4. `softmax_sums`, `divergence` and `wasserstein` combine the sums; `head_with_offset` measures a head anew whose
//!    exponents are too large.
//! 5. `group_measurement` combines Q, K and V to a `head`; `product` does so for the product form.
//! 6. `table` has the formula of each statistic; `sorted_wasserstein` is computed on request.

mod block;
mod block_operation;
mod block_sums;
mod divergence;
mod exponential;
mod group_measurement;
mod head;
mod head_with_offset;
mod precision;
mod product;
mod segments;
mod series;
mod sign_bounds;
mod softmax_sums;
mod sorted_wasserstein;
mod table;
mod vector_sums;
mod wasserstein;
mod weight_change;
mod weight_vector;

pub use group_measurement::GroupMeasurement;
pub use head::{HeadMeasurements, NonFiniteIn};
pub use product::{HeadMatrix, HeadProduct, KeyValueProduct, NonFiniteMatrix};
pub use table::{STATISTICS, Statistic};
pub use vector_sums::{NonFiniteEntry, VectorSums};
pub use weight_vector::{StoredWeights, WeightVector};
