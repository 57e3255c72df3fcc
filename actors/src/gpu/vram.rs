//! What the NVIDIA driver says about the devices, read on a thread of its own since NVML blocks
//! (up to seconds when a device is in trouble). No GPU and a lost driver are ordinary states.

use std::time::Duration;

use actix::{Message, WeakRecipient};
use nvml_wrapper::{Device, Nvml, error::NvmlError};
use serde::{Deserialize, Serialize};

/// How often devices are read.
const INTERVAL: Duration = Duration::from_secs(2);

/// One reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Message)]
#[serde(rename_all = "snake_case", tag = "state")]
#[rtype(result = "()")]
pub enum Reading {
    /// Nobody asked yet.
    NotYet,
    /// No driver or no device: engines run on the CPU.
    NoGpu {
        /// What NVML said.
        reason: String,
    },
    /// There was a GPU and NVML does not answer for it any more.
    Lost {
        /// What NVML said.
        reason: String,
    },
    /// The devices.
    Devices {
        /// In NVML's order.
        devices: Vec<DeviceReading>,
    },
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReading {
    /// NVML's index.
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
}

/// One process that computes on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceProcess {
    /// NVML's index of the device.
    pub device: u32,
    /// Its pid; in a container that of the host, which means nothing there.
    pub pid: u32,
    /// Bytes of the device's memory it holds, where the driver tells.
    pub used: Option<u64>,
}

/// Reads the devices once.
#[must_use]
pub fn read() -> Reading {
    match Nvml::init() {
        Ok(nvml) => read_with(&nvml),
        Err(error) => Reading::NoGpu {
            reason: error.to_string(),
        },
    }
}

/// The processes that compute on a device. None where the driver does not tell (a container may
/// not see those of others).
#[must_use]
pub fn processes() -> Vec<DeviceProcess> {
    let Ok(nvml) = Nvml::init() else {
        return Vec::new();
    };
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .flat_map(|index| processes_on(&nvml, index).unwrap_or_default())
        .collect()
}

fn processes_on(nvml: &Nvml, index: u32) -> Result<Vec<DeviceProcess>, NvmlError> {
    use nvml_wrapper::enums::device::UsedGpuMemory;
    let processes = nvml.device_by_index(index)?.running_compute_processes()?;
    let process = |info: nvml_wrapper::struct_wrappers::device::ProcessInfo| DeviceProcess {
        device: index,
        pid: info.pid,
        used: match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
    };
    Ok(processes.into_iter().map(process).collect())
}

/// Reads the devices every two seconds for as long as somebody listens. On a machine without a
/// driver the first reading is the last.
pub(super) fn watch(listener: WeakRecipient<Reading>) {
    let watching = std::thread::Builder::new()
        .name("nvml".to_owned())
        .spawn(move || {
            let nvml = match Nvml::init() {
                Ok(nvml) => nvml,
                Err(error) => {
                    if let Some(listener) = listener.upgrade() {
                        listener.do_send(Reading::NoGpu {
                            reason: error.to_string(),
                        });
                    }
                    return;
                }
            };
            while let Some(listener) = listener.upgrade() {
                listener.do_send(read_with(&nvml));
                drop(listener);
                std::thread::park_timeout(INTERVAL);
            }
        });
    if let Err(error) = watching {
        tracing::warn!(%error, "devices are not watched: no thread");
    }
}

fn read_with(nvml: &Nvml) -> Reading {
    let devices = nvml.device_count().and_then(|count| {
        (0..count)
            .map(|index| read_device(index, &nvml.device_by_index(index)?))
            .collect()
    });
    match devices {
        Ok(devices) => Reading::Devices { devices },
        Err(error) => Reading::Lost {
            reason: error.to_string(),
        },
    }
}

fn read_device(index: u32, device: &Device<'_>) -> Result<DeviceReading, NvmlError> {
    use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
    let memory = device.memory_info()?;
    Ok(DeviceReading {
        index,
        uuid: device.uuid()?,
        name: device.name()?,
        total: memory.total,
        used: memory.used,
        // Not every device reports these (MIG slices do not).
        utilization: device.utilization_rates().ok().map(|rates| rates.gpu),
        temperature: device.temperature(TemperatureSensor::Gpu).ok(),
    })
}
