//! Who has which memory: what the planner is shown, and what became of what it ordered.
//!
//! The planner keeps nothing ([`residency`]); this is its memory. No actor, no clock: the Gpu actor
//! feeds it [`Claim`]s and readings and sends the [`Order`]s that come out.

mod needs;
use std::{collections::BTreeMap, time::Instant};

use kvwarden_policy::{
    DeviceId, ModelId,
    lifecycle::{Rung, State},
    residency::{
        self, Action, ByRung, Costs, Forecast, Ledger, Limits, Plan, Succession, Until, value,
    },
};
use serde::Serialize;

use crate::device::{DeviceReading, Reading};
use crate::protocol::Claim;

use needs::Size;
pub use needs::{HOST, Needs};

/// What to tell a model about one of its engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Start or wake here.
    Grant {
        devices: Vec<DeviceId>,
        /// Though nobody wants it yet.
        is_prefetch: bool,
    },
    /// Drain and go down this deep.
    Reclaim(Rung),
}

/// An engine as the planner sees it, for people.
#[derive(Clone, Debug, Serialize)]
pub struct Resident {
    /// Which engine: its model's name, or `model#2` for a second one.
    pub engine: ModelId,
    /// Where it rests, or comes from while it changes.
    pub rung: Rung,
    /// Where it is.
    pub devices: Vec<DeviceId>,
    /// Bytes it is charged for on each of its devices.
    pub bytes: u64,
    /// Requests per second, from the last few.
    pub rate: f64,
    /// Seconds of waiting that it spares by being where it is: the lowest goes first.
    pub value: f64,
    /// It stays where it is, whatever it is worth.
    pub is_pinned: bool,
    /// What leaving and coming back costs, by rung.
    pub costs: Costs,
    /// What it waits for, if it waits for a place.
    pub until: Option<Until>,
}

/// Seats of all engines, and the devices they share.
#[derive(Debug)]
pub(crate) struct Seats {
    /// When it came into being.
    epoch: Instant,
    settings: residency::Settings,
    ledger: Ledger,
    devices: BTreeMap<DeviceId, Size>,
    seats: BTreeMap<ModelId, Seat>,
    orders: u64,
    plan: Plan,
    succession: Succession,
    /// Of the newest plan.
    forecast: BTreeMap<ModelId, Forecast>,
    /// What engines of an earlier kvwarden hold, until their models say more.
    inherited: BTreeMap<ModelId, Place>,
}

/// Where an engine is, and how much of each of these devices it has.
type Place = (Vec<DeviceId>, u64);

#[derive(Debug)]
struct Seat {
    needs: Needs,
    /// What it needs from its next start on, if that is something else.
    next: Option<Needs>,
    claim: Claim,
    /// Since when its claim says the same state.
    since: Instant,
    /// Where it rested last.
    rung: Rung,
    /// When it began to rise.
    rising: Option<(Rung, Instant)>,
    devices: Vec<DeviceId>,
    costs: Costs,
    /// The newest order to it.
    order: u64,
    /// Others went down to make room for it.
    is_promised: bool,
}

// === impl Seats ===

impl Seats {
    /// Nobody, and no device yet.
    pub(crate) fn new(settings: residency::Settings, epoch: Instant) -> Self {
        Self {
            epoch,
            settings,
            ledger: Ledger::default(),
            devices: BTreeMap::new(),
            seats: BTreeMap::new(),
            orders: 0,
            plan: Plan::default(),
            succession: Succession::default(),
            forecast: BTreeMap::new(),
            inherited: BTreeMap::new(),
        }
    }

    /// Takes in what the driver says. `memory` is how much of each GPU is for engines, or of the
    /// machine where there is no GPU.
    pub(crate) fn see(&mut self, reading: &Reading, memory: Option<u64>) {
        let limit = memory.unwrap_or(u64::MAX);
        match reading {
            Reading::NotYet => {}
            Reading::NoGpu { .. } => self.furnish([(HOST.into(), Size::of_host(limit))]),
            Reading::Lost { .. } => self.doubt(&[]),
            Reading::Devices { devices } => {
                let gpus = devices.iter().map(|gpu| {
                    let size = Size {
                        index: Some(gpu.index),
                        total: gpu.total.min(limit),
                    };
                    (gpu.uuid.as_str().into(), size)
                });
                self.furnish(gpus.chain([(HOST.into(), Size::of_host(u64::MAX))]));
                self.doubt(devices);
                for gpu in devices {
                    self.measure(gpu);
                }
            }
        }
    }

