//! The sizes of a model's attention.

use super::component::Component;
use super::layout_file::Role;

/// How many heads of what size there are. Heads are numbered by query head.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// What the configuration calls the model.
    pub model_type: String,
    /// The name of the layout of storage.
    pub layout: String,
    /// Which of the model's attention stacks this is.
    pub component: Component,
    /// The layers that have attention, in ascending order.
    pub layers: Vec<Layer>,
}

/// The attention of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layer {
    /// The number of the layer.
    pub number: usize,
    /// The query heads.
    pub query_heads: usize,
    /// The key/value groups: a divisor of the query heads.
    pub key_value_heads: usize,
    /// The matrix of a query head.
    pub query: Size,
    /// The matrix of a group's keys; nothing if an earlier layer's keys and values are used again.
    pub key: Option<Size>,
    /// The matrix of a group's values; nothing if an earlier layer's keys and values are used again.
    pub value: Option<Size>,
    /// Whether the keys are the values, too: one matrix, which a head's weights have twice.
    pub keys_are_values: bool,
}

/// The size of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Out features: the size of a query, key or value.
    pub rows: usize,
    /// In features: the size of what it is computed from.
    pub columns: usize,
}

impl Size {
    /// How many weights there are.
    pub fn entries(&self) -> usize {
        self.rows * self.columns
    }
}

impl Geometry {
    /// The heads of the layer that has most: the length of a row of scores.
    pub fn heads(&self) -> usize {
        self.layers.iter().map(|layer| layer.query_heads).max().unwrap_or(0)
    }
}

impl Layer {
    /// The key/value group that query head `head` reads: floor(head * groups / heads).
    pub fn group_of(&self, head: usize) -> usize {
        head / self.heads_per_group()
    }

    /// The query heads that read key/value group `group`.
    pub fn heads_of(&self, group: usize) -> std::ops::Range<usize> {
        let size = self.heads_per_group();
        group * size..(group + 1) * size
    }

    /// How many query heads share a key/value group.
    pub fn heads_per_group(&self) -> usize {
        self.query_heads / self.key_value_heads
    }

    /// The roles that have matrices of their own: not the values, if the keys are these, too.
    pub fn own_roles(&self) -> &'static [Role] {
        if self.keys_are_values { &Role::ALL[..2] } else { &Role::ALL }
    }

    /// How many matrices of this role there are.
    pub fn count(&self, role: Role) -> usize {
        match role {
            Role::Query => self.query_heads,
            Role::Key | Role::Value => self.key_value_heads,
        }
    }

    /// The size of a matrix of this role, if there is one.
    pub fn size(&self, role: Role) -> Option<Size> {
        match role {
            Role::Query => Some(self.query),
            Role::Key => self.key,
            Role::Value => self.value,
        }
    }
}
