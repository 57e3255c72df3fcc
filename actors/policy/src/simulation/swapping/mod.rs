//! Swapping in virtual time: the planner and its rivals over a list of requests.
//!
//! The bookkeeping is the server's own: every model runs the real [`Lifecycle`], says its [`Demand`] to
//! the real [`Tracker`] and follows the [`Order`]s that come of it. Rivals decide by other rules on the
//! same books. Only the engine is made up: it starts, wakes and sleeps in exactly the time its costs
//! say, serves everybody at once, and never fails. What is measured is the stall, from a request's
//! arrival until its engine takes it.

pub mod cells;
mod policy;
#[cfg(test)]
pub(crate) mod search;
#[cfg(test)]
pub(crate) mod traces;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    DeviceId, ModelId,
    failure::FailureClass,
    lifecycle::{Effect, Event, Lifecycle, SleepLevel, SleepLevels, State},
    residency::{
        BySleepLevel, Costs, Demand, DeviceSelector, DeviceSize, HOST, Memory, Needs, Order,
        OrderKind, Rate, Settings, Tracker,
    },
};

pub use policy::{Policy, PolicyName};

/// How often the planner is asked while somebody waits and nothing else happens.
const TICK: Duration = Duration::from_millis(500);
/// How often while nobody does.
const PULSE: Duration = Duration::from_secs(1);
/// How long a request takes, until some have ended; as the server assumes.
const ASSUMED_SERVICE: Duration = Duration::from_secs(5);

/// Where and what is served.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// When to swap.
    pub settings: Settings,
    /// The devices, and the bytes that models may have of each.
    pub devices: Vec<(DeviceId, u64)>,
    /// The models; requests name them by their place here.
    pub models: Vec<Spec>,
}

/// What is true of a model, where a [`Demand`] is what it says at a moment: its costs are what its
/// engine takes, and only in the [`Tracker`] what is known of that.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub id: ModelId,
    /// Over how many devices it is spread.
    pub width: usize,
    /// Where it may be; empty: anywhere.
    pub allowed: Vec<DeviceId>,
    /// Bytes on each device.
    pub bytes: BySleepLevel<u64>,
    /// Which sleep levels it has.
    pub levels: SleepLevels,
    /// What they cost.
    pub costs: Costs,
    /// It is never evicted.
    pub is_pinned: bool,
    /// It is stopped after this long without requests.
    pub idle_ttl: Option<Duration>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// When it arrives.
    pub at: Duration,
    /// For which model.
    pub model: usize,
    /// Its tenant's weight.
    pub weight: f64,
    /// How long the engine works on it.
    pub service: Duration,
}

/// A request that found its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Which model.
    pub model: usize,
    /// How long it stalled.
    pub stall: Duration,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Starts from cold.
    pub starts: u64,
    /// Wakes from a sleep level between.
    pub wakes: u64,
    /// Models that went down.
    pub demotions: u64,
    /// Most things that were remembered at once: it must not grow with the length of a run.
    pub most_live: usize,
}

/// The node.
pub struct Sim<'a> {
    world: &'a World,
    policy: Policy,
    epoch: Instant,
    now: Duration,
    engines: Vec<Engine>,
    tracker: Tracker,
    agenda: BTreeMap<(Duration, u64), (usize, Due)>,
    numbered: u64,
    tally: Tally,
}

struct Engine {
    life: Lifecycle,
    /// The newest order it has followed.
    order: u64,
    rate: Rate,
    /// When the last request came.
    asked_at: Option<Duration>,
    /// When the last one came or ended.
    busy_at: Duration,
    queue: VecDeque<Request>,
    in_flight: usize,
    service_time: Duration,
}

#[derive(Clone, Copy)]
enum Due {
    /// A request that took so long.
    Ended(Duration),
    Verified,
    Woken,
    Demoted,
    Gone,
}

// === impl Sim ===

impl<'a> Sim<'a> {
    /// All models cold. `epoch` is any instant.
    #[must_use]
    pub fn new(world: &'a World, policy: Policy, epoch: Instant) -> Self {
        let size = |(id, total): &(DeviceId, u64)| {
            let (index, total) = (None, *total);
            (id.clone(), DeviceSize { index, total })
        };
        let mut tracker = Tracker::new(world.settings, epoch);
        tracker.set_devices(world.devices.iter().map(size));
        for spec in &world.models {
            tracker.register(spec.id.clone(), spec.needs(), epoch);
        }
        let mut sim = Self {
            world,
            policy,
            epoch,
            now: Duration::ZERO,
            engines: world.models.iter().map(Engine::new).collect(),
            tracker,
            agenda: BTreeMap::new(),
            numbered: 0,
            tally: Tally::default(),
        };
        for model in 0..world.models.len() {
            sim.happen(model, Event::Fetched);
        }
        sim
    }

