//! What fuzzing gives to alps, and what has to hold for any input.
//!
//! Each module has a function `run`, which panics if alps does something wrong with an input, and returns whether alps read it. `fuzz_targets/` gives it the
//! inputs of libFuzzer, and `tests/rust/fuzz.rs` those of `corpus/`. All files are in memory ([`store`]).

pub mod adapter;
pub mod adapter_config;
pub mod geometry;
pub mod header;
pub mod index;
pub mod quantised;
pub mod scan;
pub mod select;
mod store;

/// Takes an input, and returns whether alps read it.
pub type Target = fn(&[u8]) -> bool;

/// Every target, by the name of its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 8] = [
    ("adapter", adapter::run),
    ("adapter_config", adapter_config::run),
    ("geometry", geometry::run),
    ("header", header::run),
    ("index", index::run),
    ("quantised", quantised::run),
    ("scan", scan::run),
    ("select", select::run),
];
