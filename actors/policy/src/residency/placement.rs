//! On which devices a model goes, and whether it ever can.

use std::fmt;

use serde::Serialize;

use crate::{
    DeviceId,
    lifecycle::Rung,
    residency::{Device, Model},
};

/// Most sets of devices that are looked at: all of four GPUs or seven slices each, and tensor
/// parallelism over slices, which nobody does, among the first of them.
const MAX_SETS: usize = 512;

/// Why a model can't run on these devices even alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NeverFits {
    /// It is spread over more devices than there are for it.
    Devices {
        /// Its tensor-parallel size.
        wanted: usize,
        /// How many there are.
        have: usize,
    },
    /// It needs more on each device than they have.
    Bytes {
        /// What it needs on each.
        wanted: u64,
        /// What the smallest device of the best set has.
        have: u64,
    },
}

/// Whether a model can't run even if it had the devices to itself.
#[must_use]
pub fn never_fits(model: &Model, devices: &[Device]) -> Option<NeverFits> {
    let mut capacities: Vec<u64> = eligible(model, devices)
        .map(|index| devices[index].capacity)
        .collect();
    let (wanted, have) = (model.width.max(1), capacities.len());
    if have < wanted {
        return Some(NeverFits::Devices { wanted, have });
    }
    capacities.sort_unstable_by(|a, b| b.cmp(a));
    let (wanted, have) = (model.bytes[Rung::Ready], capacities[wanted - 1]);
    (wanted > have).then_some(NeverFits::Bytes { wanted, have })
}

/// The sets of devices it can be on, each as indices in ascending order: where it sleeps, or any
/// that it may use and that are large enough.
pub(crate) fn sets(model: &Model, devices: &[Device]) -> Vec<Vec<usize>> {
    if !model.devices.is_empty() {
        return vec![indices(&model.devices, devices)];
    }
    let large = |index: &usize| devices[*index].capacity >= model.bytes[Rung::Ready];
    let usable: Vec<usize> = eligible(model, devices).filter(large).collect();
    combinations(&usable, model.width.max(1))
}

/// Where these devices are in the list.
pub(crate) fn indices(ids: &[DeviceId], devices: &[Device]) -> Vec<usize> {
    let is_one = |(index, device): (usize, &Device)| ids.contains(&device.id).then_some(index);
    devices.iter().enumerate().filter_map(is_one).collect()
}

fn eligible(model: &Model, devices: &[Device]) -> impl Iterator<Item = usize> {
    let may = |device: &Device| model.allowed.is_empty() || model.allowed.contains(&device.id);
    devices
        .iter()
        .enumerate()
        .filter_map(move |(index, device)| may(device).then_some(index))
}

/// All ways to take `width` of these, in lexical order.
fn combinations(of: &[usize], width: usize) -> Vec<Vec<usize>> {
    let mut sets = vec![Vec::new()];
    for _ in 0..width {
        let longer = |set: &Vec<usize>| {
            let after = set.last().copied();
            let next = of
                .iter()
                .filter(move |index| after.is_none_or(|last| **index > last));
            next.map(|index| [set.as_slice(), &[*index]].concat())
                .collect::<Vec<_>>()
        };
        sets = sets.iter().flat_map(longer).take(MAX_SETS).collect();
    }
    sets
}

impl fmt::Display for NeverFits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices { wanted, have } => {
                write!(f, "it is spread over {wanted} devices and there are {have}")
            }
            Self::Bytes { wanted, have } => {
                write!(
                    f,
                    "it needs {wanted} bytes on each device and they have {have}"
                )
            }
        }
    }
}
