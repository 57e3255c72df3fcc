//! What a model tells the planner of its engines.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Model;
use crate::protocol::{Claim, Demand};

impl Model {
    /// Tells where an engine stands and how much it is wanted.
    pub(super) fn demand(&self, at: usize) {
        if let Some(router) = self.router.upgrade() {
            router.do_send(Demand {
                engine: self.replicas[at].engine.clone(),
                claim: self.claim(at, Instant::now()),
            });
        }
    }

    fn claim(&self, at: usize, now: Instant) -> Claim {
        let replica = &self.replicas[at];
        let oldest = self.queue.oldest_wait(now.into_std()).unwrap_or_default();
        Claim {
            state: replica.life.state(),
            order: replica.order,
            rungs: replica.life.rungs(),
            is_pinned: replica.life.is_pinned(),
            in_flight: usize::try_from(replica.occupancy.running).unwrap_or(usize::MAX),
            queued: self.queue.total().waiting,
            rent: self.queue.rent(now.into_std()),
            oldest_wait: oldest.max(replica.asked_for(now)),
            rate: self.rate.per_second(self.clock.since_epoch()),
            idle_for: now.saturating_duration_since(self.busy_at),
            drain: self.service_time,
        }
    }

    /// A request came.
    pub(super) fn wanted_now(&mut self) {
        self.rate.seen(self.clock.since_epoch());
        self.busy_at = Instant::now();
    }

    /// A request left its engine after that long. The newest has an eighth of the mean.
    pub(super) fn served_for(&mut self, took: Duration) {
        self.busy_at = Instant::now();
        self.service_time = self.service_time.mul_f64(0.875) + took.mul_f64(0.125);
    }
}

/// The wall clock as it stood once, and the time since: rates outlive the process, and a clock that
/// jumps while it runs must not look like a flood of requests or like silence.
pub(super) struct Clock {
    set: Instant,
    to: Duration,
}

impl Clock {
    pub(super) fn set() -> Self {
        Self {
            set: Instant::now(),
            to: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        }
    }

    pub(super) fn since_epoch(&self) -> Duration {
        self.to + self.set.elapsed()
    }
}
