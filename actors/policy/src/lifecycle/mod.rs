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
//! token proved that it can. A sleep level whose promise an engine broke is barred: the engine is
//! stopped, whoever wants it next starts it cold, and it never goes to that sleep level again.

mod sleep_level;
mod state;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::{
    Generation,
    backoff::{Backoff, Next},
    failure::FailureClass,
};

pub use sleep_level::{SleepLevel, SleepLevels};
pub use state::{Effect, Event, Phase, State};

/// The life of one model.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    state: State,
    generation: Generation,
    backoff: Backoff,
    retry_at: Option<Instant>,
    supported: SleepLevels,
    barred: SleepLevels,
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
            supported: SleepLevels::default(),
            barred: SleepLevels::default(),
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

    /// From now on it is refused for so long once it is broken.
    pub fn pause_for(&mut self, broken: Duration) {
        self.backoff.cool_for(broken);
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
    pub fn supports(&mut self, levels: SleepLevels) {
        self.supported = levels;
    }

    /// Sleep levels that broke their promise.
    #[must_use]
    pub fn barred(&self) -> SleepLevels {
        self.barred
    }

    /// Bars a sleep level, as was found in an earlier life of this version.
    pub fn bar(&mut self, level: SleepLevel) {
        self.barred = self.barred.with(level);
    }

    /// Where it may go: supported and not barred.
    #[must_use]
    pub fn levels(&self) -> SleepLevels {
        self.supported.minus(self.barred)
    }

    /// Takes in what happened. `entropy` spreads retries; any number does.
    #[expect(
        clippy::too_many_lines,
        reason = "one row per thing that can happen, in one place"
    )]
    pub fn on(&mut self, event: Event, now: Instant, entropy: u64) -> Effect {
        use Event::{
            DemoteFailed, Demoted, Dismissed, Drained, Exited, FetchFailed, Fetched, FoundAsleep,
            Granted, Inherited, Pin, Progressed, Reclaim, RetryDue, Sleep, Unwanted, Verified,
            VerifyFailed, WakeFailed, Wanted, Woken,
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
            (Cold, Wanted) => self.go(
                Waiting {
                    from: SleepLevel::Cold,
                },
                Effect::Demand,
            ),
            (Asleep { level }, Wanted) => self.go(Waiting { from: level }, Effect::Demand),
            (
                Waiting {
                    from: SleepLevel::Cold,
                },
                Granted,
            ) => self.spawn(),
            (Waiting { from }, Granted) => self.go(Waking { from }, Effect::Wake(from)),
            (
                Cold
                | Waiting {
                    from: SleepLevel::Cold,
                },
                Inherited(generation),
            ) if generation > self.generation => {
                self.generation = generation;
                self.go(Adopting, Effect::Adopt(generation))
            }
            (Adopting, FoundAsleep(level)) => self.rest(level),
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
                self.go(
                    Waiting {
                        from: SleepLevel::Cold,
                    },
                    Effect::Demand,
                )
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
            (Asleep { level }, Reclaim { to } | Sleep { to })
            | (Waiting { from: level }, Reclaim { to }) => self.deepen(level, to),
            (Waiting { from }, Sleep { to }) => {
                self.rest(from);
                self.deepen(from, to)
            }
            (
                Waiting {
                    from: SleepLevel::Cold,
                }
                | Cold,
                Unwanted,
            ) => self.rest(SleepLevel::Cold),
            (
                Adopting | Starting { .. } | Waking { .. } | Verifying { .. } | Demoting { .. },
                Unwanted
                | Sleep {
                    to: SleepLevel::Cold,
                },
            )
            | (Waiting { .. } | Ready | Draining { .. } | Asleep { .. }, Unwanted) => self.stop(),
            (Backoff { .. }, Unwanted | Sleep { .. }) | (Broken { .. }, Unwanted) => {
                self.retry_at = None;
                self.rest(SleepLevel::Cold)
            }

            (_, Dismissed) => self.dismiss(),

            // What was left running could not be used. It served until now, so it shall again.
            (Adopting, Exited(_)) => self.go(
                Waiting {
                    from: SleepLevel::Cold,
                },
                Effect::Demand,
            ),

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
            ) if self.state.has_engine() => self.rest(SleepLevel::Cold),

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

    fn rest(&mut self, at: SleepLevel) -> Effect {
        let state = match at {
            SleepLevel::Ready => State::Ready,
            SleepLevel::Parked | SleepLevel::L1 | SleepLevel::L2 => State::Asleep { level: at },
            SleepLevel::Cold => State::Cold,
        };
        self.go(state, Effect::None)
    }

    /// The first sleep level from here down that it may go to.
    fn allowed(&self, to: SleepLevel) -> SleepLevel {
        let mut below = self
            .levels()
            .iter()
            .filter(|level| *level > SleepLevel::Ready);
        below.find(|level| *level >= to).unwrap_or(SleepLevel::Cold)
    }

    fn deepen(&mut self, from: SleepLevel, to: SleepLevel) -> Effect {
        match self.allowed(to) {
            to if to > from => self.demote(to),
            _ => Effect::None,
        }
    }

    fn demote(&mut self, to: SleepLevel) -> Effect {
        match to {
            SleepLevel::Cold => self.stop(),
            SleepLevel::Ready | SleepLevel::Parked | SleepLevel::L1 | SleepLevel::L2 => {
                self.go(State::Demoting { to }, Effect::Demote(to))
            }
        }
    }

    /// What comes next is another engine, which has broken no promise yet.
    fn dismiss(&mut self) -> Effect {
        use State::{
            Adopting, Asleep, Broken, Cold, Demoting, Draining, Fetching, Ready, Starting,
            Stopping, Verifying, Waiting, Waking,
        };
        self.backoff.reset();
        self.retry_at = None;
        self.barred = SleepLevels::default();
        let to = SleepLevel::Cold;
        match self.state {
            Fetching
            | Cold
            | Waiting {
                from: SleepLevel::Cold,
            }
            | Stopping => Effect::None,
            State::Backoff { .. } | Broken { .. } => self.rest(to),
            Ready => self.go(Draining { to }, Effect::Drain),
            Draining { .. } => self.go(Draining { to }, Effect::None),
            Waiting { .. }
            | Adopting
            | Starting { .. }
            | Demoting { .. }
            | Asleep { .. }
            | Waking { .. }
            | Verifying { .. } => self.stop(),
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
