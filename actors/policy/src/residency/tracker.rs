//! The planner's bookkeeping: who has which memory, what was ordered, and what became of that.
//!
//! No actor, no clock, no driver: the Gpu actor and the swap simulator feed it the models' [`Demand`]s
//! and what the driver says, and deliver the [`Order`]s that come out. Memory is charged when an order
//! is given and until the engine is seen at rest with less of it.

use std::{collections::BTreeMap, time::Instant};

use serde::Serialize;

use super::{
    Action, Costs, Demand, Device, DeviceSelector, DeviceSize, Forecast, HOST, Ledger, Model,
    Needs, Plan, Settings, Snapshot, Succession, Until, entry::Entry, plan, value,
};
use crate::{DeviceId, ModelId, lifecycle::SleepLevel};

/// What to tell a model about one of its engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which engine.
    pub engine: ModelId,
    /// Comes back in [`Demand::order`].
    pub number: u64,
    /// What it shall do.
    pub kind: OrderKind,
}

/// What an engine shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// Start or wake here.
    Grant {
        /// Where.
        devices: Vec<DeviceId>,
        /// Though nobody wants it yet.
        is_prefetch: bool,
    },
    /// Drain and go down this deep.
    Reclaim(SleepLevel),
}

/// What the driver says of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryReading {
    /// There is no GPU: engines run on the host.
    HostOnly,
    /// There were GPUs, and none answers any more.
    Lost,
    /// The GPUs that answer.
    Devices(Vec<DeviceMemory>),
}

/// One GPU, or one slice of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Its UUID.
    pub id: DeviceId,
    /// The driver's index.
    pub index: u32,
    /// Bytes of memory.
    pub total: u64,
    /// Bytes in use by anybody.
    pub used: u64,
}

/// An engine as the planner sees it, for people.
#[derive(Clone, Debug, Serialize)]
pub struct Resident {
    /// Which engine: its model's name, or `model#2` for a second one.
    pub engine: ModelId,
    /// Where it rests, or comes from while it changes.
    #[serde(rename = "rung")]
    pub level: SleepLevel,
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
    /// What leaving and coming back costs, by sleep level.
    pub costs: Costs,
    /// What it waits for, if it waits for a place.
    pub until: Option<Until>,
}

/// All engines that may want memory, and the devices they share.
#[derive(Debug)]
pub struct Tracker {
    /// When it came into being.
    epoch: Instant,
    settings: Settings,
    ledger: Ledger,
    devices: BTreeMap<DeviceId, DeviceSize>,
    entries: BTreeMap<ModelId, Entry>,
    orders: u64,
    plan: Plan,
    succession: Succession,
    /// Of the newest plan.
    forecast: BTreeMap<ModelId, Forecast>,
    /// What engines of an earlier kvwarden hold, until their models say more.
    orphans: BTreeMap<ModelId, (Vec<DeviceId>, u64)>,
}

// === impl Tracker ===

impl Tracker {
    /// Nobody, and no device yet. Moments of the forecast count from `epoch`.
    #[must_use]
    pub fn new(settings: Settings, epoch: Instant) -> Self {
        Self {
            epoch,
            settings,
            ledger: Ledger::default(),
            devices: BTreeMap::new(),
            entries: BTreeMap::new(),
            orders: 0,
            plan: Plan::default(),
            succession: Succession::default(),
            forecast: BTreeMap::new(),
            orphans: BTreeMap::new(),
        }
    }

    /// Takes in what the driver says. `limit` is how much of each GPU is for engines, or of the
    /// machine where there is no GPU.
    pub fn observe(&mut self, reading: &MemoryReading, limit: Option<u64>) {
        let limit = limit.unwrap_or(u64::MAX);
        match reading {
            MemoryReading::HostOnly => {
                self.set_devices([(HOST.into(), DeviceSize::of_host(limit))]);
            }
            MemoryReading::Lost => self.quarantine_missing(&[]),
            MemoryReading::Devices(gpus) => {
                let size = |gpu: &DeviceMemory| DeviceSize {
                    index: Some(gpu.index),
                    total: gpu.total.min(limit),
                };
                let sizes = gpus.iter().map(|gpu| (gpu.id.clone(), size(gpu)));
                self.set_devices(sizes.chain([(HOST.into(), DeviceSize::of_host(u64::MAX))]));
                self.quarantine_missing(gpus);
                for gpu in gpus {
                    self.measure(gpu);
                }
            }
        }
    }

