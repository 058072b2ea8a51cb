//! The vocabulary of attention: components, roles, projections, heads and their sizes.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;

/// A value, or the reason in words why there is none.
pub(super) type OrProblem<T> = Result<T, String>;

/// One of the attention stacks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The self-attention of the part that writes text.
    Decoder,
    /// The self-attention of the part that reads text, or of whatever the decoder attends to.
    Encoder,
    /// The attention of the decoder to the output of the encoder.
    Cross,
    /// The self-attention over images or videos.
    Vision,
    /// The self-attention over sound.
    Audio,
}

impl Component {
    /// Every component. Where none is asked for, a scan takes the first of these that the configuration gives.
    pub const ALL: [Component; 5] =
        [Component::Decoder, Component::Encoder, Component::Vision, Component::Audio, Component::Cross];

    /// The name of the component.
    pub fn name(self) -> &'static str {
        match self {
            Component::Decoder => "decoder",
            Component::Encoder => "encoder",
            Component::Cross => "cross",
            Component::Vision => "vision",
            Component::Audio => "audio",
        }
    }

    /// The component of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|component| component.name() == name)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Which of a head's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// One matrix per query head.
    Query,
    /// One matrix per key/value group.
    Key,
    /// One matrix per key/value group.
    Value,
}

impl Role {
    /// Every role, in the order in which the weights of a head are concatenated.
    pub const ALL: [Role; 3] = [Role::Query, Role::Key, Role::Value];

    /// The name of the role.
    pub fn name(self) -> &'static str {
        match self {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
        }
    }
}

/// How a matrix from `in` features to `out` features is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// `[out, in]`, as torch's `Linear` stores it: a head owns rows.
    #[default]
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D` stores it: a head owns columns.
    InOut,
}

/// The sizes of a model's attention. Heads are numbered by query head.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// The `model_type` of the configuration.
    pub model_type: String,
    /// The name of the layout that stores the attention.
    pub layout: String,
    /// Which of the model's attention stacks this is.
    pub component: Component,
    /// The layers that have attention, in ascending order.
    pub layers: Vec<LayerSizes>,
}

impl Geometry {
    /// The length of a row of scores: the number of heads of the layer that has most.
    pub fn width(&self) -> usize {
        self.layers.iter().map(|layer| layer.query_heads).max().unwrap_or(0)
    }
}

/// The sizes of the attention of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerSizes {
    /// The number of the layer.
    pub number: usize,
    /// The number of query heads.
    pub query_heads: usize,
    /// The number of key/value groups: a divisor of the number of query heads.
    pub key_value_heads: usize,
    /// The size of the matrix of a query head.
    pub query: MatrixSize,
    /// The size of the matrix of a group's keys; `None` if the layer reuses the keys and values of an earlier one.
    pub key: Option<MatrixSize>,
    /// The size of the matrix of a group's values; `None` as for the keys.
    pub value: Option<MatrixSize>,
    /// Whether one matrix serves as keys and as values. A head's weights then contain it twice.
    pub keys_are_values: bool,
}

impl LayerSizes {
    /// The key/value group that query head `head` reads: floor(head * groups / heads).
    pub fn group_of(&self, head: usize) -> usize {
        head / self.heads_per_group()
    }

    /// The query heads that read key/value group `group`.
    pub fn heads_of(&self, group: usize) -> Range<usize> {
        let size = self.heads_per_group();
        group * size..(group + 1) * size
    }

    /// The number of query heads that share a key/value group.
    pub fn heads_per_group(&self) -> usize {
        self.query_heads / self.key_value_heads
    }

    /// The roles that have matrices of their own: all but the values where the keys serve as values.
    pub fn own_roles(&self) -> &'static [Role] {
        if self.keys_are_values { &Role::ALL[..2] } else { &Role::ALL }
    }

    /// The number of matrices of this role.
    pub fn count(&self, role: Role) -> usize {
        match role {
            Role::Query => self.query_heads,
            Role::Key | Role::Value => self.key_value_heads,
        }
    }

    /// The size of a matrix of this role, if there is one.
    pub fn size(&self, role: Role) -> Option<MatrixSize> {
        match role {
            Role::Query => Some(self.query),
            Role::Key => self.key,
            Role::Value => self.value,
        }
    }
}

/// The size of a matrix of one head or one key/value group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixSize {
    /// Out features: the size of a query, key or value.
    pub rows: usize,
    /// In features.
    pub columns: usize,
}

impl MatrixSize {
    /// The number of weights.
    pub fn entries(&self) -> usize {
        self.rows * self.columns
    }
}

/// A matrix that holds query, key or value weights of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Projection {
    /// The name of its module: the name of its tensor, without `.weight`.
    pub name: String,
    /// How its tensor is stored, if it is stored unquantised.
    pub orientation: Orientation,
    /// The number of rows.
    pub out_features: usize,
    /// The length of a row.
    pub in_features: usize,
}

impl Projection {
    /// The shape of its tensor, if it is stored unquantised.
    pub fn stored_shape(&self) -> [usize; 2] {
        match self.orientation {
            Orientation::OutIn => [self.out_features, self.in_features],
            Orientation::InOut => [self.in_features, self.out_features],
        }
    }
}

/// The rows of a projection that make up one matrix of one head.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProjectionRows<'a> {
    /// The position of the projection in [`Attention::projections`](super::Attention::projections).
    pub index: usize,
    /// The projection.
    pub projection: &'a Projection,
    /// The head's rows.
    pub rows: Range<usize>,
}

/// A layer or stack that is not in the geometry, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Omission {
    /// The layer or stack.
    pub what: String,
    /// Why it is left out.
    pub why: String,
}
