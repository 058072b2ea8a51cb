//! The tests of the core, without Python.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

mod adapter;
mod attention;
mod checkpoint;
mod fuzz;
mod progress;
mod quantised;
mod scan;
mod select;
mod support;
