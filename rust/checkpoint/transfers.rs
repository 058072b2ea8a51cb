//! Fetches the planned ranges of files in stores before they are read, many at a time, in bounded memory.
//!
//! # How a plan is fetched
//!
//! A [`Plan`] is told which ranges the steps of a call will read, in the order of the steps. It joins ranges that lie
//! close together and cuts long ones, so that a large checkpoint takes a few hundred large requests. The [`Transfers`]
//! ask for these pieces in the order in which the steps need them, as many at a time as there are connections, as long
//! as the pieces that were asked for and are not yet given back fit into the `memory`. A piece is given back once
//! the last step that reads it has ended. The pieces of the first step that has not ended are always asked for, so a
//! small `memory` makes a call slow and never stops it; it then takes what one step reads.
//!
//! A plan changes no result: a range that is in no piece, or in one that was given back, is fetched when it is read.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::thread;

use super::remote_file::RemoteFile;
use super::store::{CANCELLATION_INTERVAL, StoredBytes, cancelled};
use crate::synchronisation::{Condvar, Mutex, MutexGuard};

/// Ranges with at most so many bytes between them are fetched together.
const LARGEST_GAP: u64 = 1 << 20;

/// Pieces are joined up to this length, whatever the number of requests.
const JOINED: u64 = 32 << 20;

/// Long ranges are cut into pieces of a length between these two, so that about [`REQUESTS`] fetch everything.
const SHORTEST_CUT: u64 = 16 << 20;
const LONGEST_CUT: u64 = 128 << 20;

/// Hubs allow a few thousand requests in five minutes.
const REQUESTS: u64 = 1200;

/// The length of pieces where memory is short.
const SMALLEST_CUT: u64 = 256 << 10;

/// The bounds of what is fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferLimits {
    /// The most bytes that a call holds of files: seven eighths of them in pieces that are asked for and not yet given
    /// back.
    pub memory: u64,
    /// The most requests at a time.
    pub connections: usize,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self { memory: 512 << 20, connections: 16 }
    }
}

/// The ranges that the steps of a call read.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    files: Vec<(Arc<RemoteFile>, Vec<PlannedRange>)>,
}

/// A range of a file, with the first and the last step that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannedRange {
    range: Range<u64>,
    first: usize,
    last: usize,
}

