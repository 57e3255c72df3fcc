//! The event log: what was asked for and what became of engines, for `kvwarden replay`
//! ([`crate::journal::log`] has the format).

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::metrics::counter::Counter;

use super::{log::Line, queue::Queue};

/// Takes lines, and never waits. A line that finds the queue full is lost and counted.
#[derive(Debug)]
pub struct EventLog {
    queue: Arc<Queue>,
    dropped: Counter,
    began: (Instant, Duration),
}

// === impl EventLog ===

impl EventLog {
    pub(super) fn new(queue: Arc<Queue>, dropped: Counter) -> Self {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            queue,
            dropped,
            began: (now(), since_epoch),
        }
    }

    /// Leaves a line to be written.
    pub fn say(&self, line: Line) {
        if !self.queue.push_event(line) {
            self.dropped.inc();
        }
    }

    /// A moment in seconds since the Unix epoch. The wall clock is read once, so that its jumps
    /// change no order.
    #[must_use]
    pub fn time(&self, at: Instant) -> f64 {
        let (began, since_epoch) = self.began;
        (since_epoch + at.saturating_duration_since(began)).as_secs_f64()
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.time(now())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "what happened is written down with the real time"
)]
fn now() -> Instant {
    Instant::now()
}
