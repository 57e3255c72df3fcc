//! A token bucket, exact to the nanosecond.
//!
//! The bucket is kept as a debt that drains. One unit of whatever is rationed (a request, a token)
//! weighs [`MINUTE`] grains and the debt drains by `per_minute` grains each nanosecond, so every
//! quantity is an integer and nothing is ever rounded except `retry_after`, which rounds up: a
//! client that waits exactly that long is let in.

use std::time::{Duration, Instant};

/// Grains per unit: the nanoseconds of a minute.
const MINUTE: u128 = 60_000_000_000;

/// May it be spent now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, and it was.
    Granted,
    /// Not now.
    Denied {
        /// When the same amount would be granted if nobody else spends.
        retry_after: Duration,
    },
    /// Never: it is more than a full bucket holds.
    TooLarge,
}

/// What a client may know about its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Units a full bucket holds.
    pub limit: u64,
    /// Units that could be spent now.
    pub remaining: u64,
    /// When the bucket is full again.
    pub reset: Duration,
}

/// Rations units at a sustained rate with a burst.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_minute: u64,
    burst: u64,
    debt: u128,
    as_of: Instant,
}

impl TokenBucket {
    /// A full bucket. A rate or burst of 0 counts as 1: a bucket that never grants is a refusal and
    /// should be configured as one.
    #[must_use]
    pub fn full(per_minute: u64, burst: u64, now: Instant) -> Self {
        Self {
            per_minute: per_minute.max(1),
            burst: burst.max(1),
            debt: 0,
            as_of: now,
        }
    }

    /// Takes `units` if they are there.
    pub fn take(&mut self, units: u64, now: Instant) -> Verdict {
        if units > self.burst {
            return Verdict::TooLarge;
        }
        self.drain(now);
        let wanted = self.debt + grains(units);
        let excess = wanted.saturating_sub(grains(self.burst));
        if excess > 0 {
            return Verdict::Denied {
                retry_after: self.time_to_drain(excess),
            };
        }
        self.debt = wanted;
        Verdict::Granted
    }

    /// Takes `units` that were already used, there or not; the debt delays later ones.
    pub fn charge(&mut self, units: u64, now: Instant) {
        self.drain(now);
        self.debt += grains(units);
    }

    /// Gives back `units` that were taken and not used.
    pub fn refund(&mut self, units: u64) {
        self.debt = self.debt.saturating_sub(grains(units));
    }

    /// Another rate and burst from now on. What was used stays used; a smaller bucket is empty by that
    /// at most.
    pub fn resize(&mut self, per_minute: u64, burst: u64, now: Instant) {
        self.drain(now);
        let burst = burst.max(1);
        if burst < self.burst {
            self.debt = self.debt.min(grains(burst));
        }
        (self.per_minute, self.burst) = (per_minute.max(1), burst);
    }

    /// What is left.
    #[must_use]
    pub fn level(&self, now: Instant) -> Level {
        let mut at = self.clone();
        at.drain(now);
        let free = grains(at.burst).saturating_sub(at.debt);
        Level {
            limit: at.burst,
            remaining: u64::try_from(free / MINUTE).unwrap_or(u64::MAX),
            reset: at.time_to_drain(at.debt),
        }
    }

    fn drain(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.as_of).as_nanos();
        self.debt = self
            .debt
            .saturating_sub(elapsed * u128::from(self.per_minute));
        self.as_of = self.as_of.max(now);
    }

    fn time_to_drain(&self, grains: u128) -> Duration {
        let nanos = grains.div_ceil(u128::from(self.per_minute));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

fn grains(units: u64) -> u128 {
    u128::from(units) * MINUTE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::epoch;

    #[test]
    fn burst_is_granted_at_once_and_then_the_rate() {
        let start = epoch();
        let mut bucket = TokenBucket::full(60, 3, start);
        for _ in 0..3 {
            assert_eq!(bucket.take(1, start), Verdict::Granted);
        }
        let denied = Verdict::Denied {
            retry_after: Duration::from_secs(1),
        };
        assert_eq!(bucket.take(1, start), denied);
        assert_eq!(
            bucket.take(1, start + Duration::from_secs(1)),
            Verdict::Granted
        );
    }

    #[test]
    fn more_than_a_full_bucket_is_never_granted() {
        assert_eq!(
            TokenBucket::full(60, 3, epoch()).take(4, epoch()),
            Verdict::TooLarge
        );
    }

    #[test]
    fn what_was_used_beyond_the_reservation_delays_the_next() {
        let start = epoch();
        let mut bucket = TokenBucket::full(60, 10, start);
        bucket.charge(70, start);
        assert_eq!(bucket.level(start).remaining, 0);
        let Verdict::Denied { retry_after } = bucket.take(1, start) else {
            panic!("70 used of 10 leaves nothing");
        };
        assert_eq!(retry_after, Duration::from_secs(61));
    }

    #[test]
    fn resized_bucket_keeps_what_was_used_and_a_smaller_one_is_empty_at_most() {
        let start = epoch();
        let mut bucket = TokenBucket::full(60, 100, start);
        bucket.take(40, start);
        bucket.resize(600, 200, start);
        assert_eq!(bucket.level(start).remaining, 160);
        bucket.resize(60, 10, start);
        let level = bucket.level(start);
        assert_eq!((level.limit, level.remaining), (10, 0));
        assert_eq!(level.reset, Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn waiting_exactly_retry_after_is_enough_and_a_nanosecond_less_is_not(
            per_minute in 1_u64..5_000_000, burst in 1_u64..10_000,
            takes in prop::collection::vec((1_u64..200, 0_u64..3_000_000_000), 1..60),
        ) {
            let mut now = epoch();
            let mut bucket = TokenBucket::full(per_minute, burst, now);
            for (units, pause) in takes {
                now += Duration::from_nanos(pause);
                if let Verdict::Denied { retry_after } = bucket.take(units, now) {
                    prop_assert!(retry_after > Duration::ZERO);
                    let early = now + retry_after - Duration::from_nanos(1);
                    let is_denied = matches!(bucket.clone().take(units, early), Verdict::Denied { .. });
                    prop_assert!(is_denied);
                    now += retry_after;
                    prop_assert_eq!(bucket.take(units, now), Verdict::Granted);
                }
            }
        }

        #[test]
        fn never_more_than_burst_plus_rate_is_granted(
            per_minute in 1_u64..100_000, burst in 1_u64..500,
            takes in prop::collection::vec((1_u64..50, 0_u64..1_000_000_000), 1..200),
        ) {
            let start = epoch();
            let (mut now, mut granted) = (start, 0_u128);
            let mut bucket = TokenBucket::full(per_minute, burst, start);
            for (units, pause) in takes {
                now += Duration::from_nanos(pause);
                if bucket.take(units, now) == Verdict::Granted {
                    granted += grains(units);
                }
            }
            let elapsed = (now - start).as_nanos();
            prop_assert!(granted <= grains(burst) + elapsed * u128::from(per_minute));
        }

        #[test]
        fn a_refund_restores_the_level(per_minute in 1_u64..1000, units in 1_u64..100) {
            let now = epoch();
            let mut bucket = TokenBucket::full(per_minute, 100, now);
            bucket.take(units, now);
            bucket.refund(units);
            prop_assert_eq!(bucket.level(now), Level { limit: 100, remaining: 100, reset: Duration::ZERO });
        }
    }
}
