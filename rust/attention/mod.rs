//! Finds a model's attention heads: which rows of which tensors belong to each head.
//!
//! Only names, shapes and the configuration are read, so the same code finds the heads of a checkpoint on disk and
//! those of a live model.
//!
//! # How heads are found
//!
//! 1. `layout_file` reads the known layouts: how tensors are named and in which order they hold heads.
//! 2. `submodels` reads the configuration as a tree of models, each with its components (decoder, vision, ...).
//! 3. `layer_stacks` groups tensor names that differ only in the layer number into stacks.
//! 4. `candidates` assigns every stack to a component and chooses the component that was asked for.
//! 5. `layers`, with `sizes`, reads the sizes of every layer, checks them against the shapes of its tensors and notes
//!    where the rows of each role lie.
//!
//! `find` runs these steps. Its [`Attention::projection_rows`] computes the rows of one head, by the formula that
//! `layers` explains.

mod candidates;
mod config_section;
mod find;
mod layer_stacks;
mod layers;
mod layout_file;
mod names;
mod sizes;
mod submodels;
mod types;

pub use self::find::Attention;
pub use self::layer_stacks::{StoredShapes, TensorShapes, may_be_attention};
pub use self::layout_file::{Layout, layouts};
pub use self::submodels::{is_of_no_component, tower_of};
pub use self::types::{
    Component, Geometry, LayerSizes, MatrixSize, Omission, Orientation, Projection, ProjectionRows, Role,
};
