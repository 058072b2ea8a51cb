//! A model's attention heads: which rows of which tensors each of them owns.
//!
//! Only names, shapes and the configuration are looked at, so that a checkpoint on disk and the state of a live
//! model are resolved by the same table.

mod family;
mod geometry;
mod layout;
mod names;

pub use self::family::{Family, Orientation, Role, families};
pub use self::geometry::Geometry;
pub use self::layout::{Attention, Slice};
