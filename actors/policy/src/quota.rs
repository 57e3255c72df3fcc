//! A budget of tokens per day.
//!
//! Unlike a [`bucket`](crate::bucket) it does not refill as time goes by but at midnight UTC, all at
//! once: it bounds what a tenant costs, not how fast.

use std::time::{Duration, SystemTime};

use crate::bucket::Verdict;

const DAY: u64 = 86_400;

/// A UTC day, counted from 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(u64);

/// What is left of a day's tokens.
#[derive(Clone, Debug)]
pub struct DailyQuota {
    per_day: u64,
    today: Day,
    used: u64,
}

// === impl Day ===

impl Day {
    /// The day of a moment.
    #[must_use]
    pub fn of(moment: SystemTime) -> Self {
        Self(since_epoch(moment).as_secs() / DAY)
    }

    /// When it begins.
    #[must_use]
    pub fn midnight(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.saturating_mul(DAY))
    }
}

// === impl DailyQuota ===

impl DailyQuota {
    /// A day's tokens of which `used` are gone. None at all counts as one: a quota that never grants
    /// is a refusal and should be configured as one.
    #[must_use]
    pub fn resumed(per_day: u64, today: Day, used: u64) -> Self {
        Self {
            per_day: per_day.max(1),
            today,
            used,
        }
    }

    /// Takes `units` if they are there.
    pub fn take(&mut self, units: u64, now: SystemTime) -> Verdict {
        if units > self.per_day {
            return Verdict::TooLarge;
        }
        self.turn(now);
        let wanted = self.used.saturating_add(units);
        if wanted > self.per_day {
            return Verdict::Denied {
                retry_after: self.until_tomorrow(now),
            };
        }
        self.used = wanted;
        Verdict::Granted
    }

    /// What was taken on `day` came to `used` instead of `taken`. What was taken on an earlier day
    /// was that day's.
    pub fn settle(&mut self, day: Day, taken: u64, used: u64) {
        if day == self.today {
            self.used = self.used.saturating_sub(taken).saturating_add(used);
        }
    }

    /// Another budget from now on. What was used of the day stays used.
    pub fn resize(&mut self, per_day: u64) {
        self.per_day = per_day.max(1);
    }

    /// The day that tokens were taken from last.
    #[must_use]
    pub fn today(&self) -> Day {
        self.today
    }

    /// What a day holds.
    #[must_use]
    pub fn per_day(&self) -> u64 {
        self.per_day
    }

    /// Nothing is used of the day that `now` is in.
    #[must_use]
    pub fn is_whole(&self, now: SystemTime) -> bool {
        self.used == 0 || Day::of(now) > self.today
    }

    /// A clock that is set back does not bring back a day.
    fn turn(&mut self, now: SystemTime) {
        let day = Day::of(now);
        if day > self.today {
            self.today = day;
            self.used = 0;
        }
    }

    /// Rounded up to the nanosecond by nature: a client that waits that long meets the next day.
    fn until_tomorrow(&self, now: SystemTime) -> Duration {
        let midnight = Duration::from_secs((self.today.0 + 1).saturating_mul(DAY));
        midnight.saturating_sub(since_epoch(now))
    }
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: u64, second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(day * DAY + second)
    }

    #[test]
    fn a_day_is_used_up_until_midnight_and_whole_again_after_it() {
        let mut quota = DailyQuota::resumed(100, Day::default(), 0);
        assert_eq!(quota.take(60, at(7, 10)), Verdict::Granted);
        let denied = Verdict::Denied {
            retry_after: Duration::from_secs(DAY - 20),
        };
        assert_eq!(quota.take(41, at(7, 20)), denied);
        assert_eq!(quota.take(40, at(7, DAY - 1)), Verdict::Granted);
        assert!(!quota.is_whole(at(7, DAY - 1)) && quota.is_whole(at(8, 0)));
        assert_eq!(quota.take(100, at(8, 0)), Verdict::Granted);
        assert_eq!(quota.take(101, at(9, 0)), Verdict::TooLarge);
    }

    #[test]
    fn what_was_not_used_comes_back_on_the_same_day_only() {
        let mut quota = DailyQuota::resumed(100, Day::default(), 0);
        let _ = quota.take(90, at(7, 0));
        let day = quota.today();
        quota.settle(day, 90, 10);
        assert_eq!(quota.take(90, at(7, 1)), Verdict::Granted);
        let _ = quota.take(50, at(8, 0));
        quota.settle(day, 90, 1000);
        assert_eq!(quota.take(50, at(8, 1)), Verdict::Granted);
    }

    #[test]
    fn use_beyond_the_reservation_counts_against_the_day() {
        let mut quota = DailyQuota::resumed(100, Day::default(), 0);
        let _ = quota.take(10, at(7, 0));
        quota.settle(quota.today(), 10, 5000);
        assert!(matches!(quota.take(1, at(7, 1)), Verdict::Denied { .. }));
        assert_eq!(quota.take(1, at(8, 0)), Verdict::Granted);
    }

    #[test]
    fn resized_day_keeps_what_was_used() {
        let mut quota = DailyQuota::resumed(100, Day::default(), 0);
        let _ = quota.take(60, at(7, 0));
        quota.resize(50);
        assert!(matches!(quota.take(1, at(7, 1)), Verdict::Denied { .. }));
        quota.resize(61);
        assert_eq!(quota.take(1, at(7, 2)), Verdict::Granted);
    }

    #[test]
    fn a_clock_set_back_over_midnight_gives_no_second_day() {
        let mut quota = DailyQuota::resumed(100, Day::default(), 0);
        let _ = quota.take(100, at(8, 5));
        let denied = Verdict::Denied {
            retry_after: Duration::from_secs(DAY + 60),
        };
        assert_eq!(quota.take(1, at(7, DAY - 60)), denied);
    }
}
