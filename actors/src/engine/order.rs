//! What the task of an engine is told, and what it tells.

use std::sync::Arc;

use actix::{Message, WeakRecipient};
use kvwarden_policy::{
    DeviceId, Generation, ModelId,
    failure::FailureClass,
    lifecycle::{Phase, SleepLevel},
};

use super::{Endpoint, EngineSpec, saved_kv::Kept};

/// Model -> Gpu: start this engine, or take it over if it was left running.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Spawn {
    /// Which engine.
    pub engine: ModelId,
    /// Which start this is.
    pub generation: Generation,
    /// What to start.
    pub spec: Arc<EngineSpec>,
    /// Where; empty: wherever it likes.
    pub devices: Vec<DeviceId>,
    /// Where news of it goes.
    pub news: WeakRecipient<EngineNews>,
}

/// What a live engine can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// End.
    Stop,
    /// Change.
    Change(Transition),
    /// Prove that you still work: nothing moves.
    Probe,
    /// End at once: nothing moves, and you were asked.
    GiveUp,
}

/// How a live engine can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Give memory back.
    Demote {
        /// Where it is.
        from: SleepLevel,
        /// How deep it shall go.
        to: SleepLevel,
    },
    /// Take memory again.
    Wake {
        /// Where it is.
        from: SleepLevel,
    },
    /// Answer the canary as it did when it was new.
    Verify,
}

/// Gpu -> Model: what became of an engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EngineNews {
    /// Which engine.
    pub engine: ModelId,
    /// Which start this is about.
    pub generation: Generation,
    /// What happened.
    pub what: News,
}

/// What can become of an engine.
#[derive(Debug)]
pub enum News {
    /// Its start got further.
    Progressed {
        /// How far.
        phase: Phase,
        /// The engine's process, once it exists.
        pid: Option<i32>,
    },
    /// KV of an earlier engine is in it again, or is not and why. Before it is ready.
    Restored(Kept),
    /// It answered its first token.
    Ready(Arc<Endpoint>),
    /// An earlier kvwarden left it asleep.
    FoundAsleep {
        /// How deep.
        level: SleepLevel,
        /// Where it will answer.
        endpoint: Arc<Endpoint>,
    },
    /// It gave its memory back.
    Demoted,
    /// It did not.
    DemoteFailed {
        /// Why.
        reason: String,
    },
    /// It has its memory again.
    Woken,
    /// It has not.
    WakeFailed {
        /// Why.
        reason: String,
    },
    /// It was suspected of doing nothing, and gave a token.
    Proved,
    /// It answers as it did when it was new.
    Verified,
    /// It does not.
    VerifyFailed {
        /// What is wrong.
        reason: String,
    },
    /// It was asked to end, and this of its KV will outlive it.
    Saved(Kept),
    /// It ended, and nothing of it is left.
    Exited(EngineEnd),
}

/// Engine task -> Gpu: nothing is left of this engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EngineGone {
    /// Which engine.
    pub engine: ModelId,
    /// Which start of it.
    pub generation: Generation,
}

/// How an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEnd {
    /// Why.
    pub class: FailureClass,
    /// One sentence.
    pub reason: String,
    /// The last lines of its output.
    pub log_tail: Vec<String>,
}

// === impl EngineEnd ===

impl EngineEnd {
    /// Of an engine whose output says nothing about it.
    pub(crate) fn new(class: FailureClass, reason: impl Into<String>) -> Self {
        Self {
            class,
            reason: reason.into(),
            log_tail: Vec::new(),
        }
    }
}
