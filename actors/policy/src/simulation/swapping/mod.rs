//! Swapping in virtual time: the planner and its rivals over a list of requests.
//!
//! Every model runs the real [`Lifecycle`] and every byte is in the real [`Ledger`]; only the engine
//! is made up: it starts, wakes and sleeps in exactly the time its costs say, serves everybody at
//! once, and never fails. What is measured is the stall, from a request's arrival until its engine
//! takes it.

pub mod cells;
mod policy;
pub mod search;
#[cfg(test)]
pub mod traces;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    DeviceId, ModelId,
    failure::FailureClass,
    lifecycle::{Effect, Event, Lifecycle, Rung, Rungs, State},
    residency::{
        Action, ByRung, Costs, Demand, Forecast, Ledger, Limits, Model, Plan, Rate, Settings,
        Snapshot, Succession,
    },
};

pub use policy::{Policy, PolicyName};

/// How often the planner is asked while somebody waits and nothing else happens.
const TICK: Duration = Duration::from_millis(500);
/// How often while nobody does.
const PULSE: Duration = Duration::from_secs(1);

/// Where and what is served.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// When to swap.
    pub settings: Settings,
    /// The devices.
    pub devices: Vec<(DeviceId, Limits)>,
    /// The models; requests name them by their place here.
    pub models: Vec<Spec>,
}

/// What is fixed about a model.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub id: ModelId,
    /// Over how many devices it is spread.
    pub width: usize,
    /// Where it may be; empty: anywhere.
    pub allowed: Vec<DeviceId>,
    /// Bytes on each device.
    pub bytes: ByRung<u64>,
    /// Which rungs it has.
    pub rungs: Rungs,
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
    /// Wakes from a rung between.
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
    ledger: Ledger,
    succession: Succession,
    agenda: BTreeMap<(Duration, u64), (usize, Due)>,
    numbered: u64,
    tally: Tally,
}

struct Engine {
    life: Lifecycle,
    rate: Rate,
    devices: Vec<DeviceId>,
    /// Where it is or comes from.
    rung: Rung,
    queue: VecDeque<Request>,
    in_flight: usize,
    mean_service: f64,
    is_promised: bool,
}

#[derive(Clone, Copy)]
enum Due {
    Ended,
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
        let mut sim = Self {
            world,
            policy,
            epoch,
            now: Duration::ZERO,
            engines: world.models.iter().map(Engine::new).collect(),
            ledger: Ledger::new(world.devices.iter().cloned()),
            succession: Succession::default(),
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
        engine.queue.push_back(request);
        self.succession
            .seen(&self.world.models[request.model].id, self.now);
        self.policy.seen(request.model, self.now);
        self.dispatch(request.model, served);
    }

    /// Everything that is due by now.
    fn catch_up(&mut self, served: &mut impl FnMut(Served)) {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now
        {
            let (model, due) = entry.remove();
            match due {
                Due::Ended => self.end(model),
                Due::Verified => {
                    self.engines[model].rung = Rung::Ready;
                    self.policy.ready(model, self.now);
                    self.happen(model, Event::Verified);
                    self.dispatch(model, served);
                }
                Due::Woken => self.happen(model, Event::Woken),
                Due::Demoted => {
                    self.happen(model, Event::Demoted);
                    self.settle(model);
                }
                Due::Gone => {
                    self.happen(model, Event::Exited(FailureClass::Stopped));
                    self.settle(model);
                }
            }
        }
    }

    fn end(&mut self, model: usize) {
        self.engines[model].in_flight -= 1;
        self.policy.ended(model, self.now);
        if self.engines[model].is_drained() {
            self.happen(model, Event::Drained);
        }
    }

    /// The model rests on a lower rung: only now is its memory free.
    fn settle(&mut self, model: usize) {
        let (engine, spec) = (&mut self.engines[model], &self.world.models[model]);
        let Some(rung) = engine.life.state().rung() else {
            unreachable!("it has just come to rest");
        };
        engine.rung = rung;
        if rung == Rung::Cold {
            engine.devices.clear();
        }
        self.ledger
            .charge(&spec.id, &engine.devices, spec.bytes[rung]);
    }

    fn dispatch(&mut self, model: usize, served: &mut impl FnMut(Served)) {
        if !self.engines[model].life.state().admits() {
            return;
        }
        while let Some(request) = self.engines[model].queue.pop_front() {
            let stall = self.now - request.at;
            served(Served { model, stall });
            self.engines[model].begin(&request);
            self.schedule(model, Due::Ended, request.service);
        }
    }

