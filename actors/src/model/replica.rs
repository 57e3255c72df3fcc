//! One engine of a model: its life, what it was ordered, and what runs on it.

use std::{sync::Arc, time::Duration};

use kvwarden_policy::{
    DeviceId, Generation, ModelId,
    lifecycle::Lifecycle,
    residency::Costs,
    routing::Load,
    stall,
    stall::{Signs, Stall},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    EngineParams,
    metrics::MetricsPoller,
    state::{EngineState, Record},
};
use crate::{
    engine::{Endpoint, EngineKind, EngineSpec},
    protocol::Target,
};

/// An engine of a model, whether it runs or not.
pub(super) struct Replica {
    /// Its name: the model's, or `model#2` for a second one.
    pub(super) engine: ModelId,
    pub(super) kind: EngineKind,
    /// Which one it is to be, by its configuration.
    pub(super) revision: u64,
    pub(super) costs: Option<Costs>,
    /// What to start, once it is on this machine, and of which revision that is.
    pub(super) spec: Option<(u64, Arc<EngineSpec>)>,
    /// The revision of its newest start.
    pub(super) started: Option<u64>,
    /// It gives way to the next one, which does not serve yet.
    pub(super) is_rolling: bool,
    /// The configuration has it no more.
    pub(super) is_leaving: bool,
    pub(super) life: Lifecycle,
    /// Where it listens, asleep or not.
    pub(super) endpoint: Option<Arc<Endpoint>>,
    /// Where it is to run.
    pub(super) devices: Vec<DeviceId>,
    /// The newest order of the planner that was dealt with.
    pub(super) order: u64,
    pub(super) occupancy: Occupancy,
    /// Looks at what waits inside it, for as long as it serves.
    pub(super) poller: Option<MetricsPoller>,
    /// Requests that wait inside it, while it says so.
    pub(super) waiting: Option<u64>,
    /// What is seen of its work, and since when that does not change.
    pub(super) signs: Signs,
    pub(super) stall: Stall,
    /// Nothing is sent to it until then.
    pub(super) paused_until: Option<Instant>,
    /// What an operator wants of it and has not got yet, and since when.
    pub(super) target: Option<(Target, Instant)>,
    pub(super) record: Record,
    /// It was loaded before it was asked, and still is not.
    pub(super) is_early: bool,
}

/// What runs on an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Requests.
    pub running: u64,
    /// Tokens of their prompts whose first token has not come.
    pub unacked: u64,
}

// === impl Replica ===

impl Replica {
    pub(super) fn new(engine: &EngineParams, broken_pause: Duration) -> Self {
        Self {
            engine: engine.name.clone(),
            kind: engine.kind,
            revision: engine.revision,
            costs: engine.costs,
            spec: None,
            started: None,
            is_rolling: false,
            is_leaving: false,
            life: Lifecycle::new().pausing(broken_pause),
            endpoint: None,
            devices: Vec::new(),
            order: 0,
            occupancy: Occupancy::default(),
            poller: None,
            waiting: None,
            signs: Signs::default(),
            stall: Stall::default(),
            paused_until: None,
            target: None,
            record: Record::default(),
            is_early: false,
        }
    }

    /// What the configuration says of it now.
    pub(super) fn reconfigure(&mut self, engine: &EngineParams, broken_pause: Duration) {
        self.life.pause_for(broken_pause);
        self.kind = engine.kind;
        self.revision = engine.revision;
        self.is_leaving = false;
    }

    /// Takes on what it is to start. One that serves the same goes on.
    pub(super) fn set_spec(&mut self, spec: Arc<EngineSpec>) {
        if let Some((revision, before)) = &self.spec
            && self.started == Some(*revision)
            && before.serves_like(&spec)
        {
            self.started = Some(self.revision);
        }
        self.spec = Some((self.revision, spec));
    }

    /// Another one is prepared than it is, or than failed.
    pub(super) fn is_outdated(&self) -> bool {
        let prepared = self.spec.as_ref().map(|(revision, _)| *revision);
        let state = self.life.state();
        prepared.is_some() && prepared != self.started && (state.has_engine() || state.has_failed())
    }

    pub(super) fn generation(&self) -> Generation {
        self.life.generation()
    }

    /// Where to send requests, if any may be sent.
    pub(super) fn open(&self, now: Instant) -> Option<&Arc<Endpoint>> {
        let is_paused = self.paused_until.is_some_and(|until| now < until);
        let admits = self.life.state().admits() && !is_paused;
        self.endpoint.as_ref().filter(|_| admits)
    }

    /// What to make of its work, if it is ours to end.
    pub(super) fn check_progress(&mut self, now: Instant, timeout: Duration) -> stall::Verdict {
        let signs = Signs {
            running: self.occupancy.running,
            ..self.signs
        };
        if self.endpoint.is_none() || !self.kind.dialect().is_started() {
            return stall::Verdict::Fine;
        }
        self.stall.look(now.into_std(), signs, timeout)
    }

    /// What it carries, for [`routing`](kvwarden_policy::routing).
    pub(super) fn load(&self, replica: usize, room: u64) -> Load {
        Load {
            replica,
            unacked: self.occupancy.unacked,
            running: self.occupancy.running,
            room,
        }
    }

    /// How long an operator has wanted it without getting it.
    pub(super) fn asked_for(&self, now: Instant) -> Duration {
        match self.target {
            Some((Target::Load, since)) => now.saturating_duration_since(since),
            Some((Target::Sleep(_) | Target::Pin(_), _)) | None => Duration::ZERO,
        }
    }

    pub(super) fn state(&self) -> EngineState {
        EngineState {
            engine: self.engine.clone(),
            kind: self.kind,
            state: self.life.state(),
            generation: self.generation(),
            url: self.endpoint.as_ref().map(|endpoint| endpoint.base.clone()),
            pid: self.record.pid(),
            devices: self.devices.clone(),
            is_prepared: matches!(self.spec, Some((revision, _)) if revision == self.revision),
            occupancy: self.occupancy,
            waiting: self.waiting,
            levels: self.life.levels(),
            barred: self.life.barred(),
            target: self.target.map(|(target, _)| target),
            record: self.record.clone(),
        }
    }
}
