//! The attention stacks that a model may have.

use std::fmt;

use serde::Deserialize;

/// One of the attention stacks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The self-attention of what writes text.
    Decoder,
    /// The self-attention of what reads text, or whatever the decoder attends to.
    Encoder,
    /// The attention of the decoder to what was encoded.
    Cross,
    /// The self-attention of what looks at images or videos.
    Vision,
    /// The self-attention of what listens.
    Audio,
}

impl Component {
    /// Every component. What is scanned if nothing is asked for is the first of them that a model has.
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
