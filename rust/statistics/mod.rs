//! How far a head has moved: every statistic, from two weight vectors.

mod accumulator;
mod block;
mod displacement;
mod divergence;
mod exponential;
mod head;
mod lanes;
mod part;
mod product;
mod real;
mod segments;
mod series;
mod softmax;
mod table;
mod transport;
mod values;
mod way;

pub use head::{Heads, Measured, NotFiniteIn, PartSums};
pub use part::{Part, Stored};
pub use product::{MatrixPair, Middle, Product, Refused};
pub use softmax::NotFinite;
pub use table::{STATISTICS, Statistic};
