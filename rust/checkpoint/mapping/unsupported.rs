//! Maps nothing, on systems other than Linux.

use std::fs::File;

#[derive(Debug)]
pub(super) enum Mapping {}

pub(super) fn unblock_sigbus() {}

pub(super) fn is_in_page_cache(_: &File, _: u64, _: usize) -> bool {
    false
}

impl Mapping {
    pub(super) fn new(_: &File) -> Option<Self> {
        None
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match *self {}
    }

    pub(super) fn has_lost_bytes(&self) -> bool {
        match *self {}
    }

    pub(super) fn unmap_pages(&self, _: &[u8]) {
        match *self {}
    }
}
