//! Distributes groups of tasks among threads.
//!
//! Groups are numbered by the caller; those of a scan are in the order of the layers. Each thread claims the next
//! group, prepares what its tasks share and does its tasks. It prepares one group at a time, which bounds the memory.
//! When no group is left to claim, a thread joins one in progress ([`Schedule::join`]) and takes its tasks by a counter
//! ([`OpenGroup::tasks`]), so that no thread is idle while there are tasks, and all threads share the last groups. A task of
//! a scan is a head (`measure.rs`).

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crate::synchronisation::atomic::{AtomicUsize, Ordering};
use crate::synchronisation::{Condvar, Mutex, MutexGuard};

/// The groups and their state. `G` is what a thread prepares for the tasks of a group.
#[derive(Debug)]
pub(crate) struct Schedule<G> {
    count: usize,
    state: Mutex<State<G>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<G> {
    /// The first group that is not claimed.
    next: usize,
    /// The number of groups that are claimed and not yet open.
    in_preparation: usize,
    open: Vec<Arc<OpenGroup<G>>>,
}

impl<G> Schedule<G> {
    pub(crate) fn new(count: usize) -> Self {
        let state = State { next: 0, in_preparation: 0, open: Vec::new() };
        Self { count, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<G>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the first group that no thread has claimed.
    pub(crate) fn claim(&self) -> Option<Claim<'_, G>> {
        let mut state = self.state();
        if state.next == self.count {
            return None;
        }
        let position = state.next;
        state.next += 1;
        state.in_preparation += 1;
        Some(Claim { schedule: self, position })
    }

    /// Joins the open group with most tasks left. Waits if no open group has any and some are in preparation. Returns
    /// nothing once all tasks are taken.
    pub(crate) fn join(&self) -> Option<Arc<OpenGroup<G>>> {
        let mut state = self.state();
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

    /// Ends a thread's work on a group whose tasks are all taken. Returns what was prepared to the last thread that
    /// leaves, and nothing to the others.
    pub(crate) fn leave(&self, group: Arc<OpenGroup<G>>) -> Option<G> {
        self.state().open.retain(|open| !Arc::ptr_eq(open, &group));
        Arc::into_inner(group).map(|open| open.prepared)
    }
}

/// The claim of one thread to prepare a group. When it is dropped, the preparation ends and the waiting threads wake.
/// The tasks of a group whose claim is dropped without a call of `open` are never done.
#[derive(Debug)]
pub(crate) struct Claim<'a, G> {
    schedule: &'a Schedule<G>,
    /// The position of the group in the order.
    pub(crate) position: usize,
}

impl<G> Claim<'_, G> {
    /// Opens the group, so that other threads can join it.
    pub(crate) fn open(self, prepared: G, tasks: Range<usize>) -> Arc<OpenGroup<G>> {
        let next = AtomicUsize::new(tasks.start);
        let group = Arc::new(OpenGroup { position: self.position, prepared, next, end: tasks.end });
        self.schedule.state().open.push(Arc::clone(&group));
        group
    }
}

impl<G> Drop for Claim<'_, G> {
    fn drop(&mut self) {
        self.schedule.state().in_preparation -= 1;
        self.schedule.changed.notify_all();
    }
}

/// A group whose tasks can be taken.
#[derive(Debug)]
pub(crate) struct OpenGroup<G> {
    /// The position of the group in the order.
    pub(crate) position: usize,
    pub(crate) prepared: G,
    next: AtomicUsize,
    end: usize,
}

impl<G> OpenGroup<G> {
    /// Takes the tasks that no thread has taken, one by one.
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

#[cfg(all(test, not(shuttle)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;
    use std::sync::Barrier;
    use std::thread;

    use proptest::prelude::*;

    /// Works as every thread does: on its own groups, then on those of others.
    fn work(schedule: &Schedule<usize>, sizes: &[usize], mut task: impl FnMut(usize, usize)) {
        let mut work_on = |group: Arc<OpenGroup<usize>>| {
            group.tasks().for_each(|index| task(group.position, index));
            schedule.leave(group)
        };
        while let Some(claim) = schedule.claim() {
            let position = claim.position;
            work_on(claim.open(position, 0..sizes[position]));
        }
        while let Some(group) = schedule.join() {
            work_on(group);
        }
    }

