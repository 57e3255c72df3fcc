//! What an engine does on its model's order: give memory back, take it again, prove itself.
//!
//! That it says so is no proof. Memory has to be seen free, by the driver or, of the simulated
//! engine, by what it says it holds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kvwarden_policy::lifecycle::Rung;

use super::{Endpoint, EngineKind, control::Control, rungs};
use crate::protocol::{News, Shift};
use crate::{
    device::{Held, Reader},
    gpu::seats::Needs,
    process::tree::processor_times,
};

/// How long an engine may take for one call. Moving the weights of a large model takes minutes on a
/// slow disk; one that takes longer is stopped and started, which is no slower.
const WITHIN: Duration = Duration::from_secs(300);

/// How long after an engine's answer its memory may take to be free.
const PROVEN_WITHIN: Duration = Duration::from_secs(20);

/// An engine to be changed.
pub(crate) struct Shifter {
    pub(crate) endpoint: Arc<Endpoint>,
    /// UUIDs of the devices it is on.
    pub(crate) devices: Vec<String>,
    /// Marks its processes.
    pub(crate) token: String,
    pub(crate) needs: Needs,
    pub(crate) reader: Reader,
}

// === impl Shifter ===

impl Shifter {
    /// Makes the engine do it, and says what came of it.
    pub(crate) async fn shift(self, what: Shift) -> News {
        match what {
            Shift::Demote { from, to } => match self.demote(from, to).await {
                Ok(()) => News::Demoted,
                Err(reason) => News::DemoteFailed { reason },
            },
            Shift::Wake { from } => match rungs::promote(&self.endpoint, from, WITHIN).await {
                Ok(()) => News::Woken,
                Err(error) => News::WakeFailed {
                    reason: error.to_string(),
                },
            },
            Shift::Verify => match rungs::verify(&self.endpoint, &self.endpoint.canary).await {
                Ok(()) => News::Verified,
                Err(reason) => News::VerifyFailed { reason },
            },
        }
    }

    async fn demote(&self, from: Rung, to: Rung) -> Result<(), String> {
        // Its account is an estimate. An engine that gives back less than half of it does not sleep.
        let expected = self.needs.freed(from, to) / 2;
        let simulated = self.simulated_bytes().await;
        // It may have woken since the last reading.
        let (reading, processes) = tokio::join!(self.reader.read(), self.processes());
        let held = Held::of(&reading, &self.devices, processes);
        let demoted = rungs::demote(&self.endpoint, from, to, WITHIN).await;
        demoted.map_err(|error| error.to_string())?;
        let withheld = match simulated {
            Some(before) => {
                let after = self.simulated_bytes().await.unwrap_or(before);
                expected.saturating_sub(before.saturating_sub(after))
            }
            None => held.withheld(&self.reader, expected, PROVEN_WITHIN).await,
        };
        match withheld {
            0 => Ok(()),
            bytes => Err(format!(
                "it says that it went to sleep, and {bytes} bytes that should be free are not"
            )),
        }
    }

    async fn processes(&self) -> BTreeSet<u32> {
        let processes = processor_times(&self.token).await.into_keys();
        processes
            .filter_map(|process| u32::try_from(process.pid).ok())
            .collect()
    }

    async fn simulated_bytes(&self) -> Option<u64> {
        if self.endpoint.kind != EngineKind::Sim {
            return None;
        }
        let control = Control::new(&self.endpoint);
        let memory = control.get("/kvwarden-sim/memory", PROVEN_WITHIN).await;
        memory.ok()?["total_bytes"].as_u64()
    }
}
