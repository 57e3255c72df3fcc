//! What a model does next, given what happened to its engine: one total match.
//!
//! ```text
//!            Granted          Verified          Reclaim, Sleep       Drained
//!  Waiting ──────────▶ Starting ─────▶ Ready ───────────────▶ Draining ─────▶ Demoting
//!   ▲   │                               ▲                          │             │ Demoted
//!   │   └─▶ Waking ──▶ Verifying ───────┘                          ▼             ▼
//!   └──────── Wanted ───────── Cold ◀── Exited ──────────────── Stopping ◀──── Asleep
//! ```
//! An engine that an earlier kvwarden left running goes from Cold through Adopting to Ready, or to
//! Asleep if it slept, or it ends and is started anew.
//!
//! Every start has its [`Generation`]; the shell drops messages of older ones before they come
//! here. The machine never spawns or stops anything: it answers with an [`Effect`].
//!
//! A model goes down only when nobody runs on it, and only deeper; it serves again only after one
//! token proved that it can. A rung whose promise an engine broke is barred: the engine is stopped,
//! the next wish starts it cold, and it never goes to that rung again.

mod rung;
mod state;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::{
    Generation,
    backoff::{Backoff, Next},
    failure::FailureClass,
};

pub use rung::{Rung, Rungs};
pub use state::{Effect, Event, Phase, State};

/// The life of one model.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    state: State,
    generation: Generation,
    backoff: Backoff,
    retry_at: Option<Instant>,
    supported: Rungs,
    barred: Rungs,
    is_pinned: bool,
}

// === impl Lifecycle ===

