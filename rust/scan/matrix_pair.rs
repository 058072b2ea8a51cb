//! One matrix of a head as both checkpoints have it, and how its bytes come into memory.

use std::mem::take;
use std::ops::Range;
use std::sync::Mutex;

use super::opened_model::Matrix;
use crate::checkpoint::aligned::AlignedBytes;
use crate::checkpoint::mapping::View;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::statistics::{HeadMatrix, NonFiniteEntry, StoredWeights, WeightVector};

/// One matrix on both sides.
pub(crate) struct Pair<'a> {
    pub(crate) base: Matrix<'a>,
    pub(crate) tuned: Matrix<'a>,
    /// Whose matrix it is, for messages.
    pub(crate) whose: String,
}

impl Pair<'_> {
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.base.stored_bytes() + self.tuned.stored_bytes()
    }

    pub(crate) fn part<'b>(&self, bytes: &'b Bytes) -> WeightVector<'b> {
        let HeadMatrix { base, tuned, .. } = self.matrices(bytes);
        WeightVector::Stored { base, tuned }
    }

    pub(crate) fn matrices<'b>(&self, bytes: &'b Bytes) -> HeadMatrix<'b> {
        let [base, tuned] = bytes.sides();
        HeadMatrix {
            base: StoredWeights { dtype: self.base.linear.dtype(), bytes: base },
            tuned: StoredWeights { dtype: self.tuned.linear.dtype(), bytes: tuned },
            columns: self.base.columns(),
        }
    }

    pub(crate) fn refuse(&self, bytes: &Bytes, NonFiniteEntry { entry, is_tuned }: NonFiniteEntry) -> Error {
        let matrices = self.matrices(bytes);
        let (matrix, stored) =
            if is_tuned { (&self.tuned, matrices.tuned) } else { (&self.base, matrices.base) };
        matrix.refuse(entry, stored.entry(entry), &self.whose)
    }
}

/// The bytes of a pair: looked at where they lie, or copied to memory that is kept from pair to pair.
#[derive(Default)]
pub(crate) struct Bytes<'a> {
    views: Option<[View<'a>; 2]>,
    copies: [AlignedBytes; 2],
    has_gap: bool,
}

impl<'a> Bytes<'a> {
    /// Looks at a pair where it lies; whether that can be done. Of very large ones, the large pages that they begin and
    /// end in would count as too much memory.
    pub(crate) fn look_at(&mut self, pair: &Pair<'a>) -> bool {
        self.forget();
        if 4 * (pair.base.bytes() + pair.tuned.bytes()) <= MAPPED {
            self.views = pair.base.view().zip(pair.tuned.view()).map(<[_; 2]>::from);
        }
        self.views.is_some()
    }

    /// Makes room for copies of a pair.
    pub(crate) fn make_room(&mut self, pair: &Pair) {
        self.forget();
        for (copy, matrix) in self.copies.iter_mut().zip([&pair.base, &pair.tuned]) {
            copy.set_length(matrix.bytes());
        }
    }

    /// Copies these rows.
    pub(crate) fn copy(&mut self, pair: &Pair, rows: Range<usize>, scratch: &mut Vec<u8>) -> Result<()> {
        for (copy, matrix) in self.copies.iter_mut().zip([&pair.base, &pair.tuned]) {
            let size = matrix.row_bytes();
            matrix.read(rows.start, &mut copy[rows.start * size..rows.end * size], scratch)?;
        }
        Ok(())
    }

    /// What is looked at, if it is not copied.
    pub(crate) fn views(&self) -> impl Iterator<Item = View<'a>> + use<'a> {
        self.views.into_iter().flatten()
    }

    /// Whether bytes were looked at that their file no longer had.
    pub(crate) fn has_gap(&self) -> bool {
        self.has_gap || self.views().any(|view| view.has_gap())
    }

    /// The same, of all since the last call.
    pub(crate) fn take_gap(&mut self) -> bool {
        self.forget();
        take(&mut self.has_gap)
    }

    fn forget(&mut self) {
        self.has_gap = self.has_gap();
        self.views = None;
    }

    fn sides(&self) -> [&[u8]; 2] {
        match &self.views {
            Some(views) => views.each_ref().map(View::bytes),
            None => self.copies.each_ref().map(|copy| &**copy),
        }
    }
}

/// Bytes that each thread may have mapped, whether it still needs them or not.
const MAPPED: usize = 28 << 20;

/// As many pairs that nobody needs any more may be mapped for each thread.
const KEPT: usize = 4;

/// Views that nobody needs any more. They are let go together, as few stretches as there are, since each time the kernel
/// interrupts every core that runs a thread of the process.
#[derive(Debug)]
pub(crate) struct Done<'a> {
    views: Mutex<Vec<View<'a>>>,
    threads: usize,
}

impl<'a> Done<'a> {
    /// As many threads as this have bytes mapped.
    pub(crate) fn new(threads: usize) -> Self {
        Self { views: Mutex::default(), threads }
    }

    /// Adds those of a pair.
    pub(crate) fn add(&self, bytes: &Bytes<'a>) {
        let size_of = |views: &[View]| views.iter().map(|view| view.bytes().len()).sum::<usize>();
        let pair: Vec<_> = bytes.views().collect();
        // A thread needs a pair of queries, one of keys and one of values, which are about as large.
        let spare = MAPPED.saturating_sub(3 * size_of(&pair)).min(KEPT * size_of(&pair));
        let mut views = lock(&self.views);
        views.extend(pair);
        if size_of(&views) < self.threads * spare {
            return;
        }
        let mut together = take(&mut *views);
        drop(views);
        together.sort_unstable_by_key(|view| view.bytes().as_ptr());
        together.dedup_by(|next, view| view.followed_by(*next).map(|both| *view = both).is_some());
        together.into_iter().for_each(View::let_go);
    }
}
