//! Whether memory came back after an engine said that it sleeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{DeviceReading, Reader, Reading, reader::SOON};

/// What a tree of processes held on its devices at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    tree: BTreeSet<u32>,
    devices: BTreeMap<String, OnDevice>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OnDevice {
    /// By the tree, where the driver shows its processes.
    own: Option<u64>,
    /// By anybody.
    used: u64,
}

/// What became of the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It is there again.
    Returned,
    /// Some of it is not.
    Withheld {
        /// How much, over all devices.
        bytes: u64,
    },
    /// The driver can't tell.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Held {
    /// What `tree` holds on the devices with those UUIDs.
    #[must_use]
    pub fn of(reading: &Reading, devices: &[String], tree: BTreeSet<u32>) -> Self {
        let mine = reading.devices().iter();
        let mine = mine.filter(|device| devices.contains(&device.uuid));
        let held = mine.map(|device| {
            let on_device = OnDevice {
                own: own(device, &tree),
                used: device.used,
            };
            (device.uuid.clone(), on_device)
        });
        Self {
            devices: held.collect(),
            tree,
        }
    }

    /// Waits until `expected` bytes are back on each device; says how many are not after `within`.
    /// Where the driver can't tell, its silence is no evidence against the engine.
    pub async fn withheld(&self, reader: &Reader, expected: u64, within: Duration) -> u64 {
        let deadline = Instant::now() + within;
        loop {
            match self.proof(&reader.read().await, expected) {
                Proof::Returned => return 0,
                Proof::Unknown { reason } => {
                    tracing::warn!(reason, "nobody can tell whether memory came back");
                    return 0;
                }
                Proof::Withheld { bytes } if Instant::now() >= deadline => return bytes,
                Proof::Withheld { .. } => tokio::time::sleep(SOON).await,
            }
        }
    }

    /// Whether `expected` bytes are back on each device by now. A tenth may be missing: allocators
    /// round, and what the driver keeps per process is no part of anybody's account.
    #[must_use]
    pub fn proof(&self, now: &Reading, expected: u64) -> Proof {
        if let Reading::Lost { reason } = now {
            let reason = reason.clone();
            return Proof::Unknown { reason };
        }
        let mut withheld: u64 = 0;
        for (uuid, before) in &self.devices {
            let Some(device) = now.devices().iter().find(|device| device.uuid == *uuid) else {
                let reason = format!("{uuid} does not answer any more");
                return Proof::Unknown { reason };
            };
            // Without processes to look at, others' memory that comes or goes counts as ours.
            let returned = match before.own {
                Some(bytes) => bytes.saturating_sub(own(device, &self.tree).unwrap_or(0)),
                None => before.used.saturating_sub(device.used),
            };
            if returned < expected - expected / 10 {
                withheld = withheld.saturating_add(expected - returned);
            }
        }
        match withheld {
            0 => Proof::Returned,
            bytes => Proof::Withheld { bytes },
        }
    }
}

fn own(device: &DeviceReading, tree: &BTreeSet<u32>) -> Option<u64> {
    let ours = device.processes.iter().filter(|p| tree.contains(&p.pid));
    ours.filter_map(|process| process.used)
        .reduce(u64::saturating_add)
}
