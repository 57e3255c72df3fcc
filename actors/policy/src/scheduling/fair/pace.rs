//! How fast the engine steps and how late its first tokens are, as seen from outside.
//!
//! Every decoding sequence gets one token per step, so the time a sequence takes per token is the
//! time of a step. A first token takes the way there and back, then as many steps as the prompt
//! fills. What it takes beyond that it waited inside the engine: half a step on average for the
//! running one to end, and whatever was queued before it.

use std::time::{Duration, Instant};

/// How long the smallest delay seen counts as what the way there and back takes. It slowly forgets,
/// as the round-trip time of BBR does (Cardwell et al., ACM Queue 2016), because a loaded front end
/// gets slower.
const FLOOR_MEMORY: Duration = Duration::from_secs(10);

/// First tokens looked at per period; the median of so many is known well enough.
const MAX_SAMPLES: usize = 256;

#[derive(Debug)]
pub(super) struct Pace {
    chunk_tokens: u64,
    /// Smoothed time of a step in nanoseconds.
    step: Option<u64>,
    /// Sequence-nanoseconds and tokens since the last look.
    spent: u128,
    tokens: u128,
    /// Looks since the last one that saw a token.
    unseen: u32,
    /// First-token delays less the steps they need, since the last look, in nanoseconds.
    delays: Vec<u64>,
    floor: Floor,
}

/// The least of the current and the previous stretch of [`FLOOR_MEMORY`].
#[derive(Debug, Default)]
struct Floor {
    since: Option<Instant>,
    current: Option<u64>,
    previous: Option<u64>,
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(chunk_tokens: u64) -> Self {
        Self {
            chunk_tokens: chunk_tokens.max(1),
            step: None,
            spent: 0,
            tokens: 0,
            unseen: 0,
            delays: Vec::new(),
            floor: Floor::default(),
        }
    }

    /// `sequences` decoded for that long and got so many tokens together.
    pub(super) fn decoded(&mut self, sequences: u64, took: Duration, tokens: u64) {
        self.spent += took.as_nanos().saturating_mul(u128::from(sequences));
        self.tokens += u128::from(tokens);
    }

    /// The engine computes so much of one prompt in a step from now on.
    pub(super) fn allow(&mut self, chunk_tokens: u64) {
        self.chunk_tokens = chunk_tokens.max(1);
    }

    /// A prompt's first token came after that long.
    pub(super) fn first_token(&mut self, prompt_tokens: u64, took: Duration, now: Instant) {
        let Some(step) = self.step else {
            return;
        };
        let steps = prompt_tokens.div_ceil(self.chunk_tokens).max(1);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let delay = took.saturating_sub(step.saturating_mul(steps));
        self.floor.see(delay, now);
        if self.delays.len() < MAX_SAMPLES {
            self.delays.push(delay);
        }
    }

    /// The median lateness since the last look, in hundredths of a step, rounded down.
    pub(super) fn look(&mut self) -> Option<u64> {
        let lateness = self.lateness();
        self.delays.clear();
        self.unseen = self.unseen.saturating_add(1);
        if let Some(seen) = self.spent.checked_div(self.tokens) {
            let seen = u64::try_from(seen).unwrap_or(u64::MAX);
            // Weight 1/4: a look every 100 ms, so half a second to follow a change.
            let smoothed = |step: u64| (step / 4).saturating_mul(3).saturating_add(seen / 4);
            self.step = Some(self.step.map_or(seen, smoothed).max(1));
            (self.spent, self.tokens, self.unseen) = (0, 0, 0);
        }
        lateness
    }

    fn lateness(&mut self) -> Option<u64> {
        let middle = self.delays.len() / 2;
        let (_, median, _) =
            (!self.delays.is_empty()).then(|| self.delays.select_nth_unstable(middle))?;
        let late = median.saturating_sub(self.floor.least()?);
        Some(late.saturating_mul(100) / self.step?)
    }

    /// The time of a step, if tokens were seen within a second.
    pub(super) fn fresh_step(&self) -> Option<Duration> {
        const LOOKS: u32 = 10;
        self.step().filter(|_| self.unseen <= LOOKS)
    }

    pub(super) fn step(&self) -> Option<Duration> {
        self.step.map(Duration::from_nanos)
    }
}

// === impl Floor ===

impl Floor {
    fn see(&mut self, delay: u64, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= FLOOR_MEMORY {
            self.since = Some(now);
            self.previous = self.current.take();
        }
        self.current = Some(self.current.map_or(delay, |least| least.min(delay)));
    }

    fn least(&self) -> Option<u64> {
        match (self.current, self.previous) {
            (Some(current), Some(previous)) => Some(current.min(previous)),
            (one, other) => one.or(other),
        }
    }
}
