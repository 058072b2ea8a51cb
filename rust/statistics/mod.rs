//! How far a head has moved: every statistic, from two weight vectors.
//!
//! # How a head is measured
//!
//! 1. `weight_vector` holds the weights of base and tuned; `block` decodes 2048 of their entries at a time.
//! 2. `precision` chooses `f32` or `f64` for each block, and the series of `series` and `exponential`.
//! 3. `vector_sums` sums block after block (`block_operation`, `block_sums`, `weight_change`); `segments` and
//!    `sign_bounds` find where D keeps its sign, so that the sum of |D| needs no single entry.
//! 4. `softmax_sums`, `divergence` and `wasserstein` combine the sums; `head_with_offset` measures a head again whose
//!    exponents are too large.
//! 5. `group_measurement` combines Q, K and V to a `head`; `product` and `doubled_product` compute the vector of the product form.
//! 6. `table` has the formula of each statistic; `sorted_wasserstein` is computed on request.
//!
//! # Symbols
//!
//! B stands for the base checkpoint, T for the tuned one. Every file of this folder uses these symbols:
//!
//! | | |
//! |---|---|
//! | theta_B, theta_T | the weight vector of a head: its queries, and the keys and values of its group |
//! | delta | theta_T - theta_B |
//! | N | the number of entries of theta |
//! | x, y | theta_B and delta over the temperature, less an offset if there is one: the exponents are x and x + y |
//! | m | x + y / 2, the mean of the two exponents of an entry |
//! | w | e^m |
//! | u, c | the difference of the two exponentials of an entry, e^(x + y) - e^x, and their mean |
//! | U, C | the running sums of u and c over the entries of a head |
//! | rho | the ratio of the totals of u and c; `ratio` in the code |
//! | D | U - rho C: the difference of the two cumulative distributions, not normalised |
//! | Z_B, Z_T | the sums of all exponentials of B and of T, the normalisers of the softmaxes |
//! | P_B, P_T | the softmaxes of theta_B and theta_T over the temperature |
//! | z | log(P_T / P_B) of an entry: y - log(Z_T / Z_B) |
//! | W1 | the Wasserstein distance of order 1 |
//! | Q, K, V | the query, key and value matrix of a head; dQ, dK, dV are their changes |

mod block;
mod block_operation;
mod block_sums;
mod divergence;
mod doubled_product;
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
pub use product::{HeadMatrix, HeadProduct, KeyValueProduct, ProductError};
pub use table::{STATISTICS, Statistic};
pub use vector_sums::{NonFiniteEntry, VectorSums};
pub use weight_vector::{StoredWeights, WeightVector};
