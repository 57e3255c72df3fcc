//! Whether the generator itself kept up.
//!
//! A client that is short of CPU sends late and reads late, and its figures then describe itself.
//! Two clocks tell: how late requests went out, and how late a heartbeat of the same thread woke up,
//! which also sees the time spent reading streams.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::lab::bench::stats::nearest_rank;

/// How often the heartbeat wakes up. Lag shorter than this is measured as well: it is the lateness of
/// each beat.
const BEAT: Duration = Duration::from_millis(10);

/// How late the generator was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// 99th percentile.
    pub p99: Duration,
    /// Worst.
    pub max: Duration,
}

/// Collects delays.
#[derive(Debug, Default)]
pub(super) struct LagMeter {
    late: Vec<Duration>,
}

// === impl LagMeter ===

impl LagMeter {
    /// Something planned for one moment happened at another.
    pub(super) fn note(&mut self, planned: Instant, happened: Instant) {
        self.late.push(happened.saturating_duration_since(planned));
    }

    /// Beats for ever and notes how late each beat is.
    pub(super) async fn beat(&mut self) {
        let mut next = Instant::now() + BEAT;
        loop {
            sleep_until(next).await;
            let now = Instant::now();
            self.note(next, now);
            // Missed beats are not made up for, but their lateness weighs as much as they lasted.
            while next <= now {
                next += BEAT;
                if next <= now {
                    self.note(next, now);
                }
            }
        }
    }

    /// Of what was noted.
    pub(super) fn lag(mut self) -> Lag {
        self.late.sort_unstable();
        let p99 = nearest_rank(self.late.len(), 99).map(|at| self.late[at]);
        Lag {
            p99: p99.unwrap_or_default(),
            max: self.late.last().copied().unwrap_or_default(),
        }
    }
}

impl Lag {
    /// The worse of two clocks.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        Self {
            p99: self.p99.max(other.p99),
            max: self.max.max(other.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_shows_for_as_long_as_it_lasted() {
        let mut meter = LagMeter::default();
        let stall = Duration::from_millis(500);
        tokio::select! {
            () = meter.beat() => {}
            () = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                // The paused clock moves, and nothing ran meanwhile.
                tokio::time::advance(stall).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            } => {}
        }
        let lag = meter.lag();
        assert!(lag.max >= stall - BEAT, "{lag:?}");
        assert!(lag.p99 >= stall / 2, "{lag:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_thread_is_not_late() {
        let mut meter = LagMeter::default();
        tokio::select! {
            () = meter.beat() => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
        assert!(meter.lag().max <= Duration::from_millis(2));
    }
}
