//! Which waiting request goes to the engine next, and when.
//!
//! One [`Scheduler`] stands before each engine. It owns what waits (`T`, in the server a ticket),
//! hands it out at dispatch, and wants to be told what happened to it since:
//!
//! ```text
//!  push ─▶ waiting ─next─▶ running ─first_token─▶ ─streamed*─▶ ─finish─▶ gone
//!             │                   └─ hide ─overdue─▶ ─estimate*─┘
//!             └─ remove, remove_expired, remove_if, sweep, or displaced by a shorter queue ─▶ gone
//! ```
//!
//! Three disciplines stand behind the same operations ([`Discipline`]). `Fair` is the point of it,
//! see [`fair`]; `Fifo` and `Drr` are there to be measured against.
//!
//! It never reads a clock, draws a random number or waits: the same calls give the same answers. A
//! call about a request that ended before is counted and changes nothing. Every operation costs
//! O(log n) in requests and tenants, except [`Scheduler::remove_if`] and [`Scheduler::snapshot`].

pub mod fair;
mod pace;
mod plain;
mod progress;
mod settings;
mod slab;
#[cfg(test)]
mod tests;
mod types;
mod wait_queue;

use std::time::{Duration, Instant};

use self::{fair::FairCore, plain::Plain, progress::Progress, wait_queue::WaitQueue};
pub use self::{
    settings::{Capacity, FairSettings, LONG_PROMPT_TOKENS, Price, Settings},
    types::{
        Arrival, Bound, Bounds, Counts, Discipline, Dispatch, Full, Group, Key, Outcome, Pushed,
        Share, Snapshot, TenantBounds, TenantState, WindowState,
    },
};
use crate::TenantId;

/// The queue of one engine.
#[derive(Debug)]
pub struct Scheduler<T> {
    queue: WaitQueue<T>,
    order: Order,
    progress: Progress,
    stale: u64,
    displaced: u64,
}

#[derive(Debug)]
enum Order {
    Fifo(Plain),
    Drr(Plain),
    Fair(Box<FairCore>),
}

// === impl Scheduler ===

