//! What a plan is made of: all that the planner sees, and all that it may say.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BySleepLevel, Costs, Demand, Forecast};
use crate::{DeviceId, ModelId, lifecycle::SleepLevel};

/// When to swap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Who has waited this long gets a place ([`Settings::max_wait`]).
    pub max_wait: Option<Duration>,
    /// How much of its victims' value a model must outweigh while they are idle.
    pub idle_factor: f64,
    /// How much of it in rent while they serve.
    pub busy_factor: f64,
    /// Whether who is expected to be asked next is loaded before.
    pub prefetch: bool,
}

/// How long a model waits at most where nothing else is said, unless swaps take long.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// Swaps that are forced on others so many swaps' time apart leave seven eighths of it for work.
const MAX_WAIT_SWAPS: u32 = 8;

/// What the planner sees.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When to swap.
    pub settings: Settings,
    /// GPUs, MIG slices, or what stands for the host's memory.
    pub devices: Vec<Device>,
    /// All models, in any state.
    pub models: Vec<Model>,
}

/// A device with memory of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Which.
    pub id: DeviceId,
    /// Bytes that models may have: the device's, or fewer if the operator gives fewer.
    pub capacity: u64,
    /// Bytes of it that are taken, by models and others ([`Ledger::taken`](super::Ledger::taken)).
    pub taken: u64,
    /// An engine on it starts, wakes, drains, gives memory back or stops.
    pub is_changing: bool,
    /// Memory that should be free is not: nothing may start on it.
    pub is_quarantined: bool,
}

/// A model as the planner sees it: what it says itself, and what the [`Tracker`](super::Tracker)
/// knows of it.
#[derive(Clone, Debug)]
pub struct Model {
    /// Which.
    pub id: ModelId,
    /// What it says.
    pub demand: Demand,
    /// Where it rests, or comes from while it changes.
    pub level: SleepLevel,
    /// It starts, wakes, drains, gives memory back or stops, or is about to, as it was told.
    pub is_changing: bool,
    /// Where it is, each device with the same part of it. None while it is cold.
    pub devices: Vec<DeviceId>,
    /// How many devices it is spread over: its tensor-parallel size.
    pub width: usize,
    /// Where it may be, of the devices there are.
    pub allowed: Vec<DeviceId>,
    /// Bytes on each of its devices, by sleep level: weights, KV cache, and what it was seen to take on top.
    pub bytes: BySleepLevel<u64>,
    /// What leaving and coming back costs.
    pub costs: Costs,
    /// When it may be the next to be asked ([`Succession`](super::Succession)).
    pub next: Forecast,
    /// Others went down to make room for it.
    pub is_promised: bool,
}

/// What to do now, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// For models that wait, the most urgent first, and for those that nobody wants.
    pub actions: Vec<Action>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// Grant it these devices: it starts, or wakes where it sleeps.
    Start {
        /// Who.
        model: ModelId,
        /// Where.
        devices: Vec<DeviceId>,
    },
    /// Reclaim its memory: it lets nobody in, drains and goes down.
    Demote {
        /// Who.
        model: ModelId,
        /// How deep.
        to: SleepLevel,
        /// Why.
        why: Why,
    },
    /// It has to wait.
    Wait {
        /// Who.
        model: ModelId,
        /// For what.
        until: Until,
    },
}

/// Why a model has to go down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// This model is worth more now.
    Outweighed(ModelId),
    /// This model is expected to be asked first.
    Foreseen(ModelId),
    /// This model has waited long enough: the barrier of [`Settings::max_wait`].
    Overdue(ModelId),
    /// Nobody wanted it for its [`Demand::idle_ttl`].
    Idle,
    /// It sleeps where it can't wake, and could start elsewhere.
    Stuck,
}

/// What a model waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Devices that it needs are changing.
    Changed,
    /// It is not worth yet what its victims are.
    Worth,
    /// There is no room even without everything that may go.
    Room,
    /// This machine has fewer of the devices that it may be on than it is spread over.
    Device,
}

// === impl Model ===

impl Model {
    /// It waits for a place.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.demand.is_wanted()
    }
}

// === impl Why ===

impl Why {
    /// For whom it makes room.
    #[must_use]
    pub fn for_whom(&self) -> Option<&ModelId> {
        match self {
            Self::Outweighed(model) | Self::Foreseen(model) | Self::Overdue(model) => Some(model),
            Self::Idle | Self::Stuck => None,
        }
    }
}

// === impl Plan ===

impl Plan {
    /// Of its actions, those that an engine has to do something about.
    pub fn orders(&self) -> impl Iterator<Item = &Action> {
        let is_order = |action: &&Action| !matches!(action, Action::Wait { .. });
        self.actions.iter().filter(is_order)
    }
}

// === impl Settings ===

impl Settings {
    /// Who has waited this long gets a place: what was set; else two minutes, or eight times what a
    /// swap takes where that is longer, or devices would do little but load.
    #[must_use]
    pub fn max_wait(&self, swap: Duration) -> Duration {
        let enough = || MAX_WAIT.max(swap * MAX_WAIT_SWAPS);
        self.max_wait.unwrap_or_else(enough)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_wait: None,
            idle_factor: 1.5,
            busy_factor: 20.0,
            prefetch: true,
        }
    }
}