    /// Devices are known from the first reading on: what comes later changes nothing.
    pub fn set_devices(&mut self, devices: impl IntoIterator<Item = (DeviceId, DeviceSize)>) {
        if !self.devices.is_empty() {
            return;
        }
        self.devices = devices.into_iter().collect();
        let sizes = self.devices.iter();
        self.ledger = Ledger::new(sizes.map(|(id, size)| (id.clone(), size.total)));
        for (engine, (devices, bytes)) in &self.orphans {
            self.ledger.charge(engine, devices, *bytes);
        }
    }

    /// Nothing starts on a GPU that does not answer.
    fn quarantine_missing(&mut self, answering: &[DeviceMemory]) {
        for id in self.devices.keys().filter(|id| id.as_str() != HOST) {
            let answers = answering.iter().any(|gpu| gpu.id == *id);
            self.ledger.quarantine(id, !answers);
        }
    }

    /// While nothing changes on it, what is in use beyond what we charge is somebody else's, or was
    /// not given back; either way it is not there to give. Pids would tell which, but those of a
    /// container mean nothing to the driver.
    fn measure(&mut self, gpu: &DeviceMemory) {
        let is_here = |(_, entry): &(&ModelId, &Entry)| entry.devices.contains(&gpu.id);
        let here = || self.entries.iter().filter(is_here);
        let foreign = if here().any(|(_, entry)| entry.is_changing()) {
            None
        } else {
            let charged = here().map(|(engine, _)| self.ledger.charged(engine, &gpu.id));
            Some(gpu.used.saturating_sub(charged.sum()))
        };
        self.ledger.measure(&gpu.id, Some(gpu.used), foreign);
    }

    /// Other settings from now on.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What was seen before of who is asked after whom.
    pub fn set_succession(&mut self, succession: Succession) {
        self.succession = succession;
    }

    /// Who is asked after whom.
    #[must_use]
    pub fn succession(&self) -> &Succession {
        &self.succession
    }

    /// An engine of an earlier kvwarden has so many bytes on each of these devices.
    pub fn add_orphan(&mut self, engine: ModelId, devices: Vec<DeviceId>, bytes: u64) {
        self.ledger.charge(&engine, &devices, bytes);
        self.orphans.insert(engine, (devices, bytes));
    }

    /// It ended before its model was there.
    pub fn remove_orphan(&mut self, engine: &ModelId) {
        self.orphans.remove(engine);
        if !self.entries.contains_key(engine) {
            self.ledger.release(engine);
        }
    }

    /// Offers its orphan to a model that is there now: the number of this order, and where it is.
    pub fn offer_orphan(&mut self, engine: &ModelId) -> Option<(u64, Vec<DeviceId>)> {
        let (devices, _) = self.orphans.get(engine)?;
        let entry = self.entries.get_mut(engine)?;
        self.orders += 1;
        entry.order = self.orders;
        entry.devices.clone_from(devices);
        Some((self.orders, devices.clone()))
    }