impl PlannedRange {
    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Makes this range reach to the end of a later one.
    fn join(&mut self, other: &Self) {
        self.range.end = self.range.end.max(other.range.end);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

impl Plan {
    /// Adds a range of a file that a step reads.
    pub(super) fn add(&mut self, step: usize, file: &Arc<RemoteFile>, range: Range<u64>) {
        let place = self.files.iter().position(|(other, _)| Arc::ptr_eq(other, file)).unwrap_or_else(|| {
            self.files.push((Arc::clone(file), Vec::new()));
            self.files.len() - 1
        });
        self.files[place].1.push(PlannedRange { range, first: step, last: step });
    }

    /// Begins to fetch. The files take the ranges from the transfers until these are dropped.
    pub(crate) fn begin(self, limits: TransferLimits) -> Transfers {
        let total: u64 = self.files.iter().flat_map(|(_, ranges)| ranges).map(PlannedRange::length).sum();
        let longest = LONGEST_CUT.min((limits.memory / 4).max(SMALLEST_CUT));
        let cut = (total / REQUESTS).max(SHORTEST_CUT).min(longest);
        // The rest is for what the steps hold beside the pieces.
        let memory = limits.memory - limits.memory / 8;
        self.begin_with_cut(TransferLimits { memory, ..limits }, cut)
    }

    /// Begins to fetch, in pieces of about `cut` bytes.
    fn begin_with_cut(self, limits: TransferLimits, cut: u64) -> Transfers {
        let (files, ranges): (Vec<_>, Vec<_>) = self.files.into_iter().unzip();
        let mut pieces: Vec<Piece> = Vec::new();
        for (file, ranges) in ranges.into_iter().enumerate() {
            pieces.extend(cut_into_pieces(ranges, cut).into_iter().map(|range| Piece { file, range }));
        }
        pieces.sort_by_key(|piece| piece.range.first);
        let mut by_file = vec![BTreeMap::new(); files.len()];
        for (number, Piece { file, range }) in pieces.iter().enumerate() {
            by_file[*file].insert(range.range.start, number);
        }
        let state = State {
            next: 0,
            in_flight: 0,
            memory: 0,
            first_step: 0,
            ended: Vec::new(),
            slots: pieces.iter().map(|_| Slot::Planned).collect(),
        };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { files, pieces, limits, state, changed: Condvar::new() });
        for (file, pieces) in shared.files.iter().zip(by_file) {
            file.set_transfers(Some(FileTransfers { shared: Arc::clone(&shared), pieces }));
        }
        shared.request_more();
        Transfers { shared }
    }
}

/// Joins ranges of one file that are close together, and cuts long ones into pieces of about `cut` bytes.
fn cut_into_pieces(mut ranges: Vec<PlannedRange>, cut: u64) -> Vec<PlannedRange> {
    ranges.retain(|range| range.length() > 0);
    ranges.sort_by_key(|range| range.range.start);
    let mut apart: Vec<PlannedRange> = Vec::new();
    for range in ranges {
        match apart.last_mut() {
            Some(last) if range.range.start < last.range.end => last.join(&range),
            _ => apart.push(range),
        }
    }
    // A strip is read from its beginning to its end; where the steps begin anew, another tensor begins.
    let strips = apart
        .chunk_by(|one, next| next.range.start <= one.range.end + LARGEST_GAP && next.first >= one.first);
    let mut pieces: Vec<PlannedRange> = Vec::new();
    for strip in strips {
        let (start, end) = (strip[0].range.start, strip[strip.len() - 1].range.end);
        let count = ((end - start + cut / 2) / cut).max(1);
        for number in 0..count {
            let at = |number: u64| {
                start + (end - start) / count * number + ((end - start) % count * number) / count
            };
            let range = at(number)..at(number + 1);
            let within = strip.iter().filter(|it| it.range.start < range.end && range.start < it.range.end);
            let steps: Vec<(usize, usize)> = within.map(|it| (it.first, it.last)).collect();
            let Some(first) = steps.iter().map(|step| step.0).min() else { continue };
            let last = steps.iter().map(|step| step.1).max().unwrap_or(first);
            let piece = PlannedRange { range, first, last };
            match pieces.last_mut() {
                Some(before)
                    if number == 0
                        && piece.range.start <= before.range.end + LARGEST_GAP
                        && piece.range.end - before.range.start <= JOINED.min(2 * cut) =>
                {
                    before.join(&piece);
                }
                _ => pieces.push(piece),
            }
        }
    }
    pieces
}

/// A range that is fetched by one request.
#[derive(Debug)]
struct Piece {
    /// The number of the file.
    file: usize,
    range: PlannedRange,
}

/// How far a piece is.
enum Slot {
    Planned,
    InFlight,
    Fetched(Arc<StoredBytes>),
    Failed(io::ErrorKind, String),
    GivenBack,
}

struct State {
    /// The first piece that was not asked for.
    next: usize,
    in_flight: usize,
    /// The bytes of the pieces that were asked for and are not given back.
    memory: u64,
    /// The first step that has not ended.
    first_step: usize,
    /// The steps after it that have.
    ended: Vec<usize>,
    slots: Vec<Slot>,
}

struct Shared {
    files: Vec<Arc<RemoteFile>>,
    /// In the order of the steps that need them first.
    pieces: Vec<Piece>,
    limits: TransferLimits,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for as many pieces as the limits allow.
    fn request_more(self: &Arc<Self>) {
        let mut state = self.state();
        let mut wanted = Vec::new();
        while let Some(piece) = self.pieces.get(state.next) {
            let length = piece.range.length();
            let fits = state.memory + length <= self.limits.memory || piece.range.first <= state.first_step;
            if !fits || state.in_flight >= self.limits.connections {
                break;
            }
            wanted.push(state.next);
            let number = state.next;
            state.slots[number] = Slot::InFlight;
            state.memory += length;
            state.in_flight += 1;
            state.next += 1;
        }
        drop(state);
        for number in wanted {
            let shared = Arc::clone(self);
            let Piece { file, range } = &self.pieces[number];
            self.files[*file]
                .request(range.range.clone(), Box::new(move |answer| shared.take(number, answer)));
        }
    }

