//! When an engine that starts is given up: not by the clock, but once nothing of it moves.
//!
//! How long a start takes depends on disks, networks and compilers: two seconds for a small model,
//! an hour for a large one that is downloaded first. So what counts is whether it works on it: it
//! writes to its log, uses the CPU, or moves bytes (a download, weights, a compiled kernel). An
//! engine that only waits wakes up now and then to look whether it still must; that little does not
//! count.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// What a tree of processes has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Bytes in its log.
    pub log: u64,
    /// CPU time, of ended children as well.
    pub cpu: Duration,
    /// Bytes read and written.
    pub io: u64,
}

/// What can show that a start goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Its log grew.
    Log,
    /// It used the CPU.
    Cpu,
    /// It read or wrote.
    Io,
}

/// What to make of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, or stands still for too short a time.
    Fine,
    /// Nothing has moved for as long as it may.
    Stalled {
        /// What moved last, if anything ever did.
        last: Option<Sign>,
    },
}

/// Of the time that nothing may move, the part that a process which only waits may compute. A
/// thread that wakes up ten times a second takes a tenth of that.
const IDLE_SHARE: u32 = 100;

/// Bytes that a process which only waits may move meanwhile: to wake threads up, to look at files.
const IDLE_BYTES: u64 = 1 << 20;

/// One start, watched.
#[derive(Clone, Copy, Debug)]
pub struct Startup {
    patience: Duration,
    /// What was seen when something last moved.
    moved: (Instant, Traces),
    last: Option<Sign>,
}

// === impl Startup ===

impl Startup {
    /// A start that begins now, in which nothing may stand still for longer than `patience`.
    #[must_use]
    pub fn new(now: Instant, patience: Duration) -> Self {
        Self {
            patience,
            moved: (now, Traces::default()),
            last: None,
        }
    }

    /// Takes in what is seen now.
    pub fn look(&mut self, now: Instant, seen: Traces) -> Verdict {
        let (since, before) = self.moved;
        if let Some(sign) = self.sign(before, seen) {
            self.moved = (now, seen);
            self.last = Some(sign);
            return Verdict::Fine;
        }
        // A process that ended takes its counts along, and a log that is rotated begins anew; what
        // comes after shall count from there.
        let least = Traces {
            log: before.log.min(seen.log),
            cpu: before.cpu.min(seen.cpu),
            io: before.io.min(seen.io),
        };
        self.moved = (since, least);
        if now.saturating_duration_since(since) < self.patience {
            return Verdict::Fine;
        }
        Verdict::Stalled { last: self.last }
    }

    /// What has moved, the most telling first.
    fn sign(&self, before: Traces, seen: Traces) -> Option<Sign> {
        let cpu = seen.cpu.saturating_sub(before.cpu);
        let io = seen.io.saturating_sub(before.io);
        if seen.log > before.log {
            Some(Sign::Log)
        } else if io >= IDLE_BYTES {
            Some(Sign::Io)
        } else if cpu > self.patience / IDLE_SHARE {
            Some(Sign::Cpu)
        } else {
            None
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Log => "its log",
            Self::Cpu => "the CPU",
            Self::Io => "bytes of files",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::epoch;

    const PATIENCE: Duration = Duration::from_secs(180);
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: u32 = 3600;

    /// Looks once a second for an hour; when it was given up, and what moved last.
    fn stalled_at(traces: impl Fn(u32) -> Traces) -> Option<(u32, Option<Sign>)> {
        let mut startup = Startup::new(epoch(), PATIENCE);
        let begin = startup.moved.0;
        (1..=HOUR).find_map(
            |second| match startup.look(begin + SECOND * second, traces(second)) {
                Verdict::Fine => None,
                Verdict::Stalled { last } => Some((second, last)),
            },
        )
    }

    #[test]
    fn start_of_an_hour_is_fine_as_long_as_one_thing_moves() {
        let log = |second: u32| Traces {
            log: u64::from(second / 170),
            ..Traces::default()
        };
        // Compiles in silence, on one core of many.
        let cpu = |second: u32| Traces {
            cpu: SECOND * second,
            ..Traces::default()
        };
        // A download at 20 KiB/s.
        let io = |second: u32| Traces {
            io: u64::from(second) * 20_480,
            ..Traces::default()
        };
        assert_eq!(stalled_at(log), None);
        assert_eq!(stalled_at(cpu), None);
        assert_eq!(stalled_at(io), None);
    }

    #[test]
    fn start_that_stands_still_is_given_up_and_what_moved_last_is_known() {
        let until = |end: u32| {
            move |second: u32| Traces {
                log: 4096,
                cpu: SECOND * second.min(end),
                ..Traces::default()
            }
        };
        assert_eq!(stalled_at(|_| Traces::default()), Some((180, None)));
        assert_eq!(stalled_at(until(1000)), Some((1179, Some(Sign::Cpu))));
    }

    #[test]
    fn process_that_only_waits_does_not_move() {
        // Three threads that wake up ten times a second for 50 us each, over a pipe of 8 bytes.
        let waits = |second: u32| Traces {
            log: 10,
            cpu: Duration::from_micros(1500) * second,
            io: u64::from(second) * 240,
        };
        assert_eq!(stalled_at(waits), Some((181, Some(Sign::Log))));
    }

    #[test]
    fn counts_that_fall_are_no_movement_and_hide_none() {
        let worker_ends = |second: u32| Traces {
            cpu: SECOND * if second < 100 { 1000 } else { second / 10 },
            ..Traces::default()
        };
        assert_eq!(stalled_at(worker_ends), None);
        let ends_and_nothing_comes = |second: u32| Traces {
            cpu: SECOND * if second < 100 { 1000 } else { 7 },
            ..Traces::default()
        };
        assert_eq!(
            stalled_at(ends_and_nothing_comes),
            Some((181, Some(Sign::Cpu)))
        );
    }

    proptest! {
        #[test]
        fn nothing_is_given_up_before_its_time(steps in prop::collection::vec((1..400_u32, 0..3_u64), 1..100)) {
            let mut startup = Startup::new(epoch(), PATIENCE);
            let (mut now, mut moved, mut seen) = (startup.moved.0, startup.moved.0, Traces::default());
            for (seconds, lines) in steps {
                now += SECOND * seconds;
                seen.log += lines;
                if lines > 0 {
                    moved = now;
                }
                let stalled = startup.look(now, seen) != Verdict::Fine;
                prop_assert_eq!(stalled, now - moved >= PATIENCE);
            }
        }
    }
}
