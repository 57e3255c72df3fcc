//! What an engine does on its model's order: give memory back, take it again, prove itself.
//!
//! That it says so is no proof. Memory has to be seen free, by the driver or, of the simulated
//! engine, by what it says it holds.

use std::{collections::BTreeSet, time::Duration};

use kvwarden_policy::lifecycle::SleepLevel;

use super::{task::EngineTask, tree::processor_times};
use crate::{
    device::Held,
    engine::{Endpoint, News, Transition, control::Control, sleep},
};

/// How long an engine may take for one call. Moving the weights of a large model takes minutes on a
/// slow disk; one that takes longer is stopped and started, which is no slower.
const WITHIN: Duration = Duration::from_secs(300);

/// How long after an engine's answer its memory may take to be free.
const PROVEN_WITHIN: Duration = Duration::from_secs(20);

impl EngineTask {
    /// Makes the engine change, once no predecessor uses it, and says what came of it. `token` marks
    /// the engine's processes.
    pub(super) async fn change(&self, what: Transition, endpoint: &Endpoint, token: &str) -> News {
        let leadership = &self.params.leadership;
        leadership.until_unused(&self.spawn.engine).await;
        match what {
            Transition::Demote { from, to } => match self.demote(from, to, endpoint, token).await {
                Ok(()) => News::Demoted,
                Err(reason) => News::DemoteFailed { reason },
            },
            Transition::Wake { from } => match sleep::promote(endpoint, from, WITHIN).await {
                Ok(()) => News::Woken,
                Err(error) => News::WakeFailed {
                    reason: error.to_string(),
                },
            },
            Transition::Verify => match sleep::verify(endpoint, &endpoint.canary).await {
                Ok(()) => News::Verified,
                Err(reason) => News::VerifyFailed { reason },
            },
        }
    }

    async fn demote(
        &self,
        from: SleepLevel,
        to: SleepLevel,
        endpoint: &Endpoint,
        token: &str,
    ) -> Result<(), String> {
        // Its account is an estimate. An engine that gives back less than half of it does not sleep.
        let expected = self.spawn.spec.needs().freed(from, to) / 2;
        let simulated = simulated_bytes(endpoint).await;
        // It may have woken since the last reading.
        let (reading, processes) = tokio::join!(self.reader.read(), processes(token));
        let devices: Vec<String> = self.spawn.devices.iter().map(ToString::to_string).collect();
        let held = Held::of(&reading, &devices, processes);
        let demoted = sleep::demote(endpoint, from, to, WITHIN).await;
        demoted.map_err(|error| error.to_string())?;
        let withheld = match simulated {
            Some(before) => {
                let after = simulated_bytes(endpoint).await.unwrap_or(before);
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
}

async fn processes(token: &str) -> BTreeSet<u32> {
    let processes = processor_times(token).await.into_keys();
    processes
        .filter_map(|process| u32::try_from(process.pid).ok())
        .collect()
}

/// Memory that a simulated engine says it holds; none of a real one.
async fn simulated_bytes(endpoint: &Endpoint) -> Option<u64> {
    if !endpoint.kind.dialect().is_simulated() {
        return None;
    }
    let control = Control::new(endpoint);
    let memory = control.get("/kvwarden-sim/memory", PROVEN_WITHIN).await;
    memory.ok()?["total_bytes"].as_u64()
}
