//! What a model tells the planner of its engines.

use std::time::{Duration, SystemTime};

use kvwarden_policy::{lifecycle::State, residency};
use tokio::time::Instant;

use super::Model;
use crate::protocol::Demand;

impl Model {
    /// Tells where an engine stands and how much it is wanted.
    pub(super) fn demand(&self, at: usize) {
        if let Some(router) = self.peers.demand.upgrade() {
            router.do_send(Demand {
                engine: self.replicas[at].engine.clone(),
                demand: self.demand_of(at, Instant::now()),
            });
        }
    }

    fn demand_of(&self, at: usize, now: Instant) -> residency::Demand {
        let replica = &self.replicas[at];
        let oldest = self.queue.oldest_wait(now.into_std()).unwrap_or_default();
        residency::Demand {
            state: replica.life.state(),
            order: replica.order,
            levels: replica.life.levels(),
            is_pinned: replica.life.is_pinned(),
            in_flight: usize::try_from(replica.occupancy.running).unwrap_or(usize::MAX),
            queued: self.queue.total().waiting + self.lost.len(),
            rent: self.queue.rent(now.into_std()),
            oldest_wait: oldest.max(replica.asked_for(now)),
            rate: self.rate.per_second(self.clock.since_epoch()),
            soon: self.rate.soon(self.clock.since_epoch()),
            asked_at: self.asked_at.filter(|_| at == 0).map(Instant::into_std),
            may_prefetch: self.may_prefetch(at),
            idle_for: now.saturating_duration_since(self.busy_at),
            idle_ttl: self.params.idle_ttl,
            drain: self.service_time,
        }
    }

    /// Whether an engine may be loaded before somebody asks for it. Not one that an operator or its
    /// time limit has put away, nor one of several: which of those is needed, none can tell.
    pub(super) fn may_prefetch(&self, at: usize) -> bool {
        let replica = &self.replicas[at];
        let rests = matches!(replica.life.state(), State::Cold | State::Asleep { .. });
        let is_at_home = replica.target.is_none() && self.drain.is_none() && !self.is_leaving;
        let may_come = !self.is_put_away && self.params.idle_ttl.is_none();
        rests && is_at_home && may_come && self.replicas.len() == 1
    }

    /// A request came.
    pub(super) fn on_request(&mut self) {
        let now = Instant::now();
        self.rate.seen(self.clock.since_epoch());
        self.busy_at = now;
        self.asked_at = Some(now);
        self.is_put_away = false;
        for replica in &mut self.replicas {
            replica.record.prefetch_hits += u64::from(std::mem::take(&mut replica.is_early));
        }
    }

    /// A request left its engine after that long. The newest has an eighth of the mean.
    pub(super) fn learn_service_time(&mut self, took: Duration) {
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
