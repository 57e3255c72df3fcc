//! What the next kvwarden has to know to use an engine that this one leaves behind.
//!
//! It lies beside the record of the engine's shim, for its owner alone: the engine's API key is in
//! it, which is as good as the engine itself and no better, since a new start has a new key.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kvwarden_policy::{DeviceId, lifecycle::SleepLevel};
use serde::{Deserialize, Serialize};

use crate::{
    engine::Endpoint,
    files::{self, Durability, Readers},
};

/// One engine, for whoever adopts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// What it was started as; see [`Launch::fingerprint`](crate::engine::Launch::fingerprint).
    pub fingerprint: String,
    /// Where it is.
    pub devices: Vec<DeviceId>,
    /// Bytes it is charged for on each of them while it serves.
    pub bytes: u64,
    /// Whether it can be used. Files call it as versions before this one did.
    #[serde(rename = "standing")]
    pub state: HandoverState,
    /// Where and how it answers.
    pub endpoint: Endpoint,
}

/// How far an engine has got, as far as that matters to whoever adopts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverState {
    /// It has not proved itself yet.
    Starting,
    /// It serves.
    Serving,
    /// It sleeps. An engine that is asked for a token in its sleep may die of it.
    Asleep {
        /// How deep.
        #[serde(rename = "rung")]
        level: SleepLevel,
        /// Bytes it goes on holding on each device.
        bytes: u64,
    },
    /// It changes or ends, and nobody knows how far it got.
    Away,
}

// === impl Handover ===

impl Handover {
    /// Where it is kept, for a shim whose record is at `record`.
    pub(super) fn path(record: &Path) -> PathBuf {
        record.with_extension("handover")
    }

    /// Bytes it holds on each of its devices.
    pub(super) fn held(&self) -> u64 {
        match self.state {
            HandoverState::Asleep { bytes, .. } => bytes,
            HandoverState::Starting | HandoverState::Serving | HandoverState::Away => self.bytes,
        }
    }

    pub(super) fn read(record: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(record)).ok()?).ok()
    }

    /// Writes it down. If that fails, the engine will only not be adopted. It need not outlive a power
    /// cut, which no engine does, and a switch of models must not wait for the disk.
    pub(super) async fn write(&self, record: &Path) {
        let path = Self::path(record);
        let content = serde_json::to_vec(self).unwrap_or_default();
        // Off the actors' thread all the same: a busy file system may take its time.
        let written = tokio::task::spawn_blocking(move || {
            files::replace(&path, &content, Readers::Owner, Durability::None)
        });
        let written = written.await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(engine = %self.endpoint.model, %error, "could not be adopted if we died");
        }
    }
}