    /// Devices are known from the first reading on.
    fn furnish(&mut self, devices: impl IntoIterator<Item = (DeviceId, Size)>) {
        if !self.devices.is_empty() {
            return;
        }
        self.devices = devices.into_iter().collect();
        let limits = self.devices.iter().map(|(id, size)| {
            let limits = Limits {
                total: size.total,
                reserved: 0,
            };
            (id.clone(), limits)
        });
        self.ledger = Ledger::new(limits);
        for (engine, (devices, bytes)) in &self.inherited {
            self.ledger.charge(engine, devices, *bytes);
        }
    }

    /// What was seen before.
    pub(crate) fn remember(&mut self, succession: Succession) {
        self.succession = succession;
    }

    /// What is to be remembered.
    pub(crate) fn succession(&self) -> &Succession {
        &self.succession
    }

    /// An engine of an earlier kvwarden is at this place.
    pub(crate) fn inherit(&mut self, engine: ModelId, (devices, bytes): Place) {
        self.ledger.charge(&engine, &devices, bytes);
        self.inherited.insert(engine, (devices, bytes));
    }

    /// It ended before its model was there.
    pub(crate) fn disinherit(&mut self, engine: &ModelId) {
        self.inherited.remove(engine);
        if !self.seats.contains_key(engine) {
            self.ledger.release(engine);
        }
    }

    /// Gives an inherited engine to its model: the number of this order, and where it is.
    pub(crate) fn bequeath(&mut self, engine: &ModelId) -> Option<(u64, Vec<DeviceId>)> {
        let (devices, _) = self.inherited.get(engine)?;
        let seat = self.seats.get_mut(engine)?;
        self.orders += 1;
        seat.order = self.orders;
        seat.devices.clone_from(devices);
        Some((self.orders, devices.clone()))
    }

    /// Bytes an engine is charged for on each of its devices.
    pub(crate) fn charged(&self, engine: &ModelId) -> u64 {
        let seat = self.seats.get(engine);
        let device = seat.and_then(|seat| seat.devices.first());
        device.map_or(0, |device| self.ledger.charged(engine, device))
    }

    /// Nothing starts on a GPU that does not answer.
    fn doubt(&mut self, answering: &[DeviceReading]) {
        for id in self.devices.keys().filter(|id| id.as_str() != HOST) {
            let answers = answering.iter().any(|gpu| gpu.uuid == id.as_str());
            self.ledger.quarantine(id, !answers);
        }
    }

