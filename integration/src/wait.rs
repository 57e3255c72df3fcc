//! Waiting for something to become true, with a deadline and a reason.

use std::time::{Duration, Instant};

/// What an event that should come soon may take on a machine that is busy compiling.
const SOON: Duration = Duration::from_secs(15);
/// Pause between two looks. Not a wait for anything: only politeness towards the CPU.
const LOOK: Duration = Duration::from_millis(20);

/// Time since it was started.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts one.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "tests of real processes live in real time"
    )]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// How long it runs.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Looks until `look` finds something.
///
/// # Panics
/// If it does not within 15 s; `what` says what was waited for.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(SOON, what, look)
}

/// As [`eventually`], with a deadline of its own.
///
/// # Panics
/// If `look` finds nothing within `limit`.
pub fn eventually_within<T>(limit: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
    let seconds = limit.as_secs_f64();
    poll(limit, look).unwrap_or_else(|| panic!("waited {seconds:.1} s in vain for: {what}"))
}

/// Looks until `look` finds something or `limit` is over.
pub(crate) fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let waiting = Stopwatch::start();
    loop {
        let found = look();
        if found.is_some() || waiting.elapsed() >= limit {
            return found;
        }
        std::thread::sleep(LOOK);
    }
}
