//! When an engine that has work is suspected of doing none.
//!
//! An engine whose core hangs goes on saying that it is healthy (vLLM's `/health` is answered by
//! another process), so what counts is whether anything moves: what reaches its clients, or its own
//! count of iterations, which moves during a long prompt too. A suspicion is no verdict: one probe
//! follows, and only an engine that fails it as well is ended.

use std::time::{Duration, Instant};

/// What can be seen of an engine's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Requests it should be working on. New ones, and clients that give up, are no sign of life.
    pub running: u64,
    /// Tokens and whole answers that came out of it.
    pub progress: u64,
    /// Iterations by its own count, if it says.
    pub iterations: Option<u64>,
}

/// What to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It moves, or has nothing to do, or stands still for too short a time.
    Fine,
    /// Nothing has moved for so long that it should be asked.
    Suspect,
}

/// One engine's last signs of life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stall {
    last: Signs,
    /// Since when nothing moves although it has work.
    since: Option<Instant>,
}

// === impl Stall ===

impl Stall {
    /// Takes in what is seen now. A suspicion is said once; then the time runs anew.
    pub fn look(&mut self, now: Instant, signs: Signs, timeout: Duration) -> Verdict {
        let iterations = signs.iterations.or(self.last.iterations);
        let seen = Signs {
            iterations,
            ..signs
        };
        let has_moved = (seen.progress, iterations) != (self.last.progress, self.last.iterations);
        self.last = seen;
        if signs.running == 0 {
            self.since = None;
            return Verdict::Fine;
        }
        if has_moved {
            self.since = Some(now);
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < timeout {
            return Verdict::Fine;
        }
        self.since = Some(now);
        Verdict::Suspect
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::epoch;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const TICK: Duration = Duration::from_millis(100);
    const HOUR: u32 = 36_000;

    fn busy(progress: u64, iterations: Option<u64>) -> Signs {
        Signs {
            running: 256,
            progress,
            iterations,
        }
    }

    #[test]
    fn saturated_hour_of_long_prompts_is_not_suspect() {
        let mut stall = Stall::default();
        // Nothing streams, since prompts take minutes, and the page is read once a second and then
        // only sometimes; a step of a long prompt takes four seconds.
        for tick in 0..HOUR {
            let step = u64::from(tick) / 40;
            let told = (tick % 10 == 0 && tick % 70 != 0).then_some(step);
            let verdict = stall.look(epoch() + TICK * tick, busy(0, told), TIMEOUT);
            assert_eq!(verdict, Verdict::Fine, "at tick {tick}");
        }
    }

    #[test]
    fn engine_that_stands_still_is_suspected_in_time_and_again_later() {
        let (mut stall, begin) = (Stall::default(), epoch());
        let suspected = |stall: &mut Stall, at: Duration, signs| {
            stall.look(begin + at, signs, TIMEOUT) == Verdict::Suspect
        };
        assert!(!suspected(&mut stall, Duration::ZERO, busy(7, Some(3))));
        // It does not answer any more, and new requests and lost clients make no difference.
        let still = |running| Signs {
            running,
            ..busy(7, None)
        };
        assert!(!suspected(&mut stall, TIMEOUT - TICK, still(9)));
        assert!(suspected(&mut stall, TIMEOUT, still(2)));
        assert!(!suspected(&mut stall, TIMEOUT + TICK, still(3)));
        assert!(suspected(&mut stall, TIMEOUT * 2, still(4)));
    }

    #[test]
    fn time_without_work_does_not_count() {
        let (mut stall, begin) = (Stall::default(), epoch());
        for hours in 0..5 {
            let now = begin + Duration::from_secs(3600 * hours);
            assert_eq!(stall.look(now, Signs::default(), TIMEOUT), Verdict::Fine);
            assert_eq!(stall.look(now, busy(0, None), TIMEOUT), Verdict::Fine);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_suspected_while_anything_moves(
            looks in prop::collection::vec((1..290_u32, any::<bool>(), any::<bool>(), 0..3_u64), 1..200),
        ) {
            let (mut stall, mut now) = (Stall::default(), epoch());
            let (mut progress, mut iterations) = (0, 0);
            for (ticks, streams, tells, running) in looks {
                now += TICK * ticks;
                // At each look one of the two has moved.
                if streams {
                    progress += 1;
                } else {
                    iterations += 1;
                }
                let told = (tells || !streams).then_some(iterations);
                let signs = Signs { running, progress, iterations: told };
                prop_assert_eq!(stall.look(now, signs, TIMEOUT), Verdict::Fine);
            }
        }
    }
}
