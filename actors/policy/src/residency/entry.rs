//! One engine in the [`Tracker`](super::Tracker)'s books.

use std::{collections::BTreeMap, time::Instant};

use super::{BySleepLevel, Costs, Demand, DeviceSize, Forecast, Model, Needs};
use crate::{
    DeviceId, ModelId,
    lifecycle::{SleepLevel, State},
};

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) needs: Needs,
    /// What it needs from its next start on, if that is something else.
    pub(super) next_needs: Option<Needs>,
    demand: Demand,
    /// Since when its demand says the same state.
    since: Instant,
    /// Where it rested last.
    pub(super) level: SleepLevel,
    /// When it began to rise.
    rising: Option<(SleepLevel, Instant)>,
    pub(super) devices: Vec<DeviceId>,
    pub(super) costs: Costs,
    /// The newest order to it.
    pub(super) order: u64,
    /// Others went down to make room for it.
    pub(super) is_promised: bool,
}

// === impl Entry ===

impl Entry {
    pub(super) fn new(needs: Needs, now: Instant) -> Self {
        Self {
            costs: needs.first_costs(),
            needs,
            next_needs: None,
            demand: Demand::default(),
            since: now,
            level: SleepLevel::Cold,
            rising: None,
            devices: Vec::new(),
            order: 0,
            is_promised: false,
        }
    }

    /// Takes in a demand. The sleep level it rests at, if it does.
    pub(super) fn update(&mut self, demand: Demand, now: Instant) -> Option<SleepLevel> {
        if self.demand.state != demand.state {
            self.learn(demand.state, now);
            self.since = now;
        }
        self.demand = demand;
        let level = self.demand.state.level().filter(|_| !self.is_changing())?;
        self.level = level;
        if level == SleepLevel::Cold
            && let Some(next) = self.next_needs.take()
        {
            self.needs = next;
        }
        Some(level)
    }

    /// What was demanded last.
    pub(super) fn demand(&self) -> &Demand {
        &self.demand
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.demand.is_wanted()
    }

    /// It is on its way, or has not followed its newest order yet.
    pub(super) fn is_changing(&self) -> bool {
        self.demand.order < self.order || self.demand.state.level().is_none()
    }

    /// Bytes on each device, by sleep level: the larger where devices differ in size.
    pub(super) fn bytes(&self, devices: &BTreeMap<DeviceId, DeviceSize>) -> BySleepLevel<u64> {
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
        match (self.demand.state, next) {
            (State::Waiting { from }, State::Starting { .. } | State::Waking { .. }) => {
                self.rising = Some((from, now));
            }
            (State::Demoting { to }, State::Asleep { .. }) => self.costs.learn_demote(to, took),
            (State::Stopping, State::Cold) => self.costs.learn_demote(SleepLevel::Cold, took),
            (_, State::Ready) => {
                if let Some((from, begun)) = self.rising.take() {
                    let took = now.saturating_duration_since(begun);
                    self.costs.learn_promote(from, took);
                }
            }
            _ => {}
        }
    }

    pub(super) fn as_model(
        &self,
        engine: &ModelId,
        devices: &BTreeMap<DeviceId, DeviceSize>,
        next: Forecast,
    ) -> Model {
        Model {
            id: engine.clone(),
            demand: self.demand.clone(),
            level: self.level,
            is_changing: self.is_changing(),
            devices: self.devices.clone(),
            width: self.needs.width,
            allowed: self.needs.allowed(devices),
            bytes: self.bytes(devices),
            costs: self.costs,
            next,
            is_promised: self.is_promised,
        }
    }
}
