//! On which devices a model can go.

use crate::{
    DeviceId,
    lifecycle::SleepLevel,
    residency::{Device, Model},
};

/// Most sets of devices that are looked at: all of four GPUs or seven slices each, and tensor
/// parallelism over slices, which nobody does, among the first of them.
const MAX_SETS: usize = 512;

/// The sets of devices it can be on, each as indices in ascending order: where it sleeps, or any
/// that it may use and that are large enough.
pub(crate) fn sets(model: &Model, devices: &[Device]) -> Vec<Vec<usize>> {
    if !model.devices.is_empty() {
        return vec![indices(&model.devices, devices)];
    }
    let large = |index: &usize| devices[*index].capacity >= model.bytes[SleepLevel::Ready];
    let usable: Vec<usize> = eligible(model, devices).filter(large).collect();
    combinations(&usable, model.width.max(1))
}

/// Where these devices are in the list.
pub(crate) fn indices(ids: &[DeviceId], devices: &[Device]) -> Vec<usize> {
    let is_one = |(index, device): (usize, &Device)| ids.contains(&device.id).then_some(index);
    devices.iter().enumerate().filter_map(is_one).collect()
}

fn eligible(model: &Model, devices: &[Device]) -> impl Iterator<Item = usize> {
    let is_allowed = |device: &Device| model.allowed.contains(&device.id);
    devices
        .iter()
        .enumerate()
        .filter_map(move |(index, device)| is_allowed(device).then_some(index))
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