impl Lifecycle {
    /// A model whose engine and weights are not known to be here.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Fetching,
            generation: Generation::default(),
            backoff: Backoff::default(),
            retry_at: None,
            supported: Rungs::default(),
            barred: Rungs::default(),
            is_pinned: false,
        }
    }

    /// The same, with how long it is refused once it is broken, before one more start is tried.
    #[must_use]
    pub fn pausing(self, broken: Duration) -> Self {
        Self {
            backoff: Backoff::new(broken),
            ..self
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

    /// Whether the planner must leave it where it is.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    /// Sets what its engine was found to support. Until then it only serves and stops.
    pub fn supports(&mut self, rungs: Rungs) {
        self.supported = rungs;
    }

    /// Rungs that broke their promise.
    #[must_use]
    pub fn barred(&self) -> Rungs {
        self.barred
    }

    /// Bars a rung, as was found in an earlier life of this version.
    pub fn bar(&mut self, rung: Rung) {
        self.barred = self.barred.with(rung);
    }

    /// Where it may go: supported and not barred.
    #[must_use]
    pub fn rungs(&self) -> Rungs {
        self.supported.minus(self.barred)
    }

    /// Takes in what happened. `entropy` spreads retries; any number does.
    #[expect(
        clippy::too_many_lines,
        reason = "one row per thing that can happen, in one place"
    )]
    pub fn on(&mut self, event: Event, now: Instant, entropy: u64) -> Effect {
        use Event::{
            DemoteFailed, Demoted, Drained, Exited, FetchFailed, Fetched, FoundAsleep, Granted,
            Inherited, Pin, Progressed, Reclaim, RetryDue, Sleep, Unwanted, Verified, VerifyFailed,
            WakeFailed, Wanted, Woken,
        };
        use State::{
            Adopting, Asleep, Backoff, Broken, Cold, Demoting, Draining, Fetching, Ready, Starting,
            Stopping, Verifying, Waiting, Waking,
        };
        match (self.state, event) {
            // A download that failed is tried again, and until then the model is broken.
            (Fetching | Broken { .. }, Fetched) => {
                self.retry_at = None;
                self.go(Cold, Effect::None)
            }
            (Fetching | Broken { .. }, FetchFailed(class)) => self.break_down(class),

            // Up.
            (Cold, Wanted) => self.go(Waiting { from: Rung::Cold }, Effect::Demand),
            (Asleep { rung }, Wanted) => self.go(Waiting { from: rung }, Effect::Demand),
            (Waiting { from: Rung::Cold }, Granted) => self.spawn(),
            (Waiting { from }, Granted) => self.go(Waking { from }, Effect::Wake(from)),
            (Cold | Waiting { from: Rung::Cold }, Inherited(generation))
                if generation > self.generation =>
            {
                self.generation = generation;
                self.go(Adopting, Effect::Adopt(generation))
            }
            (Adopting, FoundAsleep(rung)) => self.rest(rung),
            (Starting { .. }, Progressed(phase)) => self.go(Starting { phase }, Effect::None),
            (Waking { from }, Woken) => self.go(Verifying { from }, Effect::Verify),
            (Adopting | Starting { .. } | Verifying { .. }, Verified) => {
                self.backoff.succeed();
                self.go(Ready, Effect::None)
            }
            (Waking { from }, WakeFailed) | (Verifying { from }, VerifyFailed) => {
                self.bar(from);
                self.stop()
            }
            (Backoff { .. } | Broken { .. }, RetryDue) => {
                self.retry_at = None;
                self.go(Waiting { from: Rung::Cold }, Effect::Demand)
            }

            // Down.
            (_, Reclaim { .. }) if self.is_pinned => Effect::None,
            (Ready, Reclaim { to } | Sleep { to }) => self.go(
                Draining {
                    to: self.allowed(to),
                },
                Effect::Drain,
            ),
            (Draining { to: before }, Reclaim { to } | Sleep { to }) => {
                let to = self.allowed(to).max(before);
                self.go(Draining { to }, Effect::None)
            }
            (Draining { to }, Drained) => self.demote(to),
            (Demoting { to }, Demoted) => self.rest(to),
            (Demoting { to }, DemoteFailed) => {
                self.bar(to);
                self.stop()
            }
            (Asleep { rung }, Reclaim { to } | Sleep { to })
            | (Waiting { from: rung }, Reclaim { to }) => self.deepen(rung, to),
            (Waiting { from }, Sleep { to }) => {
                self.rest(from);
                self.deepen(from, to)
            }
            (Waiting { from: Rung::Cold } | Cold, Unwanted) => self.rest(Rung::Cold),
            (
                Adopting | Starting { .. } | Waking { .. } | Verifying { .. } | Demoting { .. },
                Unwanted | Sleep { to: Rung::Cold },
            )
            | (Waiting { .. } | Ready | Draining { .. } | Asleep { .. }, Unwanted) => self.stop(),
            (Backoff { .. }, Unwanted | Sleep { .. }) | (Broken { .. }, Unwanted) => {
                self.retry_at = None;
                self.rest(Rung::Cold)
            }

            // What was left running could not be used. It served until now, so it shall again.
            (Adopting, Exited(_)) => self.go(Waiting { from: Rung::Cold }, Effect::Demand),

            // The engine's end is a failure where it served or was about to. On its way down, and
            // down, nobody loses by it.
            (Starting { .. } | Ready, Exited(class)) => self.fail(class, now, entropy),
            (Waking { from } | Verifying { from }, Exited(class)) => {
                self.bar(from);
                self.fail(class, now, entropy)
            }
            (
                Waiting { .. } | Draining { .. } | Demoting { .. } | Asleep { .. } | Stopping,
                Exited(_),
            ) if self.state.has_engine() => self.rest(Rung::Cold),

            (_, Pin(is_pinned)) => {
                self.is_pinned = is_pinned;
                Effect::None
            }

            // Nothing is to be done: there is no engine, or it is on its way already.
            (
                Fetching
                | Cold
                | Waiting { .. }
                | Draining { .. }
                | Demoting { .. }
                | Asleep { .. }
                | Stopping
                | Backoff { .. }
                | Broken { .. },
                Exited(_),
            )
            | (
                Fetching
                | Cold
                | Adopting
                | Starting { .. }
                | Demoting { .. }
                | Waking { .. }
                | Verifying { .. }
                | Stopping
                | Backoff { .. }
                | Broken { .. },
                Reclaim { .. },
            )
            | (
                Fetching
                | Cold
                | Adopting
                | Starting { .. }
                | Demoting { .. }
                | Waking { .. }
                | Verifying { .. }
                | Stopping
                | Broken { .. },
                Sleep { .. },
            )
            | (Fetching | Stopping, Unwanted) => Effect::None,

            // News that finds the model elsewhere: repeated wishes, a grant that nobody waits for
            // any more, the progress of what was given up.
            (
                _,
                Fetched | FetchFailed(_) | Wanted | Granted | Inherited(_) | FoundAsleep(_)
                | Progressed(_) | Woken | WakeFailed | Verified | VerifyFailed | Drained | Demoted
                | DemoteFailed | RetryDue,
            ) => Effect::None,
        }
    }

    fn go(&mut self, state: State, effect: Effect) -> Effect {
        self.state = state;
        effect
    }

    fn rest(&mut self, at: Rung) -> Effect {
        let state = match at {
            Rung::Ready => State::Ready,
            Rung::Parked | Rung::L1 | Rung::L2 => State::Asleep { rung: at },
            Rung::Cold => State::Cold,
        };
        self.go(state, Effect::None)
    }

    /// The first rung from here down that it may go to.
    fn allowed(&self, to: Rung) -> Rung {
        let mut below = self.rungs().iter().filter(|rung| *rung > Rung::Ready);
        below.find(|rung| *rung >= to).unwrap_or(Rung::Cold)
    }

    fn deepen(&mut self, from: Rung, to: Rung) -> Effect {
        match self.allowed(to) {
            to if to > from => self.demote(to),
            _ => Effect::None,
        }
    }

    fn demote(&mut self, to: Rung) -> Effect {
        match to {
            Rung::Cold => self.stop(),
            Rung::Ready | Rung::Parked | Rung::L1 | Rung::L2 => {
                self.go(State::Demoting { to }, Effect::Demote(to))
            }
        }
    }

    fn stop(&mut self) -> Effect {
        self.go(State::Stopping, Effect::Stop)
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
