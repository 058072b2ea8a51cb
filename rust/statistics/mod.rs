//! How far a head has moved: every statistic, from two weight vectors.

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
