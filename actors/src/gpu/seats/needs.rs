//! What an engine takes, and of which devices it may take it.

use std::collections::BTreeMap;

use kvwarden_policy::{
    DeviceId,
    lifecycle::Rung,
    residency::{ByRung, Costs},
};

use crate::engine::{EngineSpec, Footprint};

/// What an engine keeps of a GPU while it sleeps, until that is measured.
const RESIDUE: u64 = 1_400 << 20;

/// What stands for the machine's memory, for engines that run on CPUs.
pub const HOST: &str = "host";

/// What an engine takes of which devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    /// Bytes on each of them.
    pub footprint: Footprint,
    /// It starts and stops without touching any memory of ours.
    pub is_elsewhere: bool,
    /// It runs on the host's processors.
    pub is_on_host: bool,
    /// GPUs it may use, by index or UUID. Empty: all.
    pub gpus: Vec<String>,
    /// Over how many of them it is spread.
    pub width: usize,
    /// What leaving and coming back cost, if it was measured before.
    pub costs: Option<Costs>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// The driver's index.
    pub(crate) index: Option<u32>,
    /// Bytes for engines.
    pub(crate) total: u64,
}

// === impl Needs ===

impl Needs {
    /// What a model wants, before anything is measured.
    #[must_use]
    pub fn of(spec: &EngineSpec) -> Self {
        let nothing = Self {
            footprint: Footprint::default(),
            is_elsewhere: true,
            is_on_host: true,
            gpus: Vec::new(),
            width: 1,
            costs: None,
        };
        match spec {
            EngineSpec::Attached(_) => nothing,
            EngineSpec::Child(launch) => Self {
                footprint: launch.footprint.unwrap_or_default(),
                is_elsewhere: false,
                is_on_host: !launch.uses_gpu(),
                gpus: launch.gpus.clone(),
                width: launch.flags.tensor_parallel as usize,
                ..nothing
            },
        }
    }

    /// Bytes that a demotion gives back at least, on the smallest device there is.
    pub(crate) fn freed(&self, from: Rung, to: Rung) -> u64 {
        let bytes = self.bytes(self.footprint.weights.saturating_add(self.footprint.kv));
        bytes[from].saturating_sub(bytes[to])
    }

    /// Bytes on a device of that size, by rung. What a sleeping engine keeps (its CUDA context,
    /// graphs and allocator) is measured at 1.3 GiB for 14B on vLLM.
    pub(crate) fn bytes(&self, size: u64) -> ByRung<u64> {
        let whole = self.footprint.on(size);
        let residue = if self.is_on_host {
            0
        } else {
            RESIDUE.min(whole)
        };
        ByRung::from_fn(|rung| match rung {
            Rung::Ready => whole,
            Rung::Parked => self.footprint.weights.saturating_add(residue).min(whole),
            Rung::L1 | Rung::L2 => residue,
            Rung::Cold => 0,
        })
    }

    pub(crate) fn allowed(&self, devices: &BTreeMap<DeviceId, Size>) -> Vec<DeviceId> {
        let is_named = |id: &DeviceId, size: &Size| {
            let index = size.index.map(|index| index.to_string());
            let names = [Some(id.as_str()), index.as_deref()];
            self.gpus.is_empty() || self.gpus.iter().any(|gpu| names.contains(&Some(gpu)))
        };
        let is_host = |id: &DeviceId| id.as_str() == HOST;
        let has_gpus = devices.keys().any(|id| !is_host(id));
        let may = |(id, size): &(&DeviceId, &Size)| {
            if self.is_on_host || !has_gpus {
                is_host(id)
            } else {
                !is_host(id) && is_named(id, size)
            }
        };
        let allowed = devices.iter().filter(may);
        allowed.map(|(id, _)| id.clone()).collect()
    }
}

// === impl Size ===

impl Size {
    pub(crate) fn of_host(total: u64) -> Self {
        Self { index: None, total }
    }
}