    fn happen(&mut self, model: usize, event: Event) {
        let (spec, engine) = (&self.world.models[model], &mut self.engines[model]);
        let from = engine.rung;
        let effect = engine.life.on(event, self.epoch + self.now, 0);
        match effect {
            // Nobody came before this world, so nothing is adopted.
            Effect::None
            | Effect::Demand
            | Effect::Adopt(_)
            | Effect::Verify
            | Effect::RefuseWaiting => {}
            Effect::Spawn(_) => {
                self.tally.starts += 1;
                self.schedule(model, Due::Verified, spec.costs[from].promote);
            }
            Effect::Wake(rung) => {
                self.tally.wakes += 1;
                self.schedule(model, Due::Woken, spec.costs[rung].promote);
                self.schedule(model, Due::Verified, spec.costs[rung].promote);
            }
            Effect::Drain => {
                self.tally.demotions += 1;
                if engine.is_drained() {
                    self.happen(model, Event::Drained);
                }
            }
            Effect::Demote(rung) => self.schedule(model, Due::Demoted, spec.costs[rung].demote),
            Effect::Stop => self.schedule(model, Due::Gone, spec.costs[Rung::Cold].demote),
        }
    }

    fn schedule(&mut self, model: usize, due: Due, after: Duration) {
        self.numbered += 1;
        let key = (self.now + after, self.numbered);
        self.agenda.insert(key, (model, due));
    }

    /// Says who waits, asks what to do, and does it.
    fn act(&mut self) {
        for model in 0..self.engines.len() {
            if !self.engines[model].queue.is_empty() {
                self.happen(model, Event::Wanted);
            }
        }
        if self.is_anybody_waiting() || self.has_idle_limits() || self.policy.prefetches() {
            let snapshot = self.snapshot();
            let Plan { actions } = self.policy.plan(&snapshot, self.now);
            for action in actions {
                self.execute(action);
            }
        }
        self.tally.most_live = self.tally.most_live.max(self.live());
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::Wait { .. } => {}
            Action::Start { model, devices } => {
                let model = self.index(&model);
                let spec = &self.world.models[model];
                self.ledger
                    .charge(&spec.id, &devices, spec.bytes[Rung::Ready]);
                self.engines[model].devices = devices;
                self.engines[model].is_promised = false;
                // Nobody wants yet who is loaded ahead.
                self.happen(model, Event::Wanted);
                self.happen(model, Event::Granted);
            }
            Action::Demote { model, to, why } => {
                let model = self.index(&model);
                if let Some(next) = why.for_whom() {
                    let next = self.index(next);
                    self.engines[next].is_promised = true;
                }
                self.policy.evicted(model);
                self.happen(model, Event::Reclaim { to });
            }
        }
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

    fn snapshot(&self) -> Snapshot {
        let is_changing = |device: &DeviceId| {
            let mut engines = self.engines.iter();
            engines.any(|engine| engine.is_changing() && engine.devices.contains(device))
        };
        let mut forecast = match self.policy.foresees() {
            true => self.succession.forecast(self.now),
            false => BTreeMap::new(),
        };
        let models = self.world.models.iter().zip(&self.engines);
        Snapshot {
            settings: self.world.settings,
            devices: self.ledger.devices(is_changing),
            models: models
                .map(|(spec, engine)| Model {
                    next: forecast.remove(&spec.id).unwrap_or_default(),
                    ..engine.seen(spec, self.now)
                })
                .collect(),
        }
    }

    fn live(&self) -> usize {
        let queued = self.engines.iter().map(|engine| engine.queue.len());
        self.agenda.len() + queued.sum::<usize>() + self.policy.live()
    }
}

// === impl Engine ===

impl Engine {
    fn new(spec: &Spec) -> Self {
        let mut life = Lifecycle::new();
        life.supports(spec.rungs);
        Self {
            life,
            rate: Rate::default(),
            devices: Vec::new(),
            rung: Rung::Cold,
            queue: VecDeque::new(),
            in_flight: 0,
            mean_service: 0.0,
            is_promised: false,
        }
    }

    fn is_changing(&self) -> bool {
        self.life.state().rung().is_none()
    }

    fn is_drained(&self) -> bool {
        matches!(self.life.state(), State::Draining { .. }) && self.in_flight == 0
    }

    fn begin(&mut self, request: &Request) {
        self.in_flight += 1;
        self.mean_service += 0.1 * (request.service.as_secs_f64() - self.mean_service);
    }

    fn seen(&self, spec: &Spec, now: Duration) -> Model {
        let waits = |request: &Request| (now - request.at).as_secs_f64() * request.weight;
        let oldest = self.queue.front().map(|request| now - request.at);
        let last = self.rate.last_seen().unwrap_or_default();
        Model {
            id: spec.id.clone(),
            rung: self.rung,
            is_changing: self.is_changing(),
            devices: self.devices.clone(),
            width: spec.width,
            allowed: spec.allowed.clone(),
            bytes: spec.bytes,
            costs: spec.costs,
            is_promised: self.is_promised,
            next: Forecast::default(),
            demand: Demand {
                state: self.life.state(),
                rungs: spec.rungs,
                drain: Duration::from_secs_f64(self.mean_service),
                in_flight: self.in_flight,
                queued: self.queue.len(),
                rent: self.queue.iter().map(waits).sum(),
                oldest_wait: oldest.unwrap_or_default(),
                rate: self.rate.per_second(now),
                soon: self.rate.soon(now),
                may_prefetch: spec.idle_ttl.is_none(),
                is_pinned: spec.is_pinned,
                idle_for: now - last,
                idle_ttl: spec.idle_ttl,
                ..Demand::default()
            },
        }
    }
}
