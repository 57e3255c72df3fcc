//! When a node may change hands: nothing of it is half done, and best nobody waits.

use std::fmt;

use kvwarden_actors::model::ModelState;
use kvwarden_policy::{ModelId, lifecycle::State};

/// Why a moment is not a good one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hindrance {
    /// An engine changes. Neither side could know how that ends.
    Changes(ModelId, State),
    /// Requests wait for an engine that is not there. The predecessor could not start it any more,
    /// so they would be refused.
    Waits(ModelId),
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changes(model, state) => write!(f, "an engine of {model} is {state}"),
            Self::Waits(model) => write!(f, "requests wait for {model}"),
        }
    }
}

/// What counts of one model.
struct Model<'a> {
    id: &'a ModelId,
    waiting: usize,
    /// Where each engine stands, and whether it is known to have a process.
    engines: Vec<(State, bool)>,
}

/// The worst hindrance, if there is one.
pub(super) fn hindrance(models: &[ModelState]) -> Option<Hindrance> {
    let models = models.iter().map(|model| Model {
        id: &model.id,
        waiting: model.waiting,
        engines: model
            .engines
            .iter()
            .map(|engine| (engine.state, engine.pid.is_some()))
            .collect(),
    });
    worst(&models.collect::<Vec<_>>())
}

fn worst(models: &[Model<'_>]) -> Option<Hindrance> {
    let changes = models.iter().find_map(|model| {
        let mut engines = model.engines.iter();
        let (state, _) = engines.find(|(state, is_running)| !is_quiescent(*state, *is_running))?;
        Some(Hindrance::Changes(model.id.clone(), *state))
    });
    let waits = || {
        let mut models = models.iter();
        let waits = models.find(|model| model.waiting > 0 && !model.is_served())?;
        Some(Hindrance::Waits(waits.id.clone()))
    };
    changes.or_else(waits)
}

/// An engine that starts can be adopted as soon as its shim has written down that there is one.
fn is_quiescent(state: State, is_running: bool) -> bool {
    match state {
        State::Fetching
        | State::Cold
        | State::Waiting { .. }
        | State::Ready
        | State::Asleep { .. }
        | State::Backoff { .. }
        | State::Broken { .. } => true,
        State::Starting { .. } => is_running,
        State::Adopting
        | State::Draining { .. }
        | State::Demoting { .. }
        | State::Waking { .. }
        | State::Verifying { .. }
        | State::Stopping => false,
    }
}

impl Model<'_> {
    /// Its requests will be served without anybody's doing.
    fn is_served(&self) -> bool {
        let mut engines = self.engines.iter();
        engines.any(|(state, _)| matches!(state, State::Ready | State::Starting { .. }))
    }
}

#[cfg(test)]
mod tests {
    use kvwarden_policy::lifecycle::{Phase, SleepLevel};

    use super::*;

    const LOADS: State = State::Starting {
        phase: Phase::Loading,
    };
    const WAITS: State = State::Waiting {
        from: SleepLevel::Cold,
    };

    fn of(waiting: usize, engines: &[(State, bool)]) -> Option<Hindrance> {
        let engines = engines.to_vec();
        let id = &"m".into();
        let model = Model {
            id,
            waiting,
            engines,
        };
        worst(&[model])
    }

    #[test]
    fn node_where_all_rests_may_change_hands_however_much_waits_for_a_served_model() {
        assert_eq!(of(0, &[(State::Cold, false), (State::Ready, true)]), None);
        assert_eq!(of(9, &[(State::Ready, true)]), None);
        assert_eq!(of(9, &[(LOADS, true)]), None);
        assert_eq!(of(0, &[(WAITS, false)]), None);
    }

    #[test]
    fn engine_that_changes_comes_before_requests_that_wait() {
        let stops = Some(Hindrance::Changes("m".into(), State::Stopping));
        assert_eq!(of(9, &[(WAITS, false), (State::Stopping, true)]), stops);
        assert_eq!(of(9, &[(WAITS, false)]), Some(Hindrance::Waits("m".into())));
    }

    #[test]
    fn engine_of_which_nothing_is_written_down_yet_holds_the_handover_up() {
        let starts = Some(Hindrance::Changes("m".into(), LOADS));
        assert_eq!(of(0, &[(LOADS, false)]), starts);
    }
}
