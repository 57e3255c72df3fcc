//! What an engine takes, and of which devices it may take it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BySleepLevel, Costs};
use crate::{DeviceId, lifecycle::SleepLevel};

/// What an engine keeps of a GPU while it sleeps, until that is measured.
const RESIDUE: u64 = 1_400 << 20;

/// What stands for the machine's memory, for engines that run on CPUs.
pub const HOST: &str = "host";

/// What an engine takes of which devices. It changes only with the configuration, unlike a
/// [`Demand`](super::Demand).
#[derive(Clone, Debug, PartialEq)]
pub struct Needs {
    /// Bytes on each of them.
    pub memory: Memory,
    /// Which they may be.
    pub devices: DeviceSelector,
    /// Over how many of them it is spread.
    pub width: usize,
    /// What leaving and coming back cost, if it was measured before.
    pub costs: Option<Costs>,
}

/// Bytes on each device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Memory {
    /// As far as that is known before it runs.
    Estimated(Footprint),
    /// By sleep level, as they were seen.
    Known(BySleepLevel<u64>),
}

/// Where an engine may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSelector {
    /// It starts and stops without touching any memory of ours.
    Unmanaged,
    /// On the host's processors.
    Host,
    /// On GPUs of these indices or UUIDs; on any, if none is named.
    Gpus(Vec<String>),
}

/// What an engine takes of each of its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of the KV cache, where its size is fixed.
    pub kv: u64,
    /// It fills the device up to this share, whatever its weights leave for KV (vLLM and SGLang
    /// without a KV cache of fixed size).
    pub share: Option<f64>,
}

/// How large a device is.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSize {
    /// The driver's index.
    pub index: Option<u32>,
    /// Bytes for engines.
    pub total: u64,
}

// === impl Needs ===

impl Needs {
    /// Bytes that a demotion gives back at least, on the smallest device there is.
    #[must_use]
    pub fn freed(&self, from: SleepLevel, to: SleepLevel) -> u64 {
        let smallest = match self.memory {
            Memory::Estimated(footprint) => footprint.weights.saturating_add(footprint.kv),
            Memory::Known(_) => 0,
        };
        let bytes = self.bytes(smallest);
        bytes[from].saturating_sub(bytes[to])
    }

    /// Bytes on a device of that size, by sleep level. What a sleeping engine keeps (its CUDA context,
    /// graphs and allocator) is measured at 1.3 GiB for 14B on vLLM.
    pub(super) fn bytes(&self, size: u64) -> BySleepLevel<u64> {
        let footprint = match self.memory {
            Memory::Known(bytes) => return bytes,
            Memory::Estimated(footprint) => footprint,
        };
        let whole = footprint.on(size);
        let residue = match self.devices {
            DeviceSelector::Unmanaged | DeviceSelector::Host => 0,
            DeviceSelector::Gpus(_) => RESIDUE.min(whole),
        };
        BySleepLevel::from_fn(|level| match level {
            SleepLevel::Ready => whole,
            SleepLevel::Parked => footprint.weights.saturating_add(residue).min(whole),
            SleepLevel::L1 | SleepLevel::L2 => residue,
            SleepLevel::Cold => 0,
        })
    }

    /// Of these devices, those that it may be on. Where there is no GPU, what is for GPUs runs on the
    /// host.
    pub(super) fn allowed(&self, devices: &BTreeMap<DeviceId, DeviceSize>) -> Vec<DeviceId> {
        let is_host = |id: &DeviceId| id.as_str() == HOST;
        let has_gpus = devices.keys().any(|id| !is_host(id));
        let may = |(id, size): &(&DeviceId, &DeviceSize)| match &self.devices {
            DeviceSelector::Gpus(names) if has_gpus => !is_host(id) && is_named(names, id, size),
            DeviceSelector::Gpus(_) | DeviceSelector::Host | DeviceSelector::Unmanaged => {
                is_host(id)
            }
        };
        let allowed = devices.iter().filter(may);
        allowed.map(|(id, _)| id.clone()).collect()
    }

    /// What its comings and goings cost, until they are measured.
    pub(super) fn first_costs(&self) -> Costs {
        self.costs.unwrap_or_else(|| match self.memory {
            Memory::Estimated(footprint) => Costs::prior(footprint.weights),
            Memory::Known(bytes) => Costs::prior(bytes[SleepLevel::Ready]),
        })
    }
}

fn is_named(names: &[String], id: &DeviceId, size: &DeviceSize) -> bool {
    let index = size.index.map(|index| index.to_string());
    let own = [Some(id.as_str()), index.as_deref()];
    names.is_empty() || names.iter().any(|name| own.contains(&Some(name)))
}

// === impl Footprint ===

impl Footprint {
    /// Bytes on a device of that size.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a size is no exact number of bytes"
    )]
    pub fn on(&self, device: u64) -> u64 {
        let fixed = self.weights.saturating_add(self.kv);
        let filled = self.share.map(|share| (device as f64 * share) as u64);
        filled.map_or(fixed, |bytes| bytes.max(self.weights))
    }
}

// === impl DeviceSize ===

impl DeviceSize {
    /// The machine's memory.
    #[must_use]
    pub fn of_host(total: u64) -> Self {
        Self { index: None, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_that_fills_its_share_still_needs_room_for_its_weights() {
        let footprint = Footprint {
            weights: 60,
            kv: 0,
            share: Some(0.9),
        };
        assert_eq!((footprint.on(100), footprint.on(50)), (90, 60));
        let fixed = Footprint {
            share: None,
            kv: 5,
            ..footprint
        };
        assert_eq!(fixed.on(100), 65);
    }
}
