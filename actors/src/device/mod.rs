//! What the driver says about the devices, read on a thread of its own since NVML blocks (up to
//! seconds when a device is in trouble). No GPU and a lost driver are ordinary states.

mod nvidia;
mod proof;
mod reader;

use actix::Message;
use kvwarden_policy::{
    DeviceId,
    residency::{DeviceMemory, MemoryReading},
};
use serde::{Deserialize, Serialize};

pub use nvidia::Nvidia;
pub use proof::{Held, Proof};
pub use reader::{INTERVAL, Reader, read, watch};

/// Whoever knows the devices: NVML, or a test.
pub trait Driver: Send {
    /// Reads every device that answers.
    ///
    /// # Errors
    /// Why the driver as a whole does not answer.
    fn read(&mut self) -> Result<Vec<DeviceReading>, String>;
}

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Message)]
#[serde(rename_all = "snake_case", tag = "state")]
#[rtype(result = "()")]
pub enum Reading {
    /// Nobody asked yet.
    #[default]
    NotYet,
    /// No driver or no device: engines run on the CPU.
    NoGpu {
        /// What the driver said.
        reason: String,
    },
    /// There was a GPU and the driver does not answer for any more.
    Lost {
        /// What the driver said.
        reason: String,
    },
    /// The devices that answer; one that fell off the bus is not among them.
    Devices {
        /// In the driver's order.
        devices: Vec<DeviceReading>,
    },
}

/// One device, or one slice of a device that is divided by MIG.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReading {
    /// The driver's index; a slice has that of its device.
    pub index: u32,
    /// Stable across reboots, unlike the index.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Bytes of memory.
    pub total: u64,
    /// Bytes in use by anybody.
    pub used: u64,
    /// Share of time a kernel ran, in percent.
    pub utilization: Option<u32>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// UUID of the device this is a slice of.
    #[serde(default)]
    pub slice_of: Option<String>,
    /// Who computes on it; none where the driver does not tell (a container may not see others).
    #[serde(default)]
    pub processes: Vec<DeviceProcess>,
}

/// One process that computes on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProcess {
    /// The driver's index of the device.
    pub device: u32,
    /// Its pid; in a container that of the host, which means nothing there.
    pub pid: u32,
    /// Bytes of the device's memory it holds, where the driver tells.
    pub used: Option<u64>,
}

impl DeviceReading {
    /// Bytes that nobody uses.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.total.saturating_sub(self.used)
    }
}

impl Reading {
    /// The devices that answer.
    #[must_use]
    pub fn devices(&self) -> &[DeviceReading] {
        match self {
            Self::Devices { devices } => devices,
            Self::NotYet | Self::NoGpu { .. } | Self::Lost { .. } => &[],
        }
    }

    /// What the planner goes by; nothing until somebody asked.
    #[must_use]
    pub fn memory(&self) -> Option<MemoryReading> {
        let memory = |gpu: &DeviceReading| DeviceMemory {
            id: gpu.uuid.as_str().into(),
            index: gpu.index,
            total: gpu.total,
            used: gpu.used,
        };
        match self {
            Self::NotYet => None,
            Self::NoGpu { .. } => Some(MemoryReading::HostOnly),
            Self::Lost { .. } => Some(MemoryReading::Lost),
            Self::Devices { devices } => {
                Some(MemoryReading::Devices(devices.iter().map(memory).collect()))
            }
        }
    }

    /// What CUDA calls those of `devices` that are here. Not every engine reads UUIDs, and a slice
    /// has no other name.
    #[must_use]
    pub fn names(&self, devices: &[DeviceId]) -> Vec<String> {
        let given = |device: &&DeviceReading| devices.iter().any(|id| id.as_str() == device.uuid);
        let name = |device: &DeviceReading| match device.slice_of {
            Some(_) => device.uuid.clone(),
            None => device.index.to_string(),
        };
        self.devices().iter().filter(given).map(name).collect()
    }

    /// The processes that compute on any of them.
    #[must_use]
    pub fn processes(&self) -> Vec<DeviceProcess> {
        let lists = self.devices().iter().map(|device| &device.processes);
        lists.flatten().copied().collect()
    }

    /// Whether another reading says the same of who has which memory.
    fn is_same_memory(&self, other: &Self) -> bool {
        let memory = |reading: &Self| -> Vec<_> {
            let devices = reading.devices().iter();
            devices
                .map(|device| (device.uuid.clone(), device.used, device.processes.clone()))
                .collect()
        };
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && memory(self) == memory(other)
    }
}

#[cfg(test)]
mod tests;
