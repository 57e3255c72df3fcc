//! Who holds how much of which device.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Device;
use crate::{DeviceId, ModelId};

/// Memory by device and model. A model is charged when it is granted a place and until nothing of it
/// is left there; an engine's promise to free memory is not enough.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ledger {
    accounts: BTreeMap<DeviceId, Account>,
}

#[derive(Clone, Debug, Serialize)]
struct Account {
    capacity: u64,
    charges: BTreeMap<ModelId, u64>,
    foreign: u64,
    measured: Option<u64>,
    is_quarantined: bool,
}

// === impl Ledger ===

impl Ledger {
    /// Empty devices, each with the bytes that models may have.
    #[must_use]
    pub fn new(devices: impl IntoIterator<Item = (DeviceId, u64)>) -> Self {
        let account = |capacity| Account {
            capacity,
            charges: BTreeMap::new(),
            foreign: 0,
            measured: None,
            is_quarantined: false,
        };
        Self {
            accounts: devices
                .into_iter()
                .map(|(id, capacity)| (id, account(capacity)))
                .collect(),
        }
    }

    /// From now on the model holds this much of each of these devices, and nothing of others. Of a
    /// change the larger side counts: charge before memory is taken, and after it is free.
    pub fn charge(&mut self, model: &ModelId, devices: &[DeviceId], bytes: u64) {
        for (id, account) in &mut self.accounts {
            if devices.contains(id) {
                account.charges.insert(model.clone(), bytes);
            } else {
                account.charges.remove(model);
            }
        }
    }

    /// The model holds nothing any more.
    pub fn release(&mut self, model: &ModelId) {
        self.charge(model, &[], 0);
    }

    /// What the model is charged for on a device.
    #[must_use]
    pub fn charged(&self, model: &ModelId, device: &DeviceId) -> u64 {
        let account = self.accounts.get(device);
        account
            .and_then(|account| account.charges.get(model))
            .map_or(0, |bytes| *bytes)
    }

    /// Takes in what the driver says: bytes in use by anybody (none where it does not answer), and
    /// those that are not ours (none while that can't be told).
    pub fn measure(&mut self, device: &DeviceId, used: Option<u64>, foreign: Option<u64>) {
        if let Some(account) = self.accounts.get_mut(device) {
            account.measured = used;
            account.foreign = foreign.unwrap_or(account.foreign);
        }
    }

    /// Memory that should be free is not, or is again.
    pub fn quarantine(&mut self, device: &DeviceId, is_quarantined: bool) {
        if let Some(account) = self.accounts.get_mut(device) {
            account.is_quarantined = is_quarantined;
        }
    }

    /// Bytes that nobody may be given: the larger of what is charged and what is measured.
    #[must_use]
    pub fn taken(&self, device: &DeviceId) -> u64 {
        self.accounts.get(device).map_or(0, Account::taken)
    }

    /// The devices for a [`Snapshot`](super::Snapshot).
    pub fn devices(&self, is_changing: impl Fn(&DeviceId) -> bool) -> Vec<Device> {
        let device = |(id, account): (&DeviceId, &Account)| Device {
            id: id.clone(),
            capacity: account.capacity,
            taken: account.taken(),
            is_changing: is_changing(id),
            is_quarantined: account.is_quarantined,
        };
        self.accounts.iter().map(device).collect()
    }
}

// === impl Account ===

impl Account {
    fn taken(&self) -> u64 {
        let charged = self.charges.values().sum::<u64>() + self.foreign;
        charged.max(self.measured.unwrap_or(0))
    }
}