    /// Takes the answer to the request for a piece.
    fn take(self: &Arc<Self>, number: usize, answer: io::Result<StoredBytes>) {
        let mut state = self.state();
        state.in_flight -= 1;
        if matches!(state.slots[number], Slot::InFlight) {
            state.slots[number] = match answer {
                Ok(bytes) => Slot::Fetched(Arc::new(bytes)),
                Err(error) => Slot::Failed(error.kind(), error.to_string()),
            };
        }
        drop(state);
        self.changed.notify_all();
        self.request_more();
    }

    /// Waits until a piece is there; nothing if it was given back.
    fn wait(&self, number: usize) -> io::Result<Option<Arc<StoredBytes>>> {
        let mut state = self.state();
        loop {
            match &state.slots[number] {
                Slot::Fetched(bytes) => return Ok(Some(Arc::clone(bytes))),
                Slot::Failed(kind, problem) => return Err(io::Error::new(*kind, problem.clone())),
                Slot::GivenBack => return Ok(None),
                Slot::Planned | Slot::InFlight => {}
            }
            if self.files[self.pieces[number].file].store().is_cancelled() {
                return Err(cancelled());
            }
            let waited = self.changed.wait_timeout(state, CANCELLATION_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends a step, and gives back the pieces that no later step reads.
    fn end_step(self: &Arc<Self>, step: usize) {
        let mut state = self.state();
        state.ended.push(step);
        while let Some(place) = state.ended.iter().position(|ended| *ended == state.first_step) {
            state.ended.swap_remove(place);
            state.first_step += 1;
        }
        let first_step = state.first_step;
        self.give_back(&mut state, |piece| piece.range.last < first_step);
        drop(state);
        self.request_more();
    }

    /// Fails every piece that is not there yet.
    fn abandon(&self) {
        let mut state = self.state();
        state.next = self.pieces.len();
        for slot in &mut state.slots {
            if matches!(slot, Slot::Planned | Slot::InFlight) {
                *slot = Slot::Failed(
                    io::ErrorKind::Other,
                    "the call ended before the bytes were there".to_owned(),
                );
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn give_back(&self, state: &mut State, which: impl Fn(&Piece) -> bool) {
        for (slot, piece) in state.slots.iter_mut().zip(&self.pieces) {
            if matches!(slot, Slot::Fetched(_) | Slot::Failed(..)) && which(piece) {
                *slot = Slot::GivenBack;
                state.memory -= piece.range.length();
            }
        }
    }
}

/// Pieces that are being fetched. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Transfers {
    shared: Arc<Shared>,
}

impl Transfers {
    /// A guard for a thread that does steps: should it panic, the others do not wait for pieces that are never fetched.
    pub(crate) fn abandon_on_panic(&self) -> AbandonOnPanic<'_> {
        AbandonOnPanic(self)
    }

    /// Tells that a step has ended, in whatever way.
    pub(crate) fn end_step(&self, step: usize) {
        if !self.shared.pieces.is_empty() {
            self.shared.end_step(step);
        }
    }
}

/// Ends the waiting of all threads if the thread that holds it panics.
pub(crate) struct AbandonOnPanic<'a>(&'a Transfers);

impl Drop for AbandonOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.shared.abandon();
        }
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        self.shared.files.iter().for_each(|file| file.set_transfers(None));
        let mut state = self.shared.state();
        state.next = self.shared.pieces.len();
        self.shared.give_back(&mut state, |_| true);
    }
}

/// The pieces of one file.
#[derive(Debug)]
pub(super) struct FileTransfers {
    shared: Arc<Shared>,
    /// The number of each piece, by its first byte.
    pieces: BTreeMap<u64, usize>,
}

/// What the transfers have of a file from some byte on.
pub(super) enum Planned {
    /// The bytes of a piece, of which that byte is number `from`.
    Fetched { bytes: Arc<StoredBytes>, from: usize },
    /// Nothing up to this byte.
    No { until: u64 },
}

impl FileTransfers {
    /// Waits for the piece that has the byte at `offset`, if there is one.
    pub(super) fn find(&self, offset: u64) -> io::Result<Planned> {
        if let Some((start, number)) = self.pieces.range(..=offset).next_back() {
            let end = self.shared.pieces[*number].range.range.end;
            if offset < end {
                let found = self.shared.wait(*number)?;
                let from = (offset - start) as usize;
                return Ok(found.map_or(Planned::No { until: end }, |bytes| Planned::Fetched { bytes, from }));
            }
        }
        let until = self.pieces.range(offset + 1..).next().map_or(u64::MAX, |(start, _)| *start);
        Ok(Planned::No { until })
    }
}

#[cfg(all(test, not(shuttle)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Location;
    use super::super::store::{FileStatus, Reply, Store};
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn range(first: usize, last: usize, range: Range<u64>) -> PlannedRange {
        PlannedRange { range, first, last }
    }

