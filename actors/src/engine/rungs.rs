//! Between running and stopped: how deep an engine can sleep, and the exact calls for it.
//!
//! Which calls a step takes is decided by pure functions ([`demotion`], [`promotion`]); they are
//! made in order, each within a time. An engine must have nothing in flight: SGLang's scheduler
//! dies of a release while it computes, and of a resume for what was not released.
//!
//! That an engine answers 200 proves nothing: whether bytes came back is for [`crate::device`] to
//! say, and whether it still computes what it did for the canary.

use std::time::Duration;

use kvwarden_policy::lifecycle::{Rung, Rungs};
use serde_json::{Value, json};

pub use super::control::ControlError;
use super::{
    Endpoint, EngineKind,
    control::Control,
    probe::{Canary, Probe},
};

/// An order to an engine.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    path: &'static str,
    body: Value,
}

/// Why an engine is not on the rung it should be on.
#[derive(Debug, thiserror::Error)]
pub enum RungError {
    /// This engine has no such step.
    #[error("the engine has no way there")]
    NoWay,
    /// It refused or did not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// How long an engine may take to say what it can. vLLM makes its description when it is first asked for
/// it, which took more than ten seconds on a busy machine.
const PROBE: Duration = Duration::from_secs(60);

/// Rungs of `allowed` that a running engine has the calls for. Says nothing of whether they free
/// memory there.
pub async fn supported(endpoint: &Endpoint, allowed: Rungs) -> Rungs {
    if allowed == Rungs::default() {
        return allowed;
    }
    let control = Control::new(endpoint);
    let known = match endpoint.kind {
        EngineKind::Vllm | EngineKind::Sim => vllm_rungs(&control).await,
        EngineKind::Sglang => sglang_rungs(&control).await,
        EngineKind::LlamaCpp | EngineKind::Attach => Rungs::default(),
    };
    known
        .iter()
        .filter(|rung| allowed.contains(*rung))
        .collect()
}

async fn vllm_rungs(control: &Control<'_>) -> Rungs {
    let Ok(api) = control.get("/openapi.json", PROBE).await else {
        return Rungs::default();
    };
    let has = |call: &Call| {
        let path = call.path.split('?').next().unwrap_or_default();
        api["paths"].get(path).is_some()
    };
    let possible = |rung: &Rung| {
        let down = demotion(EngineKind::Vllm, Rung::Ready, *rung).unwrap_or_default();
        let up = promotion(EngineKind::Vllm, *rung);
        down.iter().chain(&up).all(has)
    };
    Rung::ASLEEP.into_iter().filter(possible).collect()
}

/// The endpoints are always there; without the memory saver they end in an error.
async fn sglang_rungs(control: &Control<'_>) -> Rungs {
    let info = control.get("/server_info", PROBE).await.unwrap_or_default();
    let on = |flag: &str| info[flag] == true;
    let none = Rungs::default();
    if !on("enable_memory_saver") {
        return none;
    }
    let parked = none.with(Rung::Parked);
    match on("enable_weights_cpu_backup") {
        true => parked.with(Rung::L1),
        false => parked,
    }
}

/// Puts an idle engine to sleep, or deeper. `within` is the time for each call.
///
/// # Errors
/// When there is no such step, or the engine does not take it; it may be anywhere in between then.
pub async fn demote(
    endpoint: &Endpoint,
    from: Rung,
    to: Rung,
    within: Duration,
) -> Result<(), RungError> {
    let calls = demotion(endpoint.kind, from, to).ok_or(RungError::NoWay)?;
    make(endpoint, &calls, within).await
}

/// Wakes a sleeping engine. `within` is the time for each call.
///
/// # Errors
/// When the engine does not wake; it may be anywhere in between then.
pub async fn promote(endpoint: &Endpoint, from: Rung, within: Duration) -> Result<(), RungError> {
    make(endpoint, &promotion(endpoint.kind, from), within).await
}

/// What a new engine answers to the prompt that is always the same.
///
/// # Errors
/// What is wrong, in a sentence.
pub async fn canary(endpoint: &Endpoint) -> Result<Canary, String> {
    Probe::new(endpoint).canary().await
}

/// Whether an engine that woke answers as it did when it was new.
///
/// # Errors
/// What is wrong, in a sentence.
pub async fn verify(endpoint: &Endpoint, stored: &Canary) -> Result<(), String> {
    let answer = canary(endpoint).await?;
    if answer != *stored {
        return Err(format!(
            "awake, but it answers {answer:?} instead of {stored:?}"
        ));
    }
    Ok(())
}

async fn make(endpoint: &Endpoint, calls: &[Call], within: Duration) -> Result<(), RungError> {
    let control = Control::new(endpoint);
    for call in calls {
        control.post(call.path, &call.body, within).await?;
    }
    Ok(())
}

/// The way down. None where there is none: what vLLM has backed up it keeps, so there is none from
/// L1 to L2, and SGLang either backs weights up always or never.
fn demotion(kind: EngineKind, from: Rung, to: Rung) -> Option<Vec<Call>> {
    use Rung::{L1, L2, Parked, Ready};
    match (kind, from, to) {
        (EngineKind::Vllm | EngineKind::Sim, Ready, Parked) => Some(vec![
            order("/pause?mode=wait"),
            order("/release_kv_cache_memory"),
        ]),
        // The default mode aborts what runs.
        (EngineKind::Vllm | EngineKind::Sim, Ready | Parked, L1) => {
            Some(vec![order("/sleep?level=1&mode=wait")])
        }
        (EngineKind::Vllm | EngineKind::Sim, Ready | Parked, L2) => {
            Some(vec![order("/sleep?level=2&mode=wait")])
        }
        (EngineKind::Sglang, Ready, Parked) => Some(vec![release(&["kv_cache"])]),
        (EngineKind::Sglang, Ready, L1) => Some(vec![release(SGLANG_ALL)]),
        (EngineKind::Sglang, Parked, L1) => Some(vec![release(&["weights", "cuda_graph"])]),
        (EngineKind::Vllm | EngineKind::Sim | EngineKind::Sglang, _, _)
        | (EngineKind::LlamaCpp | EngineKind::Attach, _, _) => None,
    }
}

/// The way up. Empty where no engine sleeps.
fn promotion(kind: EngineKind, from: Rung) -> Vec<Call> {
    match (kind, from) {
        (EngineKind::Vllm | EngineKind::Sim, Rung::Parked) => {
            vec![order("/wake_up?tags=kv_cache")]
        }
        (EngineKind::Vllm | EngineKind::Sim, Rung::L1) => vec![order("/wake_up")],
        // Loading needs room that the KV cache would take.
        (EngineKind::Vllm | EngineKind::Sim, Rung::L2) => vec![
            order("/wake_up?tags=weights"),
            Call {
                path: "/collective_rpc",
                body: json!({ "method": "reload_weights" }),
            },
            order("/wake_up?tags=kv_cache"),
        ],
        (EngineKind::Sglang, Rung::Parked) => vec![resume(&["kv_cache"])],
        (EngineKind::Sglang, Rung::L1) => vec![resume(SGLANG_ALL)],
        (EngineKind::Sglang, Rung::L2)
        | (EngineKind::LlamaCpp | EngineKind::Attach, _)
        | (_, Rung::Ready | Rung::Cold) => Vec::new(),
    }
}

const SGLANG_ALL: &[&str] = &["kv_cache", "weights", "cuda_graph"];

fn order(path: &'static str) -> Call {
    Call {
        path,
        body: json!({}),
    }
}

fn release(tags: &[&str]) -> Call {
    Call {
        path: "/release_memory_occupation",
        body: json!({ "tags": tags }),
    }
}

fn resume(tags: &[&str]) -> Call {
    Call {
        path: "/resume_memory_occupation",
        body: json!({ "tags": tags }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_way_up_from_wherever_there_is_a_way_down_to() {
        for kind in [EngineKind::Vllm, EngineKind::Sglang, EngineKind::Sim] {
            for to in Rung::ASLEEP {
                if demotion(kind, Rung::Ready, to).is_some() {
                    assert!(!promotion(kind, to).is_empty(), "{kind:?} {to:?}");
                }
            }
        }
        for to in Rung::ASLEEP {
            assert_eq!(demotion(EngineKind::LlamaCpp, Rung::Ready, to), None);
        }
    }

    #[test]
    fn demotion_only_goes_deeper() {
        for kind in [EngineKind::Vllm, EngineKind::Sglang, EngineKind::Sim] {
            for from in Rung::ASLEEP {
                for to in Rung::ASLEEP.into_iter().filter(|to| *to <= from) {
                    assert_eq!(demotion(kind, from, to), None, "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn sglang_releases_and_resumes_every_part_once() {
        let tags = |calls: Vec<Call>| {
            let all = calls.into_iter().map(|call| call.body["tags"].clone());
            let mut tags: Vec<String> = all
                .flat_map(|tags| serde_json::from_value::<Vec<String>>(tags).unwrap())
                .collect();
            tags.sort();
            tags
        };
        let parked = demotion(EngineKind::Sglang, Rung::Ready, Rung::Parked).unwrap();
        let deeper = demotion(EngineKind::Sglang, Rung::Parked, Rung::L1).unwrap();
        let released = tags([parked, deeper].concat());
        assert_eq!(released, tags(promotion(EngineKind::Sglang, Rung::L1)));
    }

    #[test]
    fn vllm_never_aborts_what_runs() {
        for to in Rung::ASLEEP {
            let calls = demotion(EngineKind::Vllm, Rung::Ready, to).unwrap();
            assert!(calls[0].path.contains("mode=wait"), "{calls:?}");
        }
    }
}
