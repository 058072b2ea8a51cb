//! Finds the attention heads that carry a task, by comparing the weights of a base and a tuned
//! checkpoint (ALPS, arXiv 2505.18799).

pub mod adapter;
mod aligned;
pub mod checkpoint;
mod comparable;
pub mod control;
pub mod dtype;
pub mod error;
pub mod linear;
mod lock;
mod mapping;
pub mod model;
mod options;
mod pair;
mod plain;
#[cfg(feature = "python")]
mod python;
pub mod quantised;
pub mod scan;
pub mod select;
pub mod side;
pub mod statistics;
mod turns;
pub mod vector;
mod walk;

pub use error::{Error, Result};
