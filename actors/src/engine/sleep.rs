//! Between running and stopped: how deep an engine can sleep, and the calls for it.
//!
//! Which calls a step takes is said by the engine's [`Sleep`](super::dialect::Sleep); they are
//! made in order, each within a time. An engine must have nothing in flight: SGLang's scheduler
//! dies of a release while it computes, and of a resume for what was not released.
//!
//! That an engine answers 200 proves nothing: whether bytes came back is for [`crate::device`] to
//! say, and whether it still computes what it did for the canary.

use std::time::Duration;

use kvwarden_policy::lifecycle::{SleepLevel, SleepLevels};

pub use super::control::ControlError;
use super::{
    Endpoint,
    control::Control,
    dialect::Call,
    probe::{Canary, Probe},
};

/// Why an engine is not on the sleep level it should be on.
#[derive(Debug, thiserror::Error)]
pub enum SleepLevelError {
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

/// Sleep levels of `allowed` that a running engine has the calls for. Says nothing of whether they free
/// memory there.
pub async fn supported(endpoint: &Endpoint, allowed: SleepLevels) -> SleepLevels {
    let Some(sleep) = &endpoint.kind.dialect().sleep else {
        return SleepLevels::default();
    };
    if allowed == SleepLevels::default() {
        return allowed;
    }
    let control = Control::new(endpoint);
    let described = control.get(sleep.described_at, PROBE).await;
    let known = (sleep.levels)(&described.unwrap_or_default());
    known
        .iter()
        .filter(|level| allowed.contains(*level))
        .collect()
}

/// Puts an idle engine to sleep, or deeper. `within` is the time for each call.
///
/// # Errors
/// When there is no such step, or the engine does not take it; it may be anywhere in between then.
pub async fn demote(
    endpoint: &Endpoint,
    from: SleepLevel,
    to: SleepLevel,
    within: Duration,
) -> Result<(), SleepLevelError> {
    let sleep = endpoint.kind.dialect().sleep.as_ref();
    let calls = sleep.and_then(|sleep| (sleep.down)(from, to));
    make(endpoint, &calls.ok_or(SleepLevelError::NoWay)?, within).await
}

/// Wakes a sleeping engine. `within` is the time for each call.
///
/// # Errors
/// When the engine does not wake; it may be anywhere in between then.
pub async fn promote(
    endpoint: &Endpoint,
    from: SleepLevel,
    within: Duration,
) -> Result<(), SleepLevelError> {
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

async fn make(
    endpoint: &Endpoint,
    calls: &[Call],
    within: Duration,
) -> Result<(), SleepLevelError> {
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
            for to in SleepLevel::ASLEEP {
                if (sleep.down)(SleepLevel::Ready, to).is_some() {
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
            for from in SleepLevel::ASLEEP {
                for to in SleepLevel::ASLEEP.into_iter().filter(|to| *to <= from) {
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