    proptest! {
        #[test]
        fn every_task_is_done_once(sizes in prop::collection::vec(0usize..6, 0..12), threads in 1usize..6) {
            let (schedule, done) = (Schedule::new(sizes.len()), Mutex::new(Vec::new()));
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let mut mine = Vec::new();
                        work(&schedule, &sizes, |place, index| mine.push((place, index)));
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
    fn all_threads_join_the_last_group() {
        let (schedule, all) = (Schedule::new(1), Barrier::new(3));
        thread::scope(|scope| {
            for _ in 0..3 {
                // Each task waits until three are being done.
                scope.spawn(|| work(&schedule, &[3], |_, _| _ = all.wait()));
            }
        });
    }

    #[test]
    fn the_last_to_leave_gets_what_was_prepared() {
        let schedule = Schedule::new(1);
        let group = schedule.claim().unwrap().open("prepared", 0..2);
        let joined = schedule.join().unwrap();
        assert_eq!(group.tasks().chain(joined.tasks()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(schedule.leave(group), None);
        assert_eq!(schedule.leave(joined), Some("prepared"));
        assert!(schedule.join().is_none());
    }

    #[test]
    fn no_thread_waits_for_a_group_that_was_given_up() {
        let schedule: Schedule<()> = Schedule::new(1);
        let claim = schedule.claim().unwrap();
        thread::scope(|scope| {
            let joining = scope.spawn(|| schedule.join().is_none());
            let panics = || -> () { panic!("while the group is prepared") };
            assert!(
                catch_unwind(std::panic::AssertUnwindSafe(move || {
                    let _claim = claim;
                    panics()
                }))
                .is_err()
            );
            assert!(joining.join().unwrap());
        });
    }
}

/// Orders of the threads' steps that shuttle draws. It fails if all threads wait.
#[cfg(all(test, shuttle))]
#[allow(clippy::unwrap_used)]
mod models {
    use std::sync::Arc;

    use shuttle::{check_pct, check_random, thread};

    use super::*;

    const ORDERS: usize = 20_000;

    /// Three threads work on groups of these sizes, of which those that `fails` names are never opened. Every task of the
    /// others is done once, and what was prepared is given back once.
    fn work(sizes: &'static [usize], fails: &'static [usize]) {
        let schedule = Arc::new(Schedule::new(sizes.len()));
        let done = Arc::new(Mutex::new((Vec::new(), Vec::new())));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (schedule, done) = (Arc::clone(&schedule), Arc::clone(&done));
                thread::spawn(move || {
                    let work_on = |group: Arc<OpenGroup<usize>>| {
                        for task in group.tasks() {
                            done.lock().unwrap().0.push((group.position, task));
                        }
                        if let Some(prepared) = schedule.leave(group) {
                            done.lock().unwrap().1.push(prepared);
                        }
                    };
                    loop {
                        if let Some(claim) = schedule.claim() {
                            let position = claim.position;
                            if !fails.contains(&position) {
                                work_on(claim.open(position, 0..sizes[position]));
                            }
                        } else if let Some(group) = schedule.join() {
                            work_on(group);
                        } else {
                            return;
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (mut tasks, mut returned) = std::mem::take(&mut *done.lock().unwrap());
        tasks.sort_unstable();
        returned.sort_unstable();
        let opened = || (0..sizes.len()).filter(|group| !fails.contains(group));
        let expected: Vec<_> =
            opened().flat_map(|group| (0..sizes[group]).map(move |task| (group, task))).collect();
        assert_eq!(tasks, expected);
        assert_eq!(returned, opened().collect::<Vec<_>>());
    }

    #[test]
    fn every_task_is_done_once_in_any_order_of_steps() {
        for sizes in [&[3][..], &[2, 1, 0], &[1, 1, 1, 4]] {
            check_random(|| work(sizes, &[]), ORDERS);
            check_pct(|| work(sizes, &[]), ORDERS, 3);
        }
    }

    #[test]
    fn no_thread_waits_for_a_group_that_was_given_up_in_any_order_of_steps() {
        for fails in [&[0][..], &[2], &[0, 1, 2]] {
            check_random(|| work(&[2, 1, 3], fails), ORDERS);
            check_pct(|| work(&[2, 1, 3], fails), ORDERS, 3);
        }
    }
}