    #[test]
    fn a_layer_of_eight_billion_takes_three_requests() {
        // K, then an output projection, then Q and V; eight groups.
        let mut ranges = Vec::new();
        for group in 0..8_u64 {
            let step = group as usize;
            ranges.push(range(step, step, group * MIB..(group + 1) * MIB));
            ranges.push(range(step, step, (40 + 4 * group) * MIB..(44 + 4 * group) * MIB));
            ranges.push(range(step, step, (72 + group) * MIB..(73 + group) * MIB));
        }
        let pieces = cut_into_pieces(ranges, SHORTEST_CUT);
        let expected =
            [range(0, 7, 0..8 * MIB), range(0, 3, 40 * MIB..56 * MIB), range(0, 7, 56 * MIB..80 * MIB)];
        assert_eq!(pieces, expected);
    }

    proptest! {
        #[test]
        fn pieces_cover_all_ranges_and_none_overlap(
            ranges in prop::collection::vec((0..40 * MIB, 1..9 * MIB, 0usize..9, 0usize..3), 1..30),
            cut in MIB..20 * MIB,
        ) {
            let ranges: Vec<PlannedRange> = ranges
                .into_iter()
                .map(|(start, length, first, more)| range(first, first + more, start..start + length))
                .collect();
            let pieces = cut_into_pieces(ranges.clone(), cut);
            for pair in pieces.windows(2) {
                prop_assert!(pair[0].range.end <= pair[1].range.start);
            }
            for wanted in &ranges {
                let mut at = wanted.range.start;
                for piece in &pieces {
                    if at < wanted.range.end && piece.range.contains(&at) {
                        at = piece.range.end;
                        prop_assert!(piece.first <= wanted.first && wanted.last <= piece.last);
                    }
                }
                prop_assert!(at >= wanted.range.end);
            }
            let wanted: u64 = ranges.iter().map(PlannedRange::length).sum();
            let fetched: u64 = pieces.iter().map(PlannedRange::length).sum();
            prop_assert!(fetched <= wanted + LARGEST_GAP * ranges.len() as u64);
        }
    }

    /// A store whose files hold the number of each byte modulo 251. It answers from threads of its own.
    #[derive(Debug, Default)]
    struct Numbers {
        cancelled: AtomicBool,
        asked: AtomicUsize,
        held: AtomicU64,
        most: AtomicU64,
        /// The call of `read` that fails; none if 0.
        fails_at: AtomicUsize,
    }

    const LENGTH: u64 = 300_000;

    fn byte(place: u64) -> u8 {
        (place % 251) as u8
    }

