//! Does the driver answer, and is the devices' memory there for engines?

use std::collections::{BTreeMap, BTreeSet};

use kvwarden_actors::device::{DeviceProcess, DeviceReading, Reading};

use super::{Check, Needs, machine::EngineTree};
use crate::terminal;

/// Builds that run on a GPU only.
const CUDA_ENGINES: [&str; 2] = ["vllm", "sglang"];

/// What a driver and its display take by themselves.
const IDLE_BYTES: u64 = 1 << 30;

const DRIVER: &str = "gpu";
const MEMORY: &str = "gpu memory";

const INSTALL_DRIVER: &str = "install NVIDIA's driver (`nvidia-smi` must work); in a container, start it with --gpus all and the NVIDIA Container Toolkit";

/// `on_bus`: NVIDIA devices on the PCI bus, driver or not.
pub(super) fn driver(reading: &Reading, on_bus: usize, needs: &Needs) -> Check {
    let wanted = CUDA_ENGINES.iter().find(|name| needs.contains(name));
    match reading {
        Reading::Devices { devices } if !devices.is_empty() => {
            let devices: Vec<_> = devices.iter().map(describe).collect();
            Check::ok(DRIVER, devices.join(", "))
        }
        Reading::Lost { reason } => Check::problem(
            DRIVER,
            format!("the driver does not answer: {reason}"),
            "see `dmesg | grep -i xid`; reboot, or reload the nvidia modules",
        ),
        Reading::NotYet | Reading::NoGpu { .. } | Reading::Devices { .. } if on_bus > 0 => {
            let devices = terminal::count(on_bus, "NVIDIA device");
            let finding = format!(
                "{devices} on the bus, and no driver that answers{}",
                why(reading)
            );
            Check::problem(DRIVER, finding, INSTALL_DRIVER)
        }
        Reading::NotYet | Reading::NoGpu { .. } | Reading::Devices { .. } => match wanted {
            Some(engine) if needs.are_known => Check::problem(
                DRIVER,
                format!(
                    "there is no GPU, and the configuration asks for {engine}{}",
                    why(reading)
                ),
                format!("use {engine}-cpu or llamacpp in the configuration, or: {INSTALL_DRIVER}"),
            ),
            _ => Check::not_applicable(DRIVER, "no GPU: engines run on the CPU"),
        },
    }
}

fn why(reading: &Reading) -> String {
    match reading {
        Reading::NoGpu { reason } | Reading::Lost { reason } => format!(" ({reason})"),
        Reading::NotYet | Reading::Devices { .. } => String::new(),
    }
}

fn describe(device: &DeviceReading) -> String {
    format!(
        "{} {} ({})",
        device.index,
        device.name,
        terminal::bytes(device.total)
    )
}

pub(super) fn memory(
    reading: &Reading,
    processes: &[DeviceProcess],
    ours: &[EngineTree],
    names: &BTreeMap<u32, String>,
) -> Check {
    let Reading::Devices { devices } = reading else {
        return Check::not_applicable(MEMORY, "no GPU");
    };
    let ours: BTreeSet<u32> = ours
        .iter()
        .flat_map(|tree| &tree.pids)
        .map(|pid| pid.unsigned_abs())
        .collect();
    let taken: Vec<String> = devices
        .iter()
        .filter_map(|device| {
            let on_it = processes
                .iter()
                .filter(|process| process.device == device.index);
            taken_by_others(device, on_it, &ours, names)
        })
        .collect();
    if taken.is_empty() {
        return Check::ok(MEMORY, "no other program holds any");
    }
    Check::warning(
        MEMORY,
        taken.join("; "),
        "end those programs, or leave room for them: lower gpu_memory_utilization of the models",
    )
}

/// What others hold of a device, if it is worth a word.
fn taken_by_others<'a>(
    device: &DeviceReading,
    processes: impl Iterator<Item = &'a DeviceProcess>,
    ours: &BTreeSet<u32>,
    names: &BTreeMap<u32, String>,
) -> Option<String> {
    let (own, others): (Vec<&DeviceProcess>, Vec<&DeviceProcess>) =
        processes.partition(|process| ours.contains(&process.pid));
    let own: u64 = own.iter().filter_map(|process| process.used).sum();
    let foreign = device.used.saturating_sub(own);
    if foreign < IDLE_BYTES {
        return None;
    }
    let mut who: Vec<String> = others
        .iter()
        .map(|process| {
            let name = names.get(&process.pid).map_or("?", String::as_str);
            let used = process
                .used
                .map_or_else(String::new, |used| format!(", {}", terminal::bytes(used)));
            format!("pid {} ({name}{used})", process.pid)
        })
        .collect();
    if who.is_empty() {
        // A container sees the memory in use, but not the processes of the host.
        who.push("programs that cannot be seen from here".to_owned());
    }
    Some(format!(
        "{} of {} on device {} are in use by {}",
        terminal::bytes(foreign),
        terminal::bytes(device.total),
        device.index,
        who.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{known, unknown},
        *,
    };
    use crate::cli::doctor::State;

    const GIB: u64 = 1 << 30;

    fn devices(used: u64) -> Reading {
        Reading::Devices {
            devices: vec![DeviceReading {
                index: 0,
                uuid: "GPU-1".to_owned(),
                name: "H100".to_owned(),
                total: 80 * GIB,
                used,
                ..DeviceReading::default()
            }],
        }
    }

    fn no_gpu() -> Reading {
        Reading::NoGpu {
            reason: "no library".to_owned(),
        }
    }

    fn holder(pid: u32, used: Option<u64>) -> DeviceProcess {
        DeviceProcess {
            device: 0,
            pid,
            used,
        }
    }

    #[test]
    fn no_gpu_is_a_problem_only_for_who_needs_one() {
        let state = |needs| driver(&no_gpu(), 0, &needs).state;
        assert_eq!(state(unknown()), State::NotApplicable);
        assert_eq!(state(known(&["vllm-cpu"])), State::NotApplicable);
        assert_eq!(state(known(&["vllm"])), State::Problem);
    }

    #[test]
    fn device_without_a_driver_is_a_problem() {
        let check = driver(&no_gpu(), 2, &unknown());
        assert_eq!(check.state, State::Problem);
        assert!(check.finding.starts_with("2 NVIDIA devices"), "{check:?}");
    }

    #[test]
    fn device_is_named_with_its_memory() {
        let check = driver(&devices(0), 1, &known(&["vllm"]));
        assert_eq!(check, Check::ok(DRIVER, "0 H100 (80.0 GiB)"));
    }

    #[test]
    fn memory_of_our_engines_is_not_foreign() {
        let ours = [EngineTree {
            token: "t".to_owned(),
            pids: BTreeSet::from([7]),
            is_supervised: true,
        }];
        let own = [holder(7, Some(40 * GIB))];
        let state = |used| memory(&devices(used), &own, &ours, &BTreeMap::new()).state;
        assert_eq!(state(40 * GIB + GIB / 2), State::Ok);
        assert_eq!(state(60 * GIB), State::Warning);
    }

    #[test]
    fn foreign_memory_is_told_with_who_holds_it() {
        let names = BTreeMap::from([(9, "python3".to_owned())]);
        let check = memory(
            &devices(41 * GIB),
            &[holder(9, Some(40 * GIB))],
            &[],
            &names,
        );
        assert!(
            check.finding.contains("pid 9 (python3, 40.0 GiB)"),
            "{check:?}"
        );
        let unseen = memory(&devices(41 * GIB), &[], &[], &names);
        assert!(unseen.finding.contains("cannot be seen from here"));
    }
}
