//! Finds the attention heads that carry a task, by comparing the weights of a base and a tuned
//! checkpoint (ALPS, arXiv 2505.18799).

pub mod checkpoint;
pub mod control;
pub mod error;
pub mod select;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
