//! What a model does next, given what happened to its engine: one total match.
//!
//! Every start has its [`Generation`]; the shell drops messages of older ones before they come
//! here. The machine never spawns or stops anything: it answers with an [`Effect`].

use std::{fmt, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{
    Generation,
    backoff::{Backoff, Next},
    failure::FailureClass,
};

/// Where a model stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// Its engine or its weights are being installed.
    Fetching,
    /// Nothing runs and nothing is wanted.
    Cold,
    /// It asked for a place and waits for the grant.
    Waiting,
    /// Its engine is starting.
    Starting {
        /// How far it got.
        phase: Phase,
    },
    /// It serves.
    Ready,
    /// Its engine is being stopped.
    Stopping,
    /// Its engine failed and will be started again.
    Backoff {
        /// Which failure in the window this was.
        attempt: usize,
        /// Why the engine ended.
        class: FailureClass,
    },
    /// Its engine failed too often, or in a way that trying again can't mend.
    Broken {
        /// Why the engine ended.
        class: FailureClass,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetching => f.write_str("fetching"),
            Self::Cold => f.write_str("cold"),
            Self::Waiting => f.write_str("waiting for a place"),
            Self::Starting {
                phase: Phase::Spawned,
            } => f.write_str("starting"),
            Self::Starting {
                phase: Phase::Loading,
            } => f.write_str("loading"),
            Self::Starting {
                phase: Phase::Canary,
            } => f.write_str("proving itself"),
            Self::Ready => f.write_str("ready"),
            Self::Stopping => f.write_str("stopping"),
            Self::Backoff { attempt, .. } => write!(f, "backing off after failure {attempt}"),
            Self::Broken { .. } => f.write_str("broken"),
        }
    }
}

/// How far a start got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The shim was asked to run it.
    Spawned,
    /// The process exists and loads.
    Loading,
    /// It says it is healthy; one token is asked for to prove it.
    Canary,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Engine and weights are on this machine.
    Fetched,
    /// They could not be had.
    FetchFailed(FailureClass),
    /// Somebody wants the model: a request, or the configuration at start.
    Wanted,
    /// The GPU gave it a place.
    Granted,
    /// The start got further.
    Progressed(Phase),
    /// The engine answered its first token.
    Verified,
    /// The engine ended.
    Exited(FailureClass),
    /// The moment of [`Lifecycle::retry_at`] has come.
    RetryDue,
    /// The model shall not run any more (shutdown, unload).
    Unwanted,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Ask the GPU for a place.
    Demand,
    /// Start an engine of this generation.
    Spawn(Generation),
    /// Stop the running engine.
    Stop,
    /// Refuse what waits: it can't be served soon.
    RefuseWaiting,
}

/// The life of one model.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    state: State,
    generation: Generation,
    backoff: Backoff,
    retry_at: Option<Instant>,
}

impl Lifecycle {
    /// A model whose engine and weights are not known to be here.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Fetching,
            generation: Generation::default(),
            backoff: Backoff::default(),
            retry_at: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The newest start.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// When the next start is due, if one is.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Takes in what happened. `entropy` spreads retries; any number does.
    pub fn on(&mut self, event: Event, now: Instant, entropy: u64) -> Effect {
        use State::{Backoff, Broken, Cold, Fetching, Ready, Starting, Stopping, Waiting};
        match (self.state, event) {
            (Fetching, Event::Fetched) => self.go(Cold, Effect::None),
            (Fetching, Event::FetchFailed(class)) => self.break_down(class),
            (Cold | Fetching, Event::Unwanted) => Effect::None,

            (Cold, Event::Wanted) => self.go(Waiting, Effect::Demand),
            (Waiting, Event::Granted) => self.spawn(),
            (Waiting, Event::Unwanted) => self.go(Cold, Effect::None),

            (Starting { .. }, Event::Progressed(phase)) => {
                self.go(Starting { phase }, Effect::None)
            }
            (Starting { .. }, Event::Verified) => self.go(Ready, Effect::None),
            (Starting { .. } | Ready, Event::Unwanted) => self.go(Stopping, Effect::Stop),
            (Starting { .. } | Ready, Event::Exited(class)) => self.fail(class, now, entropy),

            (Stopping, Event::Exited(_)) => self.go(Cold, Effect::None),

            (Backoff { .. } | Broken { .. }, Event::RetryDue) => {
                self.retry_at = None;
                self.go(Waiting, Effect::Demand)
            }
            (Backoff { .. } | Broken { .. }, Event::Unwanted) => {
                self.retry_at = None;
                self.go(Cold, Effect::None)
            }

            // What follows changes nothing: repeated wishes, a grant that nobody waits for any
            // more, news of a start that was given up.
            (_, Event::Wanted)
            | (
                Cold
                | Starting { .. }
                | Ready
                | Stopping
                | Backoff { .. }
                | Broken { .. }
                | Fetching,
                Event::Granted,
            )
            | (
                Cold | Waiting | Ready | Stopping | Backoff { .. } | Broken { .. } | Fetching,
                Event::Progressed(_),
            )
            | (
                Cold | Waiting | Ready | Stopping | Backoff { .. } | Broken { .. } | Fetching,
                Event::Verified,
            )
            | (Cold | Waiting | Backoff { .. } | Broken { .. } | Fetching, Event::Exited(_))
            | (Cold | Waiting | Starting { .. } | Ready | Stopping | Fetching, Event::RetryDue)
            | (
                Cold
                | Waiting
                | Starting { .. }
                | Ready
                | Stopping
                | Backoff { .. }
                | Broken { .. },
                Event::Fetched | Event::FetchFailed(_),
            )
            | (Stopping, Event::Unwanted) => Effect::None,
        }
    }