    /// Serves all of them, which come in the order of time; says of each when it stalls no more.
    pub fn run(
        mut self,
        requests: impl IntoIterator<Item = Request>,
        mut served: impl FnMut(Served),
    ) -> Tally {
        let mut requests = requests.into_iter().peekable();
        loop {
            let arrival = requests.peek().map(|request| request.at);
            let tick = self.tick(arrival.is_some());
            let due = self.agenda.keys().next().map(|(at, _)| *at);
            let Some(next) = [arrival, due, tick].into_iter().flatten().min() else {
                break;
            };
            self.now = self.now.max(next);
            while let Some(request) = requests.next_if(|request| request.at <= self.now) {
                self.arrive(request, &mut served);
            }
            self.catch_up(&mut served);
            self.act();
        }
        self.tally
    }

    /// When to look again though nothing happens.
    fn tick(&self, is_more_to_come: bool) -> Option<Duration> {
        let expects = is_more_to_come && self.policy.prefetches();
        let after = match self.is_anybody_waiting() {
            true => Some(TICK),
            false => expects.then_some(PULSE),
        };
        after.map(|after| self.now + after)
    }

    fn arrive(&mut self, request: Request, served: &mut impl FnMut(Served)) {
        let engine = &mut self.engines[request.model];
        engine.rate.seen(self.now);
        (engine.asked_at, engine.busy_at) = (Some(self.now), self.now);
        engine.queue.push_back(request);
        self.policy.seen(request.model, self.now);
        self.dispatch(request.model, served);
        self.tell(request.model);
    }

    /// Everything that is due by now.
    fn catch_up(&mut self, served: &mut impl FnMut(Served)) {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now
        {
            let (model, due) = entry.remove();
            match due {
                Due::Ended(took) => self.end(model, took),
                Due::Verified => {
                    self.policy.ready(model, self.now);
                    self.happen(model, Event::Verified);
                    self.dispatch(model, served);
                }
                Due::Woken => self.happen(model, Event::Woken),
                Due::Demoted => self.happen(model, Event::Demoted),
                Due::Gone => self.happen(model, Event::Exited(FailureClass::Stopped)),
            }
        }
    }

    fn end(&mut self, model: usize, took: Duration) {
        self.engines[model].end(took, self.now);
        self.policy.ended(model, self.now);
        if self.engines[model].is_drained() {
            self.happen(model, Event::Drained);
        }
    }

    fn dispatch(&mut self, model: usize, served: &mut impl FnMut(Served)) {
        if !self.engines[model].life.state().admits() {
            return;
        }
        while let Some(request) = self.engines[model].queue.pop_front() {
            let stall = self.now - request.at;
            served(Served { model, stall });
            self.engines[model].in_flight += 1;
            self.schedule(model, Due::Ended(request.service), request.service);
        }
    }

    fn happen(&mut self, model: usize, event: Event) {
        let (spec, engine) = (&self.world.models[model], &mut self.engines[model]);
        let before = engine.life.state();
        let effect = engine.life.on(event, self.epoch + self.now, 0);
        let is_drained = engine.is_drained();
        if before != engine.life.state() {
            self.tell(model);
        }
        match effect {
            // Nobody came before this world, so nothing is adopted.
            Effect::None
            | Effect::Demand
            | Effect::Adopt(_)
            | Effect::Verify
            | Effect::RefuseWaiting => {}
            Effect::Spawn(_) => {
                self.tally.starts += 1;
                self.schedule(model, Due::Verified, spec.costs[SleepLevel::Cold].promote);
            }
            Effect::Wake(level) => {
                self.tally.wakes += 1;
                self.schedule(model, Due::Woken, spec.costs[level].promote);
                self.schedule(model, Due::Verified, spec.costs[level].promote);
            }
            Effect::Drain => {
                self.tally.demotions += 1;
                if is_drained {
                    self.happen(model, Event::Drained);
                }
            }
            Effect::Demote(level) => self.schedule(model, Due::Demoted, spec.costs[level].demote),
            Effect::Stop => self.schedule(model, Due::Gone, spec.costs[SleepLevel::Cold].demote),
        }
    }

    fn schedule(&mut self, model: usize, due: Due, after: Duration) {
        self.numbered += 1;
        let key = (self.now + after, self.numbered);
        self.agenda.insert(key, (model, due));
    }

    /// Says where a model stands and how much it is wanted.
    fn tell(&mut self, model: usize) {
        let spec = &self.world.models[model];
        let demand = self.engines[model].demand(spec, self.epoch, self.now);
        let now = self.epoch + self.now;
        self.tracker.update(&spec.id, demand, now);
    }

