//! Proofs that an engine works: the canary of a new one, and what an adopted one, one that sleeps and
//! one in which nothing moves are asked.

use std::time::Duration;

use kvwarden_policy::{lifecycle::Phase, stall};

use super::{task::EngineTask, tree::processor_times};
use crate::engine::{
    Endpoint, Launch, News,
    command::OwnServer,
    probe::{Canary, Probe},
    saved_kv::Shelf,
    sleep,
};

/// How long an engine that served may take to prove that it still does. It may be busy with what the
/// clients of an earlier kvwarden left in it.
const STILL_WORKS: Duration = Duration::from_secs(20);

/// How long an engine that gave no first token is left alone. If it dies of that, its connections
/// break a moment before its end is known, and its end says why.
const END_KNOWN_WITHIN: Duration = Duration::from_secs(3);

/// The part of a processor that a process takes which computes: a tenth. Where it hangs, none takes
/// more than a twentieth, for `/metrics` above all; among twenty busy processes of others the one
/// that computes took a third.
const COMPUTES: u32 = 10;

impl EngineTask {
    /// A new engine proves itself by a first token, and KV of an earlier one is put into it again.
    /// Returns how it answers.
    pub(super) async fn prove(
        &self,
        endpoint: &Endpoint,
        launch: &Launch,
    ) -> Result<Endpoint, String> {
        let canary = match self.first_token(endpoint, launch).await {
            Ok(canary) => canary,
            Err(reason) => {
                tokio::time::sleep(END_KNOWN_WITHIN).await;
                return Err(reason);
            }
        };
        let levels = sleep::supported(endpoint, launch.flags.levels).await;
        if let Some(shelf) = Shelf::of(launch, self.params.max_saved_kv) {
            self.tell(News::Restored(shelf.restore(endpoint).await));
        }
        Ok(Endpoint {
            levels,
            canary,
            ..endpoint.clone()
        })
    }

    async fn first_token(&self, endpoint: &Endpoint, launch: &Launch) -> Result<Canary, String> {
        let own = launch.flags.own.as_deref();
        let probe = Probe::new(endpoint);
        let path = own.and_then(|own| own.probe.as_deref());
        probe.until_healthy(path).await?;
        self.tell(News::Progressed {
            phase: Phase::Canary,
            pid: None,
        });
        let canary = probe.canary().await?;
        if canary.is_none() && own.is_some_and(OwnServer::generates) {
            let reason = "healthy, but it neither completes nor chats; `api` says what it is for";
            return Err(reason.to_owned());
        }
        Ok(canary)
    }

    /// An engine that served before proves that it still does. Of one that a predecessor uses no token
    /// is asked: it may have no slot free for it.
    pub(super) async fn still_works(
        &self,
        endpoint: &Endpoint,
        token: &str,
        launch: &Launch,
    ) -> Result<Endpoint, String> {
        if self.params.leadership.is_in_use(&self.spawn.engine) {
            let own = launch.flags.own.as_deref();
            Probe::new(endpoint).is_there(own).await?;
        } else {
            at_most_slow(endpoint, token, launch, STILL_WORKS).await?;
        }
        // Which of them it may use does not belong to its start, and may have changed.
        let levels = sleep::supported(endpoint, launch.flags.levels).await;
        Ok(Endpoint {
            levels,
            ..endpoint.clone()
        })
    }
}

/// An engine that sleeps is there, which is all that it can prove.
pub(super) async fn still_sleeps(endpoint: &Endpoint) -> Result<(), String> {
    Probe::new(endpoint).lists_models().await
}

/// An engine in which nothing moves proves that it is only slow.
pub(super) async fn only_slow(
    endpoint: &Endpoint,
    token: &str,
    launch: &Launch,
) -> Result<(), String> {
    at_most_slow(endpoint, token, launch, stall::ANSWER).await
}

/// An engine that was proved before proves that it is at most slow: by a token or, where it computes
/// on the host's processors, by the time that one of its processes takes of them. One step of a long
/// prompt lasts minutes there if the machine is busy.
async fn at_most_slow(
    endpoint: &Endpoint,
    token: &str,
    launch: &Launch,
    within: Duration,
) -> Result<(), String> {
    if launch.uses_gpu() {
        return Probe::new(endpoint).still_works(within).await;
    }
    let before = processor_times(token).await;
    let proof = Probe::new(endpoint).still_works(within).await;
    if proof.is_ok() {
        return proof;
    }
    let now = processor_times(token).await;
    let taken = now
        .iter()
        .filter_map(|(id, time)| Some(time.saturating_sub(*before.get(id)?)));
    match taken.max() {
        Some(time) if time >= within / COMPUTES => Ok(()),
        Some(_) | None => proof,
    }
}