    fn go(&mut self, state: State, effect: Effect) -> Effect {
        self.state = state;
        effect
    }

    fn spawn(&mut self) -> Effect {
        self.generation = self.generation.next();
        self.go(
            State::Starting {
                phase: Phase::Spawned,
            },
            Effect::Spawn(self.generation),
        )
    }

    fn fail(&mut self, class: FailureClass, now: Instant, entropy: u64) -> Effect {
        if class.is_permanent() {
            return self.break_down(class);
        }
        match self.backoff.fail(now, entropy) {
            Next::Retry { attempt, after } => {
                self.retry_at = Some(now + after);
                self.go(State::Backoff { attempt, class }, Effect::None)
            }
            Next::Open { after } => {
                self.retry_at = Some(now + after);
                self.break_down(class)
            }
        }
    }

    fn break_down(&mut self, class: FailureClass) -> Effect {
        self.go(State::Broken { class }, Effect::RefuseWaiting)
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backoff::MAX_FAILURES;

    fn epoch() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    fn after(events: &[Event]) -> (Lifecycle, Effect) {
        let (mut life, mut last) = (Lifecycle::new(), Effect::None);
        for event in events {
            last = life.on(*event, epoch(), 0);
        }
        (life, last)
    }

    const TO_READY: [Event; 4] = [
        Event::Fetched,
        Event::Wanted,
        Event::Granted,
        Event::Verified,
    ];

    #[test]
    fn a_wanted_model_asks_for_a_place_and_then_starts_once() {
        let (life, effect) = after(&[Event::Fetched, Event::Wanted]);
        assert_eq!((life.state(), effect), (State::Waiting, Effect::Demand));
        let (mut life, effect) = after(&[Event::Fetched, Event::Wanted, Event::Granted]);
        assert_eq!(effect, Effect::Spawn(Generation(1)));
        assert_eq!(life.on(Event::Wanted, epoch(), 0), Effect::None);
        assert_eq!(life.on(Event::Granted, epoch(), 0), Effect::None);
    }

    #[test]
    fn a_crash_backs_off_and_the_next_start_has_a_new_generation() {
        let (mut life, _) = after(&TO_READY);
        life.on(Event::Exited(FailureClass::Crashed), epoch(), 0);
        assert!(matches!(life.state(), State::Backoff { attempt: 1, .. }));
        assert!(life.retry_at().is_some());
        assert_eq!(life.on(Event::RetryDue, epoch(), 0), Effect::Demand);
        assert_eq!(
            life.on(Event::Granted, epoch(), 0),
            Effect::Spawn(Generation(2))
        );
    }

    #[test]
    fn a_failure_that_trying_again_cannot_mend_breaks_at_once() {
        let (mut life, _) = after(&TO_READY);
        let effect = life.on(Event::Exited(FailureClass::BadModel), epoch(), 0);
        assert_eq!(effect, Effect::RefuseWaiting);
        assert_eq!(
            (life.state(), life.retry_at()),
            (
                State::Broken {
                    class: FailureClass::BadModel
                },
                None
            )
        );
    }

    #[test]
    fn crash_loop_breaks_and_gets_one_more_try_after_the_cool_down() {
        let (mut life, _) = after(&[Event::Fetched, Event::Wanted]);
        for _ in 0..MAX_FAILURES {
            life.on(Event::Granted, epoch(), 0);
            life.on(Event::Exited(FailureClass::Crashed), epoch(), 0);
            if matches!(life.state(), State::Backoff { .. }) {
                life.on(Event::RetryDue, epoch(), 0);
            }
        }
        assert_eq!(
            life.state(),
            State::Broken {
                class: FailureClass::Crashed
            }
        );
        assert!(life.retry_at().is_some());
        assert_eq!(life.on(Event::RetryDue, epoch(), 0), Effect::Demand);
    }

    fn event() -> impl Strategy<Value = Event> {
        let class = prop_oneof![Just(FailureClass::Crashed), Just(FailureClass::BadFlag)];
        prop_oneof![
            Just(Event::Fetched),
            Just(Event::Wanted),
            Just(Event::Granted),
            Just(Event::Progressed(Phase::Loading)),
            Just(Event::Verified),
            class.prop_map(Event::Exited),
            Just(Event::RetryDue),
            Just(Event::Unwanted),
        ]
    }

    proptest! {
        #[test]
        fn at_most_one_engine_lives_whatever_happens(events in prop::collection::vec(event(), 0..200)) {
            let (mut life, mut alive) = (Lifecycle::new(), false);
            for event in events {
                // The shell reports the end of an engine only if there is one.
                let is_end = matches!(event, Event::Exited(_));
                if is_end && !alive {
                    continue;
                }
                alive &= !is_end;
                if let Effect::Spawn(_) = life.on(event, epoch(), 0) {
                    prop_assert!(!alive, "a second engine of the same model");
                    alive = true;
                }
            }
        }
    }
}
