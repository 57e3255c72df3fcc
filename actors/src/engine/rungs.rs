//! Between running and stopped: how deep an engine can sleep, and the calls for it.
//!
//! Which calls a step takes is said by the engine's [`Sleep`](super::dialect::Sleep); they are
//! made in order, each within a time. An engine must have nothing in flight: SGLang's scheduler
//! dies of a release while it computes, and of a resume for what was not released.
//!
//! That an engine answers 200 proves nothing: whether bytes came back is for [`crate::device`] to
//! say, and whether it still computes what it did for the canary.

use std::time::Duration;

use kvwarden_policy::lifecycle::{Rung, Rungs};

pub use super::control::ControlError;
use super::{
    Endpoint,
    control::Control,
    dialect::Call,
    probe::{Canary, Probe},
};

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
    let Some(sleep) = &endpoint.kind.dialect().sleep else {
        return Rungs::default();
    };
    if allowed == Rungs::default() {
        return allowed;
    }
    let control = Control::new(endpoint);
    let described = control.get(sleep.described_at, PROBE).await;
    let known = (sleep.rungs)(&described.unwrap_or_default());
    known
        .iter()
        .filter(|rung| allowed.contains(*rung))
        .collect()
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
    let sleep = endpoint.kind.dialect().sleep.as_ref();
    let calls = sleep.and_then(|sleep| (sleep.down)(from, to));
    make(endpoint, &calls.ok_or(RungError::NoWay)?, within).await
}

/// Wakes a sleeping engine. `within` is the time for each call.
///
/// # Errors
/// When the engine does not wake; it may be anywhere in between then.
pub async fn promote(endpoint: &Endpoint, from: Rung, within: Duration) -> Result<(), RungError> {
    let sleep = endpoint.kind.dialect().sleep.as_ref();
    let calls = sleep.map_or_else(Vec::new, |sleep| (sleep.up)(from));
    make(endpoint, &calls, within).await
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

#[cfg(test)]
mod tests {
    use super::super::{EngineKind, dialect::Sleep};
    use super::*;

    fn all() -> impl Iterator<Item = (EngineKind, &'static Sleep)> {
        let kinds = EngineKind::ALL.into_iter();
        kinds.filter_map(|kind| Some((kind, kind.dialect().sleep.as_ref()?)))
    }

    #[test]
    fn there_is_a_way_up_from_wherever_there_is_a_way_down_to() {
        for (kind, sleep) in all() {
            for to in Rung::ASLEEP {
                if (sleep.down)(Rung::Ready, to).is_some() {
                    assert!(!(sleep.up)(to).is_empty(), "{kind:?} {to:?}");
                }
            }
        }
        assert!(all().any(|(kind, _)| kind == EngineKind::Sglang));
        assert!(!all().any(|(kind, _)| kind == EngineKind::LlamaCpp));
    }

    #[test]
    fn demotion_only_goes_deeper() {
        for (kind, sleep) in all() {
            for from in Rung::ASLEEP {
                for to in Rung::ASLEEP.into_iter().filter(|to| *to <= from) {
                    assert_eq!((sleep.down)(from, to), None, "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn engine_sleeps_exactly_if_its_models_may_say_how_deep() {
        for kind in EngineKind::ALL {
            let dialect = kind.dialect();
            assert_eq!(dialect.takes("sleep"), dialect.sleep.is_some(), "{kind:?}");
        }
    }
}
