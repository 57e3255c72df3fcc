//! The driver as NVML shows it.

use nvml_wrapper::{
    Device, Nvml, enum_wrappers::device::TemperatureSensor, enums::device::UsedGpuMemory,
    error::NvmlError,
};

use super::{DeviceProcess, DeviceReading, Driver};

/// NVML. It is opened again after a failure, so that a reloaded driver is found.
#[derive(Default)]
pub struct Nvidia(Option<Nvml>);

impl Driver for Nvidia {
    fn read(&mut self) -> Result<Vec<DeviceReading>, String> {
        let nvml = match self.0.take() {
            Some(nvml) => nvml,
            None => Nvml::init().map_err(|error| error.to_string())?,
        };
        let devices = read_all(&nvml).map_err(|error| error.to_string())?;
        self.0 = Some(nvml);
        Ok(devices)
    }
}

/// A device that fell off the bus must not hide the others.
fn read_all(nvml: &Nvml) -> Result<Vec<DeviceReading>, NvmlError> {
    let mut readings = Vec::new();
    for index in 0..nvml.device_count()? {
        let reading = nvml
            .device_by_index(index)
            .and_then(|device| read_with_slices(index, &device));
        match reading {
            Ok(found) => readings.extend(found),
            Err(error) if concerns_one_device(&error) => {
                tracing::debug!(index, %error, "a device does not answer");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(readings)
}

/// What NVML documents for the handle of a device that is broken or that a container may not open.
fn concerns_one_device(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::InsufficientPower
            | NvmlError::IrqIssue
            | NvmlError::NoPermission
            | NvmlError::Unknown
    )
}

/// The slices of a divided device, else the device.
fn read_with_slices(index: u32, device: &Device<'_>) -> Result<Vec<DeviceReading>, NvmlError> {
    let whole = read_device(index, device)?;
    // The most there could be; places without a slice answer with an error.
    let places = device.mig_device_count().unwrap_or(0);
    let slice = |place| read_device(index, &device.mig_device_by_index(place).ok()?).ok();
    let slices = (0..places).filter_map(slice).map(|slice| DeviceReading {
        slice_of: Some(whole.uuid.clone()),
        ..slice
    });
    let slices: Vec<_> = slices.collect();
    Ok(if slices.is_empty() {
        vec![whole]
    } else {
        slices
    })
}

fn read_device(index: u32, device: &Device<'_>) -> Result<DeviceReading, NvmlError> {
    let memory = device.memory_info()?;
    Ok(DeviceReading {
        index,
        uuid: device.uuid()?,
        name: device.name()?,
        total: memory.total,
        // NVML's own `used` leaves out what driver and firmware keep, some hundred MiB that nobody
        // gets.
        used: memory.total.saturating_sub(memory.free),
        // Not every device reports these (slices do not).
        utilization: device.utilization_rates().ok().map(|rates| rates.gpu),
        temperature: device.temperature(TemperatureSensor::Gpu).ok(),
        slice_of: None,
        processes: read_processes(index, device).unwrap_or_default(),
    })
}

fn read_processes(index: u32, device: &Device<'_>) -> Result<Vec<DeviceProcess>, NvmlError> {
    let processes = device.running_compute_processes()?.into_iter();
    let mut processes: Vec<_> = processes
        .map(|process| DeviceProcess {
            device: index,
            pid: process.pid,
            used: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    Ok(processes)
}
