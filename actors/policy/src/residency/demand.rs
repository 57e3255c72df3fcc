//! What a model says of one of its engines.

use std::time::{Duration, Instant};

use crate::lifecycle::{SleepLevels, State};

/// Where an engine stands and how much it is wanted. A model says it whenever that changes and at
/// every tick; the planner reads it in its [`Model`](super::Model).
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Where it stands.
    pub state: State,
    /// The newest order it has followed, or had no reason to follow any more.
    pub order: u64,
    /// Where it may go: what the engine supports and was not seen to break.
    pub levels: SleepLevels,
    /// It must stay where it is.
    pub is_pinned: bool,
    /// Requests that run on it.
    pub in_flight: usize,
    /// Requests that wait for it.
    pub queued: usize,
    /// Seconds they have waited, each times its tenant's weight.
    pub rent: f64,
    /// How long the oldest of them waits, or an operator for it to load.
    pub oldest_wait: Duration,
    /// Requests per second ([`Rate::per_second`](super::Rate::per_second)).
    pub rate: f64,
    /// How soon it is wanted again: 1 is at once, 0 never ([`Rate::soon`](super::Rate::soon)).
    pub soon: f64,
    /// When its model was last asked. Said of the first of several engines.
    pub asked_at: Option<Instant>,
    /// It may be loaded before its model is asked again.
    pub may_prefetch: bool,
    /// How long nobody has wanted it.
    pub idle_for: Duration,
    /// It is stopped when nobody has wanted it for this long.
    pub idle_ttl: Option<Duration>,
    /// How long a running request takes to end, on average.
    pub drain: Duration,
}

// === impl Demand ===

impl Demand {
    /// It waits for a place.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }
}
