//! When a failed engine may try again, and when it must not.
//!
//! Waits lie anywhere between 1 s and a bound that doubles from 2 s to 60 s, so that engines that
//! failed together do not start together ("full jitter" in Brooker, "Exponential Backoff And
//! Jitter", AWS 2015). Five failures within ten minutes open the breaker: the model is broken and
//! its requests are refused at once. After a pause one start is tried: its success closes the
//! breaker and forgets what was, its failure leaves it open for another pause.
//!
//! Moments are [`Instant`]s throughout, so a wall clock that jumps changes nothing.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Failures within [`WINDOW`] that open the breaker.
pub const MAX_FAILURES: usize = 5;
/// How far back failures count.
pub const WINDOW: Duration = Duration::from_secs(600);
/// How long an open breaker refuses before one more try, unless it is told otherwise.
pub const COOL_DOWN: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again.
    Retry {
        /// Which failure in the window this was, from 1.
        attempt: usize,
        /// After this long.
        after: Duration,
    },
    /// Too many failures: refuse until the cool-down is over.
    Open {
        /// When one more try is due.
        after: Duration,
    },
}

/// The failures of one model's engine.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures: VecDeque<Instant>,
    /// Failures since it last served, however long ago. An engine that takes five minutes to fail
    /// never opens the breaker, and waits longer each time all the same.
    in_a_row: u32,
    is_open: bool,
    cool_down: Duration,
}

// === impl Backoff ===

impl Backoff {
    /// No failures so far. An open breaker refuses for `cool_down`.
    #[must_use]
    pub fn new(cool_down: Duration) -> Self {
        Self {
            failures: VecDeque::new(),
            in_a_row: 0,
            is_open: false,
            cool_down,
        }
    }

    /// Records a failure. `entropy` is any number that differs between engines and failures.
    pub fn fail(&mut self, now: Instant, entropy: u64) -> Next {
        self.failures
            .retain(|at| now.saturating_duration_since(*at) < WINDOW);
        self.failures.push_back(now);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let attempt = self.failures.len();
        self.is_open |= attempt >= MAX_FAILURES;
        if self.is_open {
            let after = self.cool_down;
            return Next::Open { after };
        }
        let in_window = u32::try_from(attempt).unwrap_or(u32::MAX);
        let doublings = in_window.max(self.in_a_row).min(6);
        Next::Retry {
            attempt,
            after: jittered(SHORTEST * (1 << doublings), entropy),
        }
    }

    /// It serves. That alone forgets no failure: one that serves and crashes again and again is to
    /// be found too. But a breaker that was open closes.
    pub fn succeed(&mut self) {
        self.in_a_row = 0;
        if std::mem::take(&mut self.is_open) {
            self.failures.clear();
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(COOL_DOWN)
    }
}

/// Anywhere between [`SHORTEST`] and `bound`, which is [`LONGEST`] at most.
fn jittered(bound: Duration, entropy: u64) -> Duration {
    let share = u32::try_from(entropy % 1024).unwrap_or(0);
    SHORTEST + (bound.min(LONGEST) - SHORTEST) * share / 1023
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::epoch;

    const OPEN: Next = Next::Open { after: COOL_DOWN };

    #[test]
    fn fifth_failure_in_ten_minutes_opens_the_breaker() {
        let (mut backoff, start) = (Backoff::default(), epoch());
        for attempt in 1..MAX_FAILURES {
            let Next::Retry {
                attempt: counted, ..
            } = backoff.fail(start, 0)
            else {
                panic!("opened at failure {attempt}");
            };
            assert_eq!(counted, attempt);
        }
        assert_eq!(backoff.fail(start, 0), OPEN);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (mut backoff, start) = (Backoff::default(), epoch());
        for _ in 1..MAX_FAILURES {
            backoff.fail(start, 0);
        }
        let next = backoff.fail(start + WINDOW, 0);
        assert!(matches!(next, Next::Retry { attempt: 1, .. }), "{next:?}");
    }

    #[test]
    fn failed_try_leaves_the_breaker_open_however_long_it_took() {
        let (mut backoff, start) = (Backoff::default(), epoch());
        for _ in 0..MAX_FAILURES {
            backoff.fail(start, 0);
        }
        assert_eq!(backoff.fail(start + COOL_DOWN, 0), OPEN);
        assert_eq!(backoff.fail(start + COOL_DOWN * 2 + WINDOW, 0), OPEN);
    }

    #[test]
    fn successful_try_closes_the_breaker() {
        let (mut backoff, start) = (Backoff::default(), epoch());
        for _ in 0..MAX_FAILURES {
            backoff.fail(start, 0);
        }
        backoff.succeed();
        let next = backoff.fail(start + COOL_DOWN, 0);
        assert!(matches!(next, Next::Retry { attempt: 1, .. }), "{next:?}");
    }

    #[test]
    fn engine_that_serves_between_its_crashes_is_found_too() {
        let (mut backoff, start) = (Backoff::default(), epoch());
        for _ in 1..MAX_FAILURES {
            backoff.fail(start, 0);
            backoff.succeed();
        }
        assert_eq!(backoff.fail(start, 0), OPEN);
    }

    #[test]
    fn waits_grow_to_a_minute_where_starts_take_long_to_fail() {
        let (mut backoff, start) = (Backoff::default(), epoch());
        let waits = (0..8).map(
            |failure| match backoff.fail(start + WINDOW * failure, 1023) {
                Next::Retry { after, .. } => after.as_secs(),
                Next::Open { .. } => panic!("opened"),
            },
        );
        assert_eq!(waits.collect::<Vec<_>>(), [2, 4, 8, 16, 32, 60, 60, 60]);
    }

    proptest! {
        #[test]
        fn waits_lie_between_one_second_and_a_bound_that_doubles(entropy: u64) {
            let (mut backoff, start) = (Backoff::default(), epoch());
            let mut bound = SHORTEST;
            while let Next::Retry { after, .. } = backoff.fail(start, entropy) {
                bound = (bound * 2).min(LONGEST);
                prop_assert!((SHORTEST..=bound).contains(&after), "{after:?} of {bound:?}");
            }
        }
    }
}
