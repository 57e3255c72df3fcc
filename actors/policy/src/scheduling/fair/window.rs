//! How much may be inside the engine: sequences, prompt tokens not acknowledged yet, KV cache.
//!
//! The prompt tokens dispatched whose first token has not come are the engine's queue as seen from
//! outside: exact, at once and without polling, since the first token is the acknowledgement. Keeping
//! them near what one step takes keeps the engine busy and its queue empty, so that the order is
//! decided here. Request time can't steer this, because output length dominates it, and a polled gauge
//! is late by hundreds of requests (llm-d-router issue 2066).

use std::time::{Duration, Instant};

use crate::scheduling::{settings::Capacity, types::WindowState};

/// What requests occupy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Sequences.
    pub(super) sequences: u64,
    /// Prompt tokens dispatched whose first token has not come.
    pub(super) unacked: u64,
    /// Those among them that went into the headroom.
    pub(super) guests: u64,
    /// Tokens of KV cache, expected ones included.
    pub(super) kv: u64,
}

/// Whose limits apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// Everyone's.
    Common,
    /// Those of a tenant far below its share.
    Headroom,
}

/// Whether a request may go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Fits,
    LacksSequences,
    LacksPrefill,
    LacksKv,
}

/// The window's control looks at what it saw this often.
const PERIOD: Duration = Duration::from_millis(100);

/// Engine waiting queues up to this length are its own business.
pub(in crate::scheduling) const TOLERATED_WAITING: u64 = 2;

/// A longer one for this long means that the window is too large.
const TOLERATED_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Window {
    capacity: Capacity,
    /// Prompt tokens that may be un-acknowledged, in [B/2, 4B].
    prefill: u64,
    /// Prefill was what stopped a dispatch since the last look.
    was_limited: bool,
    looked: Option<Instant>,
    engine_waits_since: Option<Instant>,
}

// === impl Load ===

impl Load {
    pub(super) fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.unacked += other.unacked;
        self.guests += other.guests;
        self.kv += other.kv;
    }

    pub(super) fn sub(&mut self, other: Self) {
        self.sequences -= other.sequences;
        self.unacked -= other.unacked;
        self.guests -= other.guests;
        self.kv -= other.kv;
    }
}

// === impl Window ===

impl Window {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            prefill: capacity.step_tokens,
            was_limited: false,
            looked: None,
            engine_waits_since: None,
        }
    }

    /// Engines came or went: the window grows or shrinks with their steps.
    pub(super) fn allow(&mut self, capacity: Capacity) {
        let prefill = u128::from(self.prefill) * u128::from(capacity.step_tokens);
        let prefill = prefill / u128::from(self.capacity.step_tokens.max(1));
        self.capacity = capacity;
        self.resize(u64::try_from(prefill).unwrap_or(u64::MAX));
    }

    /// Whether `need` fits beside `used`. A request larger than a limit goes when it is alone, or it
    /// would never go.
    ///
    /// `spread` is by how much one answer may exceed its expectation. Expectations add up, their
    /// errors add up in squares, so `spread` times the root of the count covers them: with the
    /// 90th percentile as spread, twice that is beyond the 99th percentile of the sum.
    pub(super) fn fit(&self, used: Load, need: Load, spread: u64, space: Space) -> Fit {
        let is_guest = space == Space::Headroom;
        let sequences = used.sequences + need.sequences;
        let more_sequences = if is_guest { self.capacity.headroom } else { 0 };
        if used.sequences > 0 && sequences > self.capacity.sequences + more_sequences {
            return Fit::LacksSequences;
        }
        // Guests have prefill of their own, since the last common prompt may be longer than both.
        let (unacked, most) = if is_guest {
            (used.guests, self.capacity.step_tokens)
        } else {
            (used.unacked, self.prefill)
        };
        if unacked >= most {
            return Fit::LacksPrefill;
        }
        let Some(limit) = self.kv_limit(space) else {
            return Fit::Fits;
        };
        let errors = spread.saturating_mul(2 * sequences.isqrt());
        let kv = used.kv.saturating_add(need.kv).saturating_add(errors);
        if used.kv > 0 && kv > limit {
            return Fit::LacksKv;
        }
        Fit::Fits
    }

    /// 92% of the cache for everyone, 95% with headroom, rounded down; the rest is for what no
    /// estimate sees: partly filled blocks and answers longer than any before.
    fn kv_limit(&self, space: Space) -> Option<u64> {
        let percent = match space {
            Space::Common => 92,
            Space::Headroom => 95,
        };
        let tokens = self.capacity.kv_tokens?;
        Some(tokens.saturating_mul(percent) / 100)
    }

    /// Whether `load` is under half of the share `part / whole` in each resource. Headroom is for
    /// those who use little, not for those who are merely owed something.
    pub(super) fn is_below_half_share(&self, load: Load, part: u128, whole: u128) -> bool {
        let is_below = |used: u64, limit: u64| {
            let used = u128::from(used).saturating_mul(2).saturating_mul(whole);
            used < u128::from(limit).saturating_mul(part)
        };
        is_below(load.sequences, self.capacity.sequences)
            && is_below(load.unacked, self.prefill)
            && self
                .kv_limit(Space::Common)
                .is_none_or(|limit| is_below(load.kv, limit))
    }

    pub(super) fn note(&mut self, fit: Fit) {
        self.was_limited |= fit == Fit::LacksPrefill;
    }

    /// Whether a look at the samples is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.looked
            .is_none_or(|last| now.saturating_duration_since(last) >= PERIOD)
    }

    /// Follows how late first tokens were, in hundredths of a step: too late shrinks the window by
    /// 15%, in time while it was the limit grows it by an eighth of a step. `None` when none came.
    pub(super) fn follow(&mut self, lateness: Option<u64>, now: Instant) {
        const TOO_LATE: u64 = 150;
        self.looked = Some(now);
        let was_limited = std::mem::take(&mut self.was_limited);
        match lateness {
            Some(late) if late > TOO_LATE => self.shrink(),
            Some(_) if was_limited => self.resize(self.prefill + self.capacity.step_tokens / 8),
            Some(_) | None => {}
        }
    }

    /// The slow audit: a queue inside the engine that stays means the window is too large.
    pub(super) fn engine_waiting(&mut self, waiting: Option<u64>, now: Instant) {
        if waiting.is_none_or(|waiting| waiting <= TOLERATED_WAITING) {
            self.engine_waits_since = None;
            return;
        }
        let since = *self.engine_waits_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= TOLERATED_FOR {
            self.engine_waits_since = Some(now);
            self.shrink();
        }
    }

    /// Rounded up, which ends at the lower bound all the same.
    fn shrink(&mut self) {
        self.resize((self.prefill * 85).div_ceil(100));
    }

    fn resize(&mut self, prefill: u64) {
        let step = self.capacity.step_tokens;
        self.prefill = prefill.clamp(step.div_ceil(2), 4 * step);
    }

    pub(super) fn state(&self, used: Load, step: Option<Duration>) -> WindowState {
        WindowState {
            sequences: used.sequences,
            sequences_limit: self.capacity.sequences,
            unacked_prefill: used.unacked,
            unacked_prefill_limit: self.prefill,
            kv: used.kv,
            kv_limit: self.kv_limit(Space::Common),
            step_us: step.map(|step| u64::try_from(step.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}