    /// An engine that may want memory. Of one that is there already it is what its next start needs.
    pub fn register(&mut self, engine: ModelId, needs: Needs, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&engine) {
            entry.next_needs = Some(needs);
        } else {
            self.entries.insert(engine, Entry::new(needs, now));
        }
    }

    /// An engine that is no more.
    pub fn unregister(&mut self, engine: &ModelId) {
        self.entries.remove(engine);
        self.succession.retain(|model| model != engine);
        self.orphans.remove(engine);
        self.ledger.release(engine);
    }

    /// Takes in where an engine stands. Whether that may change the plan.
    pub fn update(&mut self, engine: &ModelId, demand: Demand, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(engine) else {
            return false;
        };
        let before = entry.demand();
        let is_news = before.state != demand.state || before.order != demand.order;
        if let Some(asked_at) = demand.asked_at
            && demand.asked_at != before.asked_at
        {
            let asked_at = asked_at.saturating_duration_since(self.epoch);
            self.succession.seen(engine, asked_at);
        }
        if let Some(level) = entry.update(demand, now) {
            let bytes = entry.bytes(&self.devices)[level];
            if level == SleepLevel::Cold {
                entry.devices.clear();
            }
            self.ledger.charge(engine, &entry.devices, bytes);
        }
        is_news
    }

    /// What is to be done now. The orders count as given.
    pub fn decide(&mut self, now: Instant) -> Vec<Order> {
        self.decide_by(now, plan)
    }

    /// The same, by another rule than ours.
    pub fn decide_by(&mut self, now: Instant, rule: impl FnOnce(&Snapshot) -> Plan) -> Vec<Order> {
        self.release_promises();
        let since_epoch = now.saturating_duration_since(self.epoch);
        self.forecast = self.succession.forecast(since_epoch);
        let mut kinds = self.grant_unmanaged();
        self.plan = rule(&self.snapshot());
        for action in self.plan.actions.clone() {
            kinds.extend(self.order_for(action));
        }
        let number = |(engine, kind)| self.record_order(engine, kind);
        kinds.into_iter().map(number).collect()
    }

    /// What an action tells whom.
    fn order_for(&mut self, action: Action) -> Option<(ModelId, OrderKind)> {
        match action {
            Action::Start { model, devices } => {
                let is_prefetch = !self.entries.get(&model).is_some_and(Entry::is_waiting);
                let grant = OrderKind::Grant {
                    devices,
                    is_prefetch,
                };
                Some((model, grant))
            }
            Action::Demote { model, to, why } => {
                if let Some(next) = why.for_whom().and_then(|next| self.entries.get_mut(next)) {
                    next.is_promised = true;
                }
                Some((model, OrderKind::Reclaim(to)))
            }
            Action::Wait { .. } => None,
        }
    }

    /// Room that was made for who is not asked yet is anybody's once it is there and not taken.
    fn release_promises(&mut self) {
        if self.entries.values().any(Entry::is_changing) {
            return;
        }
        for entry in self.entries.values_mut() {
            entry.is_promised &= entry.is_waiting();
        }
    }

    /// Engines that take no memory of ours (somebody else's) never wait.
    fn grant_unmanaged(&self) -> Vec<(ModelId, OrderKind)> {
        let waits = |entry: &Entry| {
            entry.needs.devices == DeviceSelector::Unmanaged
                && entry.is_waiting()
                && !entry.is_changing()
        };
        let waiting = self.entries.iter().filter(|(_, entry)| waits(entry));
        let grant = |(engine, _): (&ModelId, &Entry)| {
            let grant = OrderKind::Grant {
                devices: Vec::new(),
                is_prefetch: false,
            };
            (engine.clone(), grant)
        };
        waiting.map(grant).collect()
    }

    fn record_order(&mut self, engine: ModelId, kind: OrderKind) -> Order {
        self.orders += 1;
        if let Some(entry) = self.entries.get_mut(&engine) {
            entry.order = self.orders;
            if let OrderKind::Grant { devices, .. } = &kind {
                entry.is_promised = false;
                entry.devices.clone_from(devices);
                let bytes = entry.bytes(&self.devices)[SleepLevel::Ready];
                self.ledger.charge(&engine, devices, bytes);
            }
        }
        Order {
            engine,
            number: self.orders,
            kind,
        }
    }

    /// What the planner is shown.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let managed = self.entries.iter();
        let managed = managed.filter(|(_, entry)| entry.needs.devices != DeviceSelector::Unmanaged);
        Snapshot {
            settings: self.settings,
            devices: self.memory(),
            models: managed
                .map(|(engine, entry)| self.model(engine, entry))
                .collect(),
        }
    }

    fn model(&self, engine: &ModelId, entry: &Entry) -> Model {
        let next = self.forecast.get(engine).cloned().unwrap_or_default();
        entry.as_model(engine, &self.devices, next)
    }

    /// What was decided last.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes an engine is charged for on each of its devices.
    #[must_use]
    pub fn charged(&self, engine: &ModelId) -> u64 {
        let entry = self.entries.get(engine);
        let device = entry.and_then(|entry| entry.devices.first());
        device.map_or(0, |device| self.ledger.charged(engine, device))
    }

    /// Every engine, for people.
    #[must_use]
    pub fn residents(&self) -> Vec<Resident> {
        let until = |engine: &ModelId| {
            self.plan.actions.iter().find_map(|action| match action {
                Action::Wait { model, until } if model == engine => Some(*until),
                Action::Wait { .. } | Action::Start { .. } | Action::Demote { .. } => None,
            })
        };
        let resident = |(engine, entry): (&ModelId, &Entry)| {
            let model = self.model(engine, entry);
            Resident {
                engine: engine.clone(),
                level: entry.level,
                devices: entry.devices.clone(),
                bytes: self.charged(engine),
                rate: model.demand.rate,
                value: value::value(&model, SleepLevel::Cold),
                is_pinned: model.demand.is_pinned,
                costs: entry.costs,
                until: until(engine).filter(|_| model.is_wanted()),
            }
        };
        self.entries.iter().map(resident).collect()
    }

    /// The devices as the planner sees them.
    #[must_use]
    pub fn memory(&self) -> Vec<Device> {
        self.ledger.devices(|id| {
            let here = self.entries.values().filter(|entry| entry.is_changing());
            here.flat_map(|entry| &entry.devices).any(|at| at == id)
        })
    }
}
