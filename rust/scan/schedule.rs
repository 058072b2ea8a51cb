//! Who does what, where several threads have groups of tasks to do.
//!
//! Threads take the groups in their order, and each does the tasks of its own. A thread that finds no more groups takes
//! tasks of those that others are at, so that nobody waits for the last of them, and a group has as many threads as
//! there are to spare.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::lock::lock;

/// Groups of tasks, and how far they are done. `G` is what a thread prepares for the tasks of a group.
#[derive(Debug)]
pub(crate) struct Turns<G> {
    count: usize,
    state: Mutex<State<G>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<G> {
    next: usize,
    /// How many are taken, but not open yet.
    in_preparation: usize,
    open: Vec<Arc<Open<G>>>,
}

impl<G> Turns<G> {
    pub(crate) fn new(count: usize) -> Self {
        let state = State { next: 0, in_preparation: 0, open: Vec::new() };
        Self { count, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The first group that nobody has taken.
    pub(crate) fn take(&self) -> Option<Turn<'_, G>> {
        let mut state = lock(&self.state);
        if state.next == self.count {
            return None;
        }
        let place = state.next;
        state.next += 1;
        state.in_preparation += 1;
        Some(Turn { turns: self, place })
    }

    /// The open group that has most tasks left. Waits where one may still be opened; there is none once all have been
    /// taken and all their tasks have as well.
    pub(crate) fn join(&self) -> Option<Arc<Open<G>>> {
        let mut state = lock(&self.state);
        loop {
            let most = state.open.iter().max_by_key(|group| group.tasks_left());
            if let Some(group) = most.filter(|group| group.tasks_left() > 0) {
                return Some(Arc::clone(group));
            }
            if state.in_preparation == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a thread's part in a group none of whose tasks is left to take. What was prepared goes to the last thread that
    /// does so.
    pub(crate) fn leave(&self, group: Arc<Open<G>>) -> Option<G> {
        lock(&self.state).open.retain(|open| !Arc::ptr_eq(open, &group));
        Arc::into_inner(group).map(|open| open.prepared)
    }
}

/// A group that a thread has taken. It is given up when this is dropped, unless it was opened.
#[derive(Debug)]
pub(crate) struct Turn<'a, G> {
    turns: &'a Turns<G>,
    place: usize,
}

impl<G> Turn<'_, G> {
    /// The group's place among all.
    pub(crate) fn place(&self) -> usize {
        self.place
    }

    /// Lets others take tasks, too.
    pub(crate) fn open(self, prepared: G, tasks: Range<usize>) -> Arc<Open<G>> {
        let next = AtomicUsize::new(tasks.start);
        let group = Arc::new(Open { place: self.place, prepared, next, end: tasks.end });
        lock(&self.turns.state).open.push(Arc::clone(&group));
        group
    }
}

impl<G> Drop for Turn<'_, G> {
    fn drop(&mut self) {
        lock(&self.turns.state).in_preparation -= 1;
        self.turns.changed.notify_all();
    }
}

/// A group whose tasks can be taken.
#[derive(Debug)]
pub(crate) struct Open<G> {
    pub(crate) place: usize,
    pub(crate) prepared: G,
    next: AtomicUsize,
    end: usize,
}

impl<G> Open<G> {
    /// The tasks that nobody has taken, which are taken one by one.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = usize> {
        std::iter::from_fn(|| {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            (task < self.end).then_some(task)
        })
    }

    fn tasks_left(&self) -> usize {
        self.end.saturating_sub(self.next.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;
    use std::sync::Barrier;
    use std::thread;

    use proptest::prelude::*;

    /// What every thread does: its groups, then those of others.
    fn work(turns: &Turns<usize>, sizes: &[usize], mut task: impl FnMut(usize, usize)) {
        let mut work_on = |group: Arc<Open<usize>>| {
            group.tasks().for_each(|index| task(group.place, index));
            turns.leave(group)
        };
        while let Some(turn) = turns.take() {
            let place = turn.place();
            work_on(turn.open(place, 0..sizes[place]));
        }
        while let Some(group) = turns.join() {
            work_on(group);
        }
    }

    proptest! {
        #[test]
        fn every_task_is_done_once(sizes in prop::collection::vec(0usize..6, 0..12), threads in 1usize..6) {
            let (turns, done) = (Turns::new(sizes.len()), Mutex::new(Vec::new()));
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let mut mine = Vec::new();
                        work(&turns, &sizes, |place, index| mine.push((place, index)));
                        done.lock().unwrap().extend(mine);
                    });
                }
            });
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            let all = sizes.iter().enumerate().flat_map(|(place, size)| (0..*size).map(move |index| (place, index)));
            prop_assert_eq!(done, all.collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_threads_take_part_in_the_last_group() {
        let (turns, all) = (Turns::new(1), Barrier::new(3));
        thread::scope(|scope| {
            for _ in 0..3 {
                // Each task waits until three are being done.
                scope.spawn(|| work(&turns, &[3], |_, _| _ = all.wait()));
            }
        });
    }

    #[test]
    fn the_last_to_leave_gets_what_was_prepared() {
        let turns = Turns::new(1);
        let group = turns.take().unwrap().open("prepared", 0..2);
        let joined = turns.join().unwrap();
        assert_eq!(group.tasks().chain(joined.tasks()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(turns.leave(group), None);
        assert_eq!(turns.leave(joined), Some("prepared"));
        assert!(turns.join().is_none());
    }

    #[test]
    fn nobody_waits_for_a_group_that_was_given_up() {
        let turns: Turns<()> = Turns::new(1);
        let turn = turns.take().unwrap();
        thread::scope(|scope| {
            let joining = scope.spawn(|| turns.join().is_none());
            let panics = || -> () { panic!("while the group is prepared") };
            assert!(
                catch_unwind(std::panic::AssertUnwindSafe(move || {
                    let _turn = turn;
                    panics()
                }))
                .is_err()
            );
            assert!(joining.join().unwrap());
        });
    }
}
