//! The tests of the core, without Python.

mod adapter;
mod attention;
mod checkpoint;
mod quantised;
mod scan;
mod select;