    /// Bytes that count how many of them there are.
    struct Counted(Vec<u8>, Arc<Numbers>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.held.fetch_sub(self.0.len() as u64, Ordering::SeqCst);
        }
    }

    #[derive(Debug)]
    struct Shared(Arc<Numbers>);

    impl Store for Shared {
        fn names(&self, _folder: &str, reply: Reply<Vec<String>>) {
            reply(Ok(Vec::new()));
        }

        fn status(&self, _file: &str, _fresh: bool, reply: Reply<FileStatus>) {
            reply(Ok(FileStatus { length: LENGTH, version: String::new() }));
        }

        fn read(&self, _file: &str, range: Range<u64>, reply: Reply<StoredBytes>) {
            let numbers = Arc::clone(&self.0);
            let call = numbers.asked.fetch_add(1, Ordering::SeqCst) + 1;
            thread::spawn(move || {
                thread::sleep(Duration::from_micros(range.start % 700));
                if call == numbers.fails_at.load(Ordering::SeqCst) {
                    return reply(Err(io::Error::other("lost")));
                }
                let length = range.end - range.start;
                let held = numbers.held.fetch_add(length, Ordering::SeqCst) + length;
                numbers.most.fetch_max(held, Ordering::SeqCst);
                reply(Ok(Box::new(Counted(range.map(byte).collect(), numbers))));
            });
        }

        fn is_cancelled(&self) -> bool {
            self.0.cancelled.load(Ordering::SeqCst)
        }
    }

    fn file(numbers: &Arc<Numbers>) -> Arc<RemoteFile> {
        let store: Arc<dyn Store> = Arc::new(Shared(Arc::clone(numbers)));
        Arc::new(RemoteFile::open(&Location::in_store("file", Arc::clone(&store)), store).unwrap())
    }

    /// Steps that read `width` bytes each, one after the other, by several threads.
    fn run(file: &Arc<RemoteFile>, width: u64, memory: u64, threads: usize) -> crate::Result<()> {
        let steps = (LENGTH / width) as usize;
        let mut plan = Plan::default();
        for step in 0..steps {
            let start = step as u64 * width;
            plan.add(step, file, start..start + width);
        }
        let transfers = plan.begin_with_cut(TransferLimits { memory, connections: 3 }, 1000);
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let work = || {
                loop {
                    let step = next.fetch_add(1, Ordering::SeqCst);
                    if step >= steps {
                        return Ok(());
                    }
                    let start = step as u64 * width;
                    let mut buffer = vec![0; width as usize];
                    let read = file.read(start, &mut buffer);
                    transfers.end_step(step);
                    read?;
                    assert!(buffer.iter().enumerate().all(|(place, it)| *it == byte(start + place as u64)));
                }
            };
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            all.into_iter().try_for_each(|thread| thread.join().unwrap())
        })
    }

    #[test]
    fn steps_get_their_bytes_within_the_memory() {
        for threads in [1, 4] {
            for (width, memory) in [(700, 8000), (3000, 8000), (3000, 100), (10_000, 1 << 30)] {
                let numbers = Arc::new(Numbers::default());
                run(&file(&numbers), width, memory, threads).unwrap();
                // Beside the memory, the pieces of the steps that are being done.
                let most = numbers.most.load(Ordering::SeqCst);
                assert!(most <= memory.max(2000 * threads as u64 + 4 * width), "{most} of {memory}");
                assert_eq!(
                    numbers.asked.load(Ordering::SeqCst),
                    (LENGTH / width * width).div_ceil(1000) as usize
                );
                assert_eq!(numbers.held.load(Ordering::SeqCst), 0);
            }
        }
    }

    #[test]
    fn a_read_that_fails_at_any_call_is_an_error_and_nothing_is_held() {
        for call in (1..=300).step_by(23) {
            let numbers = Arc::new(Numbers::default());
            numbers.fails_at.store(call, Ordering::SeqCst);
            let error = run(&file(&numbers), 3000, 8000, 3).unwrap_err();
            assert!(matches!(error, crate::Error::Io { source, .. } if source.to_string() == "lost"));
            numbers.fails_at.store(0, Ordering::SeqCst);
            // Answers that are still under way are thrown away.
            while numbers.held.load(Ordering::SeqCst) > 0 {
                thread::sleep(Duration::from_millis(1));
            }
            run(&file(&numbers), 3000, 8000, 3).unwrap();
        }
    }

    #[test]
    fn bytes_outside_the_plan_are_fetched_when_they_are_read() {
        let numbers = Arc::new(Numbers::default());
        let file = file(&numbers);
        let mut plan = Plan::default();
        plan.add(0, &file, 1000..2000);
        let transfers = plan.begin(TransferLimits::default());
        let mut buffer = vec![0; 3000];
        file.read(500, &mut buffer).unwrap();
        assert!(buffer.iter().zip(500..).all(|(it, place)| *it == byte(place)));
        transfers.end_step(0);
        file.read(500, &mut buffer).unwrap();
        drop(transfers);
        file.read(500, &mut buffer).unwrap();
        assert!(buffer.iter().zip(500..).all(|(it, place)| *it == byte(place)));
        numbers.cancelled.store(true, Ordering::SeqCst);
        assert!(matches!(file.read(500, &mut buffer), Err(crate::Error::Interrupted)));
    }
}

/// Orders of the threads' steps that shuttle draws. It fails if all threads wait.
#[cfg(all(test, shuttle))]
#[allow(clippy::unwrap_used)]
mod models {
    use std::sync::atomic::{AtomicU64, Ordering};

