//! The words of the lifecycle: where a model stands, what can happen to it, what is to be done.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SleepLevel;
use crate::{Generation, failure::FailureClass};

/// Where a model stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// Its engine or its weights are being installed.
    #[default]
    Fetching,
    /// Nothing runs and nothing is wanted.
    Cold,
    /// It asked for a place and waits for the grant.
    Waiting {
        /// Where it waits: cold, or asleep.
        from: SleepLevel,
    },
    /// An earlier kvwarden left its engine running; one token is asked for to prove it.
    Adopting,
    /// Its engine is starting.
    Starting {
        /// How far it got.
        phase: Phase,
    },
    /// It serves.
    Ready,
    /// It lets nobody in any more, and the requests that run come to their end.
    Draining {
        /// What follows.
        to: SleepLevel,
    },
    /// Its engine is giving memory back.
    Demoting {
        /// What it will be.
        to: SleepLevel,
    },
    /// Its engine lives and can't serve.
    Asleep {
        /// How deep.
        #[serde(rename = "rung")]
        level: SleepLevel,
    },
    /// Its engine is taking memory again.
    Waking {
        /// What it was.
        from: SleepLevel,
    },
    /// Its engine woke; one token is asked for to prove it.
    Verifying {
        /// What it was.
        from: SleepLevel,
    },
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
    /// Somebody wants the model: a request, the configuration at start, an operator. Said again for
    /// as long as somebody does, since a wish that comes while it stops or demotes is not kept.
    Wanted,
    /// The GPU gave it a place.
    Granted,
    /// An earlier kvwarden left an engine of it running: its start of that generation.
    Inherited(Generation),
    /// That engine is this deep asleep. It is not asked for a token, since it may die of that.
    FoundAsleep(SleepLevel),
    /// The start got further.
    Progressed(Phase),
    /// The engine woke.
    Woken,
    /// It did not.
    WakeFailed,
    /// The engine answered its first token after a start or a wake.
    Verified,
    /// It woke and answered nothing, or something else than it should. (After a start that ends the
    /// engine, so there it is [`Event::Exited`].)
    VerifyFailed,
    /// The planner needs its memory.
    Reclaim {
        /// How deep it shall go.
        to: SleepLevel,
    },
    /// An operator wants it out of memory. Said again until it is, since an engine that starts or
    /// wakes can't sleep yet.
    Sleep {
        /// How deep it shall go; cold is to unload it.
        to: SleepLevel,
    },
    /// An operator wants it kept, or not any more: a pinned model is not reclaimed.
    Pin(bool),
    /// The last request of a draining model ended.
    Drained,
    /// The engine gave its memory back.
    Demoted,
    /// It did not, or said so and the memory was not free.
    DemoteFailed,
    /// The engine ended, and nothing of it is left.
    Exited(FailureClass),
    /// The moment of [`Lifecycle::retry_at`](super::Lifecycle::retry_at) has come.
    RetryDue,
    /// The model shall not run any more, whoever still does: kvwarden ends.
    Unwanted,
    /// The engine shall end once nobody runs on it, pinned or not: the configuration has another one
    /// in its place, or none.
    Dismissed,
}

/// What the shell has to do. What is for an engine is for that of
/// [`Lifecycle::generation`](super::Lifecycle::generation), which lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Ask the GPU for a place.
    Demand,
    /// Start an engine of this generation.
    Spawn(Generation),
    /// Take over the engine of this generation, or end it.
    Adopt(Generation),
    /// Let nobody in; say [`Event::Drained`] when nobody runs, at once if nobody does.
    Drain,
    /// Tell the engine to go to sleep this deep.
    Demote(SleepLevel),
    /// Tell the engine, which is at this sleep level, to wake.
    Wake(SleepLevel),
    /// Ask the engine for one token.
    Verify,
    /// Stop the running engine.
    Stop,
    /// Refuse what waits: it can't be served soon.
    RefuseWaiting,
}

// === impl State ===

impl State {
    /// Requests may be handed to the engine.
    #[must_use]
    pub fn admits(self) -> bool {
        self == Self::Ready
    }

    /// The sleep level it rests at. None while it changes.
    #[must_use]
    pub fn level(self) -> Option<SleepLevel> {
        match self {
            Self::Ready => Some(SleepLevel::Ready),
            Self::Asleep { level } | Self::Waiting { from: level } => Some(level),
            Self::Fetching | Self::Cold | Self::Backoff { .. } | Self::Broken { .. } => {
                Some(SleepLevel::Cold)
            }
            Self::Adopting
            | Self::Starting { .. }
            | Self::Draining { .. }
            | Self::Demoting { .. }
            | Self::Waking { .. }
            | Self::Verifying { .. }
            | Self::Stopping => None,
        }
    }

    /// It serves, or will without being asked again.
    #[must_use]
    pub fn serves_soon(self) -> bool {
        match self {
            Self::Waiting { .. }
            | Self::Adopting
            | Self::Starting { .. }
            | Self::Ready
            | Self::Waking { .. }
            | Self::Verifying { .. } => true,
            Self::Fetching
            | Self::Cold
            | Self::Draining { .. }
            | Self::Demoting { .. }
            | Self::Asleep { .. }
            | Self::Stopping
            | Self::Backoff { .. }
            | Self::Broken { .. } => false,
        }
    }

    /// Its engine failed.
    #[must_use]
    pub fn has_failed(self) -> bool {
        self.failure().is_some()
    }

    /// What its engine failed of.
    #[must_use]
    pub fn failure(self) -> Option<FailureClass> {
        if let Self::Broken { class } | Self::Backoff { class, .. } = self {
            Some(class)
        } else {
            None
        }
    }

    /// An engine exists.
    #[must_use]
    pub fn has_engine(self) -> bool {
        self.level() != Some(SleepLevel::Cold)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetching => f.write_str("fetching"),
            Self::Cold => f.write_str("cold"),
            Self::Waiting { .. } => f.write_str("waiting for a place"),
            Self::Adopting => f.write_str("being adopted"),
            Self::Starting {
                phase: Phase::Spawned,
            } => f.write_str("starting"),
            Self::Starting {
                phase: Phase::Loading,
            } => f.write_str("loading"),
            Self::Starting {
                phase: Phase::Canary,
            }
            | Self::Verifying { .. } => f.write_str("proving itself"),
            Self::Ready => f.write_str("ready"),
            Self::Draining { .. } => f.write_str("draining"),
            Self::Demoting { .. } => f.write_str("giving memory back"),
            Self::Asleep { level } => level.fmt(f),
            Self::Waking { .. } => f.write_str("waking"),
            Self::Stopping => f.write_str("stopping"),
            Self::Backoff { attempt, .. } => write!(f, "backing off after failure {attempt}"),
            Self::Broken { .. } => f.write_str("broken"),
        }
    }
}
