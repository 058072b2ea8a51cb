//! Finds the attention heads that carry a task, by comparing the weights of a base and a tuned
//! checkpoint (ALPS, arXiv 2505.18799).

pub mod attention;
pub mod checkpoint;
pub mod error;
mod failing;
pub mod graft;
mod memory;
pub mod number_format;
mod pages;
pub mod progress;
#[cfg(feature = "python")]
mod python;
pub mod scan;
pub mod select;
pub mod simd;
pub mod statistics;
mod synchronisation;
mod threads;
pub mod weights;

pub use error::{Error, Result};