    use shuttle::sync::atomic::AtomicUsize;
    use shuttle::{check_pct, check_random, thread};

    use super::super::Location;
    use super::super::store::{FileStatus, Reply, Store};
    use super::*;

    const ORDERS: usize = 10_000;

    /// The length of a piece, which is what a step reads.
    const PIECE: u64 = 10;
    const STEPS: usize = 5;

    /// A store that answers each question from a thread of its own, at any time.
    #[derive(Debug, Default)]
    struct Answers {
        fails_at: Option<u64>,
        /// The bytes that were asked for and are not given back, and the most of them.
        held: AtomicU64,
        most: AtomicU64,
    }

    struct Counted(Vec<u8>, Arc<Answers>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.held.fetch_sub(PIECE, Ordering::SeqCst);
        }
    }

    #[derive(Debug)]
    struct Shared(Arc<Answers>);

    impl Store for Shared {
        fn names(&self, _folder: &str, reply: Reply<Vec<String>>) {
            reply(Ok(Vec::new()));
        }

        fn status(&self, _file: &str, _fresh: bool, reply: Reply<FileStatus>) {
            reply(Ok(FileStatus { length: PIECE * STEPS as u64, version: String::new() }));
        }

        fn read(&self, _file: &str, range: Range<u64>, reply: Reply<StoredBytes>) {
            let answers = Arc::clone(&self.0);
            let held = answers.held.fetch_add(PIECE, Ordering::SeqCst) + PIECE;
            answers.most.fetch_max(held, Ordering::SeqCst);
            let counted = Counted(range.clone().map(|byte| byte as u8).collect(), Arc::clone(&answers));
            thread::spawn(move || {
                reply(match answers.fails_at == Some(range.start) {
                    true => Err(io::Error::other("lost")),
                    false => Ok(Box::new(counted)),
                });
            });
        }

        fn is_cancelled(&self) -> bool {
            false
        }
    }

    /// Three threads do the steps. Each gets its bytes, or the error of its piece; nothing is held afterwards.
    fn run(memory: u64, connections: usize, fails_at: Option<u64>) {
        let answers = Arc::new(Answers { fails_at, ..Answers::default() });
        let store: Arc<dyn Store> = Arc::new(Shared(Arc::clone(&answers)));
        let file =
            Arc::new(RemoteFile::open(&Location::in_store("file", Arc::clone(&store)), store).unwrap());
        let start = |step: usize| step as u64 * PIECE;
        let mut plan = Plan::default();
        for step in 0..STEPS {
            plan.add(step, &file, start(step)..start(step) + PIECE);
        }
        let limits = TransferLimits { memory, connections };
        let transfers = Arc::new(plan.begin_with_cut(limits, PIECE / 2));
        let next = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (file, transfers, next) = (Arc::clone(&file), Arc::clone(&transfers), Arc::clone(&next));
                thread::spawn(move || {
                    loop {
                        let step = next.fetch_add(1, Ordering::SeqCst);
                        if step >= STEPS {
                            return;
                        }
                        let mut buffer = vec![0; PIECE as usize];
                        let read = file.read(start(step), &mut buffer);
                        transfers.end_step(step);
                        let fails =
                            fails_at.is_some_and(|at| (start(step)..start(step) + PIECE).contains(&at));
                        assert_eq!(read.is_err(), fails);
                        assert!(
                            fails || (start(step)..).zip(buffer).all(|(place, byte)| place as u8 == byte)
                        );
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(transfers);
        drop(file);
        // The memory, or a piece for each step that is being done and that cannot go on without.
        assert!(answers.most.load(Ordering::SeqCst) <= memory.max(PIECE) + 3 * PIECE);
        assert_eq!(answers.held.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn every_step_gets_its_bytes_in_any_order_of_steps_and_answers() {
        for (memory, connections) in [(0, 1), (2 * PIECE, 2), (100 * PIECE, 3)] {
            check_random(move || run(memory, connections, None), ORDERS);
            check_pct(move || run(memory, connections, None), ORDERS, 3);
        }
    }

    #[test]
    fn a_piece_that_fails_stops_no_other_step() {
        for memory in [0, 2 * PIECE] {
            check_random(move || run(memory, 2, Some(2 * PIECE)), ORDERS);
        }
    }
}
