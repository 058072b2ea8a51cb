//! A model's attention heads: which rows of which tensors each of them owns.
//!
//! Only names, shapes and the configuration are looked at, so that a checkpoint on disk and the state of a live
//! model are resolved by the same table.

mod candidates;
mod component;
mod find;
mod geometry;
mod layers;
mod layout_file;
mod marks;
mod names;
mod section;
mod sizes;
mod stacks;
mod submodels;

pub use self::component::Component;
pub use self::find::{Attention, LeftOut, Module, Slice};
pub use self::geometry::{Geometry, Layer, Size};
pub use self::layout_file::{Layout, Orientation, Role, layouts};
pub use self::stacks::{Contents, may_be_attention};
