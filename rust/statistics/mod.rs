//! How far a head has moved: every statistic, from two weight vectors.

mod displacement;
mod divergence;
mod exponential;
mod head;
mod part;
mod real;
mod softmax;
mod table;
mod transport;

pub use head::{Measured, PartSums, measure};
pub use part::{Part, Stored};
pub use softmax::NotFinite;
pub use table::{STATISTICS, Statistic};