impl<T> Scheduler<T> {
    /// An empty queue before an idle engine.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            queue: WaitQueue::new(settings.bounds),
            order: match settings.discipline {
                Discipline::Fifo => Order::Fifo(Plain::fifo(settings.max_in_flight)),
                Discipline::Drr => Order::Drr(Plain::drr(settings.max_in_flight)),
                Discipline::Fair => Order::Fair(Box::new(FairCore::new(settings.fair))),
            },
            progress: Progress::new(settings.fair),
            stale: 0,
            displaced: 0,
        }
    }

    /// Lets `item` wait for its turn.
    ///
    /// # Errors
    /// Gives the item back when there is no place for it.
    pub fn push(&mut self, arrival: &Arrival, item: T, now: Instant) -> Result<Pushed<T>, Full<T>> {
        // One that is tried again goes to the head, which no forecast knows of.
        if !arrival.is_retry && self.comes_too_late(arrival, now) {
            let bound = Bound::Expiry;
            return Err(Full { item, bound });
        }
        let leaving = match self.queue.room(arrival) {
            Ok(leaving) => leaving,
            Err(bound) => return Err(Full { item, bound }),
        };
        let displaced: Vec<T> = leaving
            .into_iter()
            .filter_map(|key| self.take_out(key, now))
            .collect();
        self.displaced += displaced.len() as u64;
        let (key, place) = self.queue.enter(arrival, item, now);
        self.progress.arrived(key.index, arrival, now);
        match &mut self.order {
            Order::Fifo(plain) | Order::Drr(plain) => {
                let counts = self.queue.counts(&arrival.tenant);
                plain.enqueue(key.index, arrival, place, counts);
            }
            Order::Fair(core) => core.enqueue(key.index, arrival, place, now),
        }
        Ok(Pushed { key, displaced })
    }

    /// The next request, if one waits and there is room for it.
    pub fn next(&mut self, now: Instant) -> Option<Dispatch<T>> {
        let (slot, tag, prefill) = match &mut self.order {
            Order::Fifo(plain) | Order::Drr(plain) => (plain.next()?, 0, None),
            Order::Fair(core) => {
                let (slot, tag) = core.next(now)?;
                (slot, tag, Some(core.prefill(slot)))
            }
        };
        let key = self.queue.key_at(slot)?;
        let left = self.queue.start(key, now)?;
        self.progress.started(slot, prefill, now);
        Some(Dispatch {
            key,
            item: left.item,
            waited: left.waited,
            tag,
        })
    }

    /// The answer to a request that was dispatched just now comes whole: nothing is seen of it before,
    /// and what it does until then is estimated.
    pub fn hide(&mut self, key: Key) {
        if self.is_running(key) {
            self.progress.hide(key);
        }
    }

    /// A request that is hidden and whose prefill is over by now, by estimate. Each is told once.
    /// To be asked until there is none, before [`next`](Self::next) is.
    pub fn overdue(&mut self, now: Instant) -> Option<Key> {
        let key = self.progress.overdue(now)?;
        if let Order::Fair(core) = &mut self.order {
            core.acknowledge(key.index);
        }
        Some(key)
    }

    /// When to ask for [`overdue`](Self::overdue) again, if something waits for it.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Instant> {
        let waits = self.queue.total().waiting > 0;
        self.progress.next_due().filter(|_| waits)
    }

    /// The engine sent the first token: its prefill of this request is over.
    pub fn first_token(&mut self, key: Key, now: Instant) {
        if !self.is_running(key) {
            return;
        }
        self.progress.show(key);
        if let Order::Fair(core) = &mut self.order {
            core.first_token(key.index, now);
        }
    }

    /// The engine has sent that many tokens of the request so far, over all choices.
    pub fn streamed(&mut self, key: Key, tokens: u64, now: Instant) {
        if self.is_running(key)
            && let Order::Fair(core) = &mut self.order
        {
            core.streamed(key.index, tokens, now);
        }
    }

    /// Charges a hidden request what it has probably generated by now, over all choices, and tells
    /// how much that is. `None`: it is not hidden.
    pub fn estimate(&mut self, key: Key, now: Instant) -> Option<u64> {
        if !self.is_running(key) {
            return None;
        }
        let tokens = self.progress.generated(key.index, now)?;
        if let Order::Fair(core) = &mut self.order {
            core.streamed(key.index, tokens, now);
        }
        Some(tokens)
    }

    /// A dispatched request is over and its places in the engine are free.
    pub fn finish(&mut self, key: Key, outcome: &Outcome, now: Instant) {
        if !self.is_running(key) {
            return;
        }
        let outcome = self.progress.ended(key, outcome, now);
        match &mut self.order {
            Order::Fifo(plain) | Order::Drr(plain) => plain.finish(),
            Order::Fair(core) => core.finish(key.index, &outcome, now),
        }
        self.queue.end(key);
    }

    /// Takes out a waiting request; it costs its tenant nothing.
    pub fn remove(&mut self, key: Key, now: Instant) -> Option<T> {
        let item = self.take_out(key, now);
        self.stale += u64::from(item.is_none());
        item
    }

    /// Takes out the waiting requests whose time is over.
    pub fn remove_expired(&mut self, now: Instant) -> Vec<T> {
        let mut out = Vec::new();
        while let Some(key) = self.queue.expired(now) {
            out.extend(self.take_out(key, now));
        }
        out
    }

    /// Takes out the waiting requests that nobody waits for any more. O(n).
    pub fn remove_if(&mut self, is_gone: impl Fn(&T) -> bool, now: Instant) -> Vec<T> {
        let keys = self.queue.matching(is_gone);
        keys.into_iter()
            .filter_map(|key| self.take_out(key, now))
            .collect()
    }

    /// Takes out some of the waiting requests that nobody waits for any more: all, after a few calls.
    /// What a call costs is bounded but for what it finds.
    pub fn sweep(&mut self, is_gone: impl Fn(&T) -> bool, now: Instant) -> Vec<T> {
        let keys = self.queue.some_matching(is_gone);
        keys.into_iter()
            .filter_map(|key| self.take_out(key, now))
            .collect()
    }

    /// To be called every 100 ms: the window follows what was seen since.
    pub fn tick(&mut self, now: Instant) {
        let mut seen_step = None;
        if let Order::Fair(core) = &mut self.order {
            core.tick(now);
            seen_step = core.seen_step();
        }
        self.progress.look(seen_step, now);
    }

    /// The engine says that so many requests wait inside it; `None` when it stopped saying. Optional:
    /// without it nothing changes.
    pub fn engine_waiting(&mut self, waiting: Option<u64>, now: Instant) {
        self.progress.engine_waiting(waiting, now);
        if let Order::Fair(core) = &mut self.order {
            core.engine_waiting(waiting, now);
        }
    }

    /// So many engines of the size in `settings` serve this queue from now on. What runs goes on,
    /// even if it is more than still fits.
    pub fn serve_with(&mut self, engines: usize, settings: &Settings) {
        let capacity = settings.fair.capacity.times(engines);
        self.progress.allow(capacity);
        match &mut self.order {
            Order::Fifo(plain) | Order::Drr(plain) => {
                plain.allow(settings.max_in_flight.saturating_mul(engines.max(1)));
            }
            Order::Fair(core) => core.allow(capacity),
        }
    }

    /// Other settings from now on, but for the discipline, which stays, and the engine's size, which
    /// [`serve_with`](Self::serve_with) tells. What waits already stays, even if it is more than may.
    pub fn adjust(&mut self, settings: &Settings) {
        self.queue.rebound(settings.bounds);
        if let Order::Fair(core) = &mut self.order {
            core.adjust(settings.fair);
        }
    }

    /// A tenant is entitled otherwise from now on, and so is what waits of it: `share` says of each
    /// request to what. Under `Fifo` and `Drr` only its place when the queue is full changes.
    pub fn reshare(&mut self, tenant: &TenantId, mut share: impl FnMut(&mut T) -> Share) {
        for key in self.queue.waiting_of(tenant) {
            let Some(share) = self.queue.item_mut(key).map(&mut share) else {
                continue;
            };
            self.queue.regroup(tenant, &share.group);
            if let Order::Fair(core) = &mut self.order {
                core.reshare(key.index, &share);
            }
        }
    }

    /// What waits and runs of everyone.
    #[must_use]
    pub fn total(&self) -> Counts {
        self.queue.total()
    }

    /// What waits and runs of one tenant.
    #[must_use]
    pub fn counts(&self, tenant: &TenantId) -> Counts {
        self.queue.counts(tenant)
    }

    /// How many requests of a tenant wait that came up to `until`; more than `most` are not counted.
    #[must_use]
    pub fn ahead(&self, tenant: &TenantId, until: Instant, most: usize) -> usize {
        self.queue.ahead(tenant, until, most)
    }

    /// How long the request has waited that waits longest.
    #[must_use]
    pub fn oldest_wait(&self, now: Instant) -> Option<Duration> {
        self.queue.oldest_wait(now)
    }

    /// Seconds that requests have waited, each times the weight of its group. Of each group a few
    /// count: who fills the queue, or makes up tenants, does not outbid the others by that.
    /// O(tenants).
    #[must_use]
    pub fn rent(&self, now: Instant) -> f64 {
        self.queue.rent(now)
    }

    /// Everything worth showing.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let tenants = self.queue.tenants().map(|(tenant, counts)| TenantState {
            tenant: tenant.clone(),
            counts,
        });
        let mut tenants: Vec<TenantState> = tenants.collect();
        tenants.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        Snapshot {
            discipline: match &self.order {
                Order::Fifo(_) => Discipline::Fifo,
                Order::Drr(_) => Discipline::Drr,
                Order::Fair(_) => Discipline::Fair,
            },
            total: self.queue.total(),
            stale: self.stale,
            displaced: self.displaced,
            window: match &self.order {
                Order::Fifo(_) | Order::Drr(_) => None,
                Order::Fair(core) => Some(core.window()),
            },
            tenants,
        }
    }

    /// What is used of the window, without the cost of a whole snapshot.
    #[cfg(test)]
    fn snapshot_window(&self) -> Option<WindowState> {
        match &self.order {
            Order::Fifo(_) | Order::Drr(_) => None,
            Order::Fair(core) => Some(core.window()),
        }
    }

    fn comes_too_late(&self, arrival: &Arrival, now: Instant) -> bool {
        let Order::Fair(core) = &self.order else {
            return false;
        };
        let wait = core.forecast(arrival);
        let is_late = |wait| {
            now.checked_add(wait)
                .is_none_or(|turn| turn > arrival.expires)
        };
        wait.is_some_and(is_late)
    }

    fn take_out(&mut self, key: Key, now: Instant) -> Option<T> {
        if !self.queue.is_waiting(key) {
            return None;
        }
        match &mut self.order {
            Order::Fifo(plain) | Order::Drr(plain) => plain.dequeue(key.index),
            Order::Fair(core) => core.dequeue(key.index),
        }
        self.queue.remove(key, now).map(|left| left.item)
    }

    /// Otherwise the call is about one that ended before.
    fn is_running(&mut self, key: Key) -> bool {
        let is_running = self.queue.is_running(key);
        self.stale += u64::from(!is_running);
        is_running
    }
}
