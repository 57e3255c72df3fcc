//! When an engine that has work is suspected of doing none, and when that is certain.
//!
//! An engine whose core hangs goes on saying that it is healthy (vLLM's `/health` is answered by
//! another process), so what counts is whether anything moves: what reaches its clients, or what it
//! says of its own work. A suspicion is no verdict: the engine is asked for a token. That token, or
//! anything else that moves by then, clears it; an engine in which nothing does is hung.

use std::time::{Duration, Instant};

/// How long a suspected engine has to show any sign of life. With the default window of 20 s and
/// 2 s for its end, a hung engine is gone within 30 s. No step of a healthy engine may take longer
/// than window and proof together.
pub const PROOF: Duration = Duration::from_secs(8);

/// How long it may take over the token it is asked for. What is known then has to be heard before
/// [`PROOF`] is over, from a machine that may be busy.
pub const ANSWER: Duration = Duration::from_secs(6);

/// What can be seen of an engine's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Requests it should be working on. New ones, and clients that give up, are no sign of life.
    pub running: u64,
    /// Tokens and whole answers that came out of it.
    pub progress: u64,
    /// Its own account of its work, if it gives one: steps, or KV cache in use, since vLLM counts no step
    /// before a long prompt is through. Only whether it changes matters.
    pub work: Option<u64>,
}

/// What to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It moves, or has nothing to do, or stands still for too short a time.
    Fine,
    /// Nothing has moved for so long that it should be asked.
    Suspect,
    /// It was asked, and still nothing moves.
    Hung,
}

/// One engine's last signs of life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stall {
    last: Signs,
    state: StallState,
}

/// For how long nothing has moved although it has work.
#[derive(Clone, Copy, Debug, Default)]
enum StallState {
    /// It moves or has nothing to do.
    #[default]
    Not,
    Still {
        since: Instant,
    },
    Asked {
        at: Instant,
    },
    /// It was said to be hung, and will end.
    Hung,
}

// === impl Stall ===

impl Stall {
    /// Takes in what is seen now. A suspicion is said once, and so is what comes of it.
    pub fn look(&mut self, now: Instant, signs: Signs, window: Duration) -> Verdict {
        let work = signs.work.or(self.last.work);
        let seen = Signs { work, ..signs };
        let has_moved = (seen.progress, work) != (self.last.progress, self.last.work);
        self.last = seen;
        if signs.running == 0 {
            self.state = StallState::Not;
            return Verdict::Fine;
        }
        let (state, verdict) = match self.state {
            StallState::Hung => (StallState::Hung, Verdict::Fine),
            StallState::Not => (StallState::Still { since: now }, Verdict::Fine),
            StallState::Still { .. } | StallState::Asked { .. } if has_moved => {
                (StallState::Still { since: now }, Verdict::Fine)
            }
            StallState::Still { since } if now.saturating_duration_since(since) >= window => {
                (StallState::Asked { at: now }, Verdict::Suspect)
            }
            StallState::Asked { at } if now.saturating_duration_since(at) >= PROOF => {
                (StallState::Hung, Verdict::Hung)
            }
            waiting @ (StallState::Still { .. } | StallState::Asked { .. }) => {
                (waiting, Verdict::Fine)
            }
        };
        self.state = state;
        verdict
    }
}

#[cfg(test)]
mod tests;