    /// While nothing changes on it, what is in use beyond what we charge is somebody else's, or was
    /// not given back; either way it is not there to give. Pids would tell which, but those of a
    /// container mean nothing to the driver.
    fn measure(&mut self, gpu: &DeviceReading) {
        let id = DeviceId::from(gpu.uuid.as_str());
        let mut here = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.devices.contains(&id));
        let foreign = if here.clone().any(|(_, seat)| seat.is_changing()) {
            None
        } else {
            let charged = here
                .by_ref()
                .map(|(engine, _)| self.ledger.charged(engine, &id));
            Some(gpu.used.saturating_sub(charged.sum()))
        };
        self.ledger.measure(&id, Some(gpu.used), foreign);
    }

    /// Other settings from now on.
    pub(crate) fn tune(&mut self, settings: residency::Settings) {
        self.settings = settings;
    }

    /// An engine that may want memory. Of one that is there already it is what its next start needs.
    pub(crate) fn enlist(&mut self, engine: ModelId, needs: Needs, now: Instant) {
        if let Some(seat) = self.seats.get_mut(&engine) {
            seat.next = Some(needs);
            return;
        }
        let prior = || Costs::prior(needs.footprint.weights);
        let costs = needs.costs.unwrap_or_else(prior);
        let seat = Seat {
            needs,
            next: None,
            claim: Claim::default(),
            since: now,
            rung: Rung::Cold,
            rising: None,
            devices: Vec::new(),
            costs,
            order: 0,
            is_promised: false,
        };
        self.seats.insert(engine, seat);
    }

    /// An engine that is no more.
    pub(crate) fn delist(&mut self, engine: &ModelId) {
        self.seats.remove(engine);
        self.succession.retain(|model| model != engine);
        self.inherited.remove(engine);
        self.ledger.release(engine);
    }

    /// Takes in where an engine stands. Whether that may change the plan.
    pub(crate) fn claim(&mut self, engine: &ModelId, claim: Claim, now: Instant) -> bool {
        let Some(seat) = self.seats.get_mut(engine) else {
            return false;
        };
        let is_news = seat.claim.state != claim.state || seat.claim.order != claim.order;
        if let Some(asked_at) = claim.asked_at
            && claim.asked_at != seat.claim.asked_at
        {
            let asked_at = asked_at.saturating_duration_since(self.epoch);
            self.succession.seen(engine, asked_at);
        }
        if seat.claim.state != claim.state {
            seat.learn(claim.state, now);
            seat.since = now;
        }
        seat.claim = claim;
        if seat.is_at_rest()
            && let Some(rung) = seat.claim.state.rung()
        {
            seat.rung = rung;
            if rung == Rung::Cold
                && let Some(next) = seat.next.take()
            {
                seat.needs = next;
            }
            let bytes = seat.bytes(&self.devices)[rung];
            if rung == Rung::Cold {
                seat.devices.clear();
            }
            self.ledger.charge(engine, &seat.devices, bytes);
        }
        is_news
    }

    /// What is to be done now. The orders count as given.
    pub(crate) fn decide(&mut self, now: Instant) -> Vec<(ModelId, u64, Order)> {
        self.release_promises();
        let since_epoch = now.saturating_duration_since(self.epoch);
        self.forecast = self.succession.forecast(since_epoch);
        let mut orders: Vec<(ModelId, Order)> = self.modest();
        let snapshot = self.snapshot();
        self.plan = residency::plan(&snapshot);
        for action in self.plan.actions.clone() {
            match action {
                Action::Start { model, devices } => {
                    let is_prefetch = !self.is_waiting(&model);
                    if is_prefetch {
                        tracing::info!(engine = %model, "expected, so it is loaded ahead");
                    }
                    let grant = Order::Grant {
                        devices,
                        is_prefetch,
                    };
                    orders.push((model, grant));
                }
                Action::Demote { model, to, why } => {
                    tracing::info!(engine = %model, %to, ?why, "makes room");
                    if let Some(next) = why.for_whom().and_then(|next| self.seats.get_mut(next)) {
                        next.is_promised = true;
                    }
                    orders.push((model, Order::Reclaim(to)));
                }
                Action::Wait { .. } => {}
            }
        }
        orders
            .into_iter()
            .map(|(engine, order)| {
                let number = self.ordered(&engine, &order);
                (engine, number, order)
            })
            .collect()
    }

    /// Room that was made for who is not asked yet is anybody's once it is there and not taken.
    fn release_promises(&mut self) {
        if self.seats.values().any(Seat::is_changing) {
            return;
        }
        for seat in self.seats.values_mut() {
            seat.is_promised &= seat.is_waiting();
        }
    }

    fn is_waiting(&self, engine: &ModelId) -> bool {
        self.seats.get(engine).is_some_and(Seat::is_waiting)
    }

    /// Engines that take no memory of ours (somebody else's) never wait.
    fn modest(&self) -> Vec<(ModelId, Order)> {
        let waits = |seat: &Seat| seat.is_at_rest() && seat.needs.is_elsewhere && seat.is_waiting();
        let modest = self.seats.iter().filter(|(_, seat)| waits(seat));
        modest
            .map(|(engine, _)| {
                let grant = Order::Grant {
                    devices: Vec::new(),
                    is_prefetch: false,
                };
                (engine.clone(), grant)
            })
            .collect()
    }

    fn ordered(&mut self, engine: &ModelId, order: &Order) -> u64 {
        self.orders += 1;
        if let Some(seat) = self.seats.get_mut(engine) {
            seat.order = self.orders;
            if let Order::Grant { devices, .. } = order {
                seat.is_promised = false;
                seat.devices.clone_from(devices);
                let bytes = seat.bytes(&self.devices)[Rung::Ready];
                self.ledger.charge(engine, devices, bytes);
            }
        }
        self.orders
    }

    /// What the planner is shown.
    pub(crate) fn snapshot(&self) -> residency::Snapshot {
        residency::Snapshot {
            settings: self.settings,
            devices: self.memory(),
            models: self
                .seats
                .iter()
                .filter(|(_, seat)| !seat.needs.is_elsewhere)
                .map(|(engine, seat)| self.model(engine, seat))
                .collect(),
        }
    }

    fn model(&self, engine: &ModelId, seat: &Seat) -> residency::Model {
        residency::Model {
            next: self.forecast.get(engine).cloned().unwrap_or_default(),
            ..seat.as_model(engine, &self.devices)
        }
    }

    /// What was decided last.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Every engine, for people.
    pub(crate) fn residents(&self) -> Vec<Resident> {
        let until = |engine: &ModelId| {
            self.plan.actions.iter().find_map(|action| match action {
                Action::Wait { model, until } if model == engine => Some(*until),
                Action::Wait { .. } | Action::Start { .. } | Action::Demote { .. } => None,
            })
        };
        let resident = |(engine, seat): (&ModelId, &Seat)| {
            let model = self.model(engine, seat);
            Resident {
                engine: engine.clone(),
                rung: seat.rung,
                devices: seat.devices.clone(),
                bytes: self.charged(engine),
                rate: model.rate,
                value: value::value(&model, Rung::Cold),
                is_pinned: model.is_pinned,
                costs: seat.costs,
                until: until(engine).filter(|_| model.is_wanted),
            }
        };
        self.seats.iter().map(resident).collect()
    }

    /// The devices as the planner sees them.
    pub(crate) fn memory(&self) -> Vec<residency::Device> {
        self.ledger.devices(|id| {
            let here = self.seats.values().filter(|seat| seat.is_changing());
            here.flat_map(|seat| &seat.devices).any(|at| at == id)
        })
    }
}