    /// Says who waits, asks what to do, and does it, until nothing more is ordered.
    fn act(&mut self) {
        for model in 0..self.engines.len() {
            if !self.engines[model].queue.is_empty() {
                self.happen(model, Event::Wanted);
            }
        }
        if self.is_anybody_waiting() || self.has_idle_limits() || self.policy.prefetches() {
            for model in 0..self.engines.len() {
                self.tell(model);
            }
            loop {
                let orders = self.decide();
                if orders.is_empty() {
                    break;
                }
                orders.into_iter().for_each(|order| self.deliver(&order));
            }
        }
        self.tally.most_live = self.tally.most_live.max(self.live());
    }

    fn decide(&mut self) -> Vec<Order> {
        let (policy, now) = (&self.policy, self.now);
        self.tracker
            .decide_by(self.epoch + now, |snapshot| policy.plan(snapshot, now))
    }

    fn deliver(&mut self, order: &Order) {
        let model = self.index(&order.engine);
        let event = match order.kind {
            OrderKind::Grant { is_prefetch, .. } => {
                // Nobody wants yet who is loaded ahead.
                if is_prefetch {
                    self.happen(model, Event::Wanted);
                }
                Event::Granted
            }
            OrderKind::Reclaim(to) => {
                self.policy.evicted(model);
                Event::Reclaim { to }
            }
        };
        self.engines[model].order = order.number;
        self.happen(model, event);
        self.tell(model);
    }

    fn index(&self, id: &ModelId) -> usize {
        let found = self.world.models.iter().position(|spec| spec.id == *id);
        found.unwrap_or_else(|| unreachable!("plans are about models of the snapshot"))
    }

    fn is_anybody_waiting(&self) -> bool {
        self.engines.iter().any(|engine| !engine.queue.is_empty())
    }

    fn has_idle_limits(&self) -> bool {
        self.world.models.iter().any(|spec| spec.idle_ttl.is_some())
    }

    fn live(&self) -> usize {
        let queued = self.engines.iter().map(|engine| engine.queue.len());
        self.agenda.len() + queued.sum::<usize>() + self.policy.live()
    }
}

// === impl Spec ===

impl Spec {
    fn needs(&self) -> Needs {
        let is_host = |id: &DeviceId| id.as_str() == HOST;
        let is_on_host = !self.allowed.is_empty() && self.allowed.iter().all(is_host);
        Needs {
            memory: Memory::Known(self.bytes),
            devices: if is_on_host {
                DeviceSelector::Host
            } else {
                DeviceSelector::Gpus(self.allowed.iter().map(ToString::to_string).collect())
            },
            width: self.width,
            costs: Some(self.costs),
        }
    }
}

// === impl Engine ===

impl Engine {
    fn new(spec: &Spec) -> Self {
        let mut life = Lifecycle::new();
        life.supports(spec.levels);
        Self {
            life,
            order: 0,
            rate: Rate::default(),
            asked_at: None,
            busy_at: Duration::ZERO,
            queue: VecDeque::new(),
            in_flight: 0,
            service_time: ASSUMED_SERVICE,
        }
    }

    fn is_drained(&self) -> bool {
        matches!(self.life.state(), State::Draining { .. }) && self.in_flight == 0
    }

    /// A request ended. The newest has an eighth of the mean, as in the server.
    fn end(&mut self, took: Duration, now: Duration) {
        self.in_flight -= 1;
        self.busy_at = now;
        self.service_time = self.service_time.mul_f64(0.875) + took.mul_f64(0.125);
    }

    fn demand(&self, spec: &Spec, epoch: Instant, now: Duration) -> Demand {
        let waits = |request: &Request| (now - request.at).as_secs_f64() * request.weight;
        let oldest = self.queue.front().map(|request| now - request.at);
        let state = self.life.state();
        let rests = matches!(state, State::Cold | State::Asleep { .. });
        Demand {
            state,
            order: self.order,
            levels: spec.levels,
            is_pinned: spec.is_pinned,
            in_flight: self.in_flight,
            queued: self.queue.len(),
            rent: self.queue.iter().map(waits).sum(),
            oldest_wait: oldest.unwrap_or_default(),
            rate: self.rate.per_second(now),
            soon: self.rate.soon(now),
            asked_at: self.asked_at.map(|at| epoch + at),
            may_prefetch: rests && spec.idle_ttl.is_none(),
            idle_for: now - self.busy_at,
            idle_ttl: spec.idle_ttl,
            drain: self.service_time,
        }
    }
}
