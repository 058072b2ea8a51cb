//! Where nothing is mapped.

use std::fs::File;

/// There is none.
#[derive(Debug)]
pub(super) enum Mapping {}

/// There is nothing to make ready.
pub(crate) fn prepare_thread() {}

pub(super) fn is_in_memory(_: &File, _: u64, _: usize) -> bool {
    false
}

impl Mapping {
    pub(super) fn of(_: &File) -> Option<Self> {
        None
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match *self {}
    }

    pub(super) fn has_gap(&self) -> bool {
        match *self {}
    }

    pub(super) fn let_go(&self, _: &[u8]) {
        match *self {}
    }
}