// === impl Seat ===

impl Seat {
    /// It follows no order and is on no way.
    fn is_at_rest(&self) -> bool {
        self.claim.order >= self.order && self.claim.state.rung().is_some()
    }

    fn is_waiting(&self) -> bool {
        matches!(self.claim.state, State::Waiting { .. })
    }

    fn is_changing(&self) -> bool {
        !self.is_at_rest()
    }

    /// Bytes on each device, by rung: the larger where devices differ in size.
    fn bytes(&self, devices: &BTreeMap<DeviceId, Size>) -> ByRung<u64> {
        let ids = match self.devices.as_slice() {
            [] => self.needs.allowed(devices),
            here => here.to_vec(),
        };
        let sizes = ids.iter().filter_map(|id| devices.get(id));
        let largest = sizes.map(|size| size.total).max();
        self.needs.bytes(largest.unwrap_or(0))
    }

    /// How long a way took is known when it ends.
    fn learn(&mut self, next: State, now: Instant) {
        let took = now.saturating_duration_since(self.since);
        match (self.claim.state, next) {
            (State::Waiting { from }, State::Starting { .. } | State::Waking { .. }) => {
                self.rising = Some((from, now));
            }
            (State::Demoting { to }, State::Asleep { .. }) => self.costs.learn_demote(to, took),
            (State::Stopping, State::Cold) => self.costs.learn_demote(Rung::Cold, took),
            (_, State::Ready) => {
                if let Some((from, begun)) = self.rising.take() {
                    let took = now.saturating_duration_since(begun);
                    self.costs.learn_promote(from, took);
                }
            }
            _ => {}
        }
    }

    fn as_model(&self, engine: &ModelId, devices: &BTreeMap<DeviceId, Size>) -> residency::Model {
        let claim = &self.claim;
        residency::Model {
            id: engine.clone(),
            rung: self.rung,
            is_changing: self.is_changing(),
            is_wanted: self.is_waiting(),
            devices: self.devices.clone(),
            width: self.needs.width,
            bytes: self.bytes(devices),
            allowed: self.needs.allowed(devices),
            rungs: claim.rungs,
            costs: self.costs,
            drain: claim.drain,
            in_flight: claim.in_flight,
            queued: claim.queued,
            rent: claim.rent,
            oldest_wait: claim.oldest_wait,
            rate: claim.rate,
            soon: claim.soon,
            next: Forecast::default(),
            may_prefetch: claim.may_prefetch,
            is_promised: self.is_promised,
            is_pinned: claim.is_pinned,
            idle_for: claim.idle_for,
            idle_ttl: claim.idle_ttl,
        }
    }
}

#[cfg(test)]
mod tests;
