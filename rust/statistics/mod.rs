//! How far a head has moved: every statistic, from two weight vectors.

mod accumulate;
pub(crate) mod block;
mod displacement;
mod divergence;
mod exponential;
mod head;

mod product;
mod weight_vector;

mod precision;
mod series;
mod sign_bounds;
mod softmax_sums;
mod sorted_wasserstein;
mod table;
mod wasserstein;

pub use head::{GroupMeasurement, HeadMeasurements, NonFiniteIn, VectorSums};
pub use product::{HeadMatrix, HeadProduct, KeyValueProduct, NonFiniteMatrix};
pub use softmax_sums::NonFiniteEntry;
pub use table::{STATISTICS, Statistic};
pub use weight_vector::{StoredWeights, WeightVector};
