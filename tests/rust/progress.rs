//! Progress and cancellation of long calls.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use alps::progress::{Progress, run_with_progress};
use alps::{Error, Result};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(1);

fn until_cancelled(progress: &Progress) -> Result<()> {
    loop {
        progress.check_cancelled()?;
        thread::sleep(SHORT);
    }
}

#[test]
fn returns_as_soon_as_the_work_ends() {
    let start = Instant::now();
    let mut reports = 0;
    let result = run_with_progress(
        &Progress::default(),
        LONG,
        |_| Ok(7),
        |_| {
            reports += 1;
            Ok::<_, Error>(())
        },
    );
    assert_eq!((result.ok(), reports), (Some(7), 1));
    assert!(start.elapsed() < LONG / 10);
}

#[test]
fn a_failed_report_stops_the_work_and_is_the_result() {
    let result = run_with_progress(&Progress::default(), SHORT, until_cancelled, |_| {
        Err(Error::Argument("stop".into()))
    });
    assert!(matches!(result, Err(Error::Argument(reason)) if reason == "stop"));
}

#[test]
fn a_failure_of_the_work_is_the_result() {
    let work = |_: &Progress| Err::<(), _>(Error::Argument("broken".into()));
    let result = run_with_progress(&Progress::default(), LONG, work, |_| Ok::<_, Error>(()));
    assert!(matches!(result, Err(Error::Argument(reason)) if reason == "broken"));
}

#[test]
fn progress_is_reported_while_the_work_runs_and_at_its_end() {
    let mut seen = Vec::new();
    let work = |progress: &Progress| {
        progress.total.store(2, Ordering::Relaxed);
        progress.done.store(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(100));
        progress.done.store(2, Ordering::Relaxed);
        Ok(())
    };
    let report = |progress: &Progress| {
        seen.push(progress.bytes());
        Ok::<_, Error>(())
    };
    assert!(run_with_progress(&Progress::default(), SHORT, work, report).is_ok());
    assert!(seen.contains(&(1, 2)));
    assert_eq!(seen.last(), Some(&(2, 2)));
}

#[test]
#[should_panic(expected = "a bug")]
fn a_panic_of_the_work_is_passed_on() {
    let _ = run_with_progress(
        &Progress::default(),
        LONG,
        |_| -> Result<()> { panic!("a bug") },
        |_| Ok::<_, Error>(()),
    );
}
