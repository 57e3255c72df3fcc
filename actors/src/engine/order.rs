//! What a live engine is told, and what becomes of it.

use std::sync::Arc;

use kvwarden_policy::{
    failure::FailureClass,
    lifecycle::{Phase, Rung},
};

use super::{Endpoint, saved_kv::Kept};

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
        from: Rung,
        /// How deep it shall go.
        to: Rung,
    },
    /// Take memory again.
    Wake {
        /// Where it is.
        from: Rung,
    },
    /// Answer the canary as it did when it was new.
    Verify,
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
        rung: Rung,
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
