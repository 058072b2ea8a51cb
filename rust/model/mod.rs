//! A model's attention heads: which rows of which tensors each of them owns.
//!
//! Only names, shapes and the configuration are looked at, so that a checkpoint on disk and the state of a live
//! model are resolved by the same table.

mod candidates;
mod component;
mod family;
mod geometry;
mod layers;
mod layout;
mod marks;
mod names;
mod parts;
mod section;
mod sizes;
mod stack;

pub use self::component::Component;
pub use self::family::{Family, Orientation, Role, families};
pub use self::geometry::{Geometry, Layer, Size};
pub use self::layout::{Attention, LeftOut, Module, Slice};
pub use self::stack::Contents;
