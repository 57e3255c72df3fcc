//! When a failed engine may try again, and when it must not.
//!
//! Waits double from 1 s to 60 s with jitter, so that engines that failed together do not start
//! together (Brooker, "Exponential Backoff And Jitter", AWS 2015). Five failures within ten
//! minutes open the breaker: the model is broken and its requests are refused at once. Half an
//! hour of service forgets old failures by themselves, since only the window counts.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Failures within [`WINDOW`] that open the breaker.
pub const MAX_FAILURES: usize = 5;
/// How far back failures count.
pub const WINDOW: Duration = Duration::from_secs(600);
/// How long an open breaker refuses before one more try.
pub const COOL_DOWN: Duration = Duration::from_secs(300);
const FIRST: Duration = Duration::from_secs(1);
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
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: VecDeque<Instant>,
}

impl Backoff {
    /// Records a failure. `entropy` is any number that differs between engines and failures.
    pub fn fail(&mut self, now: Instant, entropy: u64) -> Next {
        self.failures
            .retain(|at| now.saturating_duration_since(*at) < WINDOW);
        self.failures.push_back(now);
        let attempt = self.failures.len();
        if attempt >= MAX_FAILURES {
            return Next::Open { after: COOL_DOWN };
        }
        let doublings = u32::try_from(attempt - 1).unwrap_or(u32::MAX).min(6);
        let full = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        Next::Retry {
            attempt,
            after: jittered(full, entropy),
        }
    }
}

/// Between `full` and one and a half times `full`, but at most [`LONGEST`].
fn jittered(full: Duration, entropy: u64) -> Duration {
    let share = u32::try_from(entropy % 512).unwrap_or(0);
    (full + full * share / 1024).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::epoch;

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
        assert_eq!(backoff.fail(start, 0), Next::Open { after: COOL_DOWN });
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (mut backoff, start) = (Backoff::default(), epoch());
        for _ in 0..MAX_FAILURES {
            backoff.fail(start, 0);
        }
        let next = backoff.fail(start + WINDOW, 0);
        assert_eq!(
            next,
            Next::Retry {
                attempt: 1,
                after: FIRST
            }
        );
    }

    proptest! {
        #[test]
        fn waits_grow_and_stay_between_one_second_and_one_minute(entropy: u64) {
            let (mut backoff, start) = (Backoff::default(), epoch());
            let mut before = Duration::ZERO;
            while let Next::Retry { after, .. } = backoff.fail(start, entropy) {
                prop_assert!((FIRST..=LONGEST).contains(&after) && after > before);
                before = after;
            }
        }
    }
}
