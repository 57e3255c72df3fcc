//! What the orchestrator and an engine's shim say to each other.
//!
//! The shim (`kvwarden shim`) is the parent of one engine process. It reads one [`ShimSpec`] as a
//! JSON line from its standard input, so that secrets in the engine's environment touch neither
//! argv nor the disk, listens on [`ShimSpec::socket`], prints one line `listening`, and from then
//! on speaks JSON lines over that socket: it sends [`ShimEvent`], it obeys [`ShimCommand`].
//! A client that connects later first gets the events that already happened.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kvwarden_policy::{Generation, failure::FailureClass};
use serde::{Deserialize, Serialize};

/// The variable that marks every process of an engine's tree, so that leftovers can be found.
pub const TREE_TOKEN: &str = "KVWARDEN_TREE";

/// Everything a shim needs to run one engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimSpec {
    /// The model's canonical name, for messages.
    pub model: String,
    /// Which start of the model this is.
    pub generation: u64,
    /// The value of [`TREE_TOKEN`] in the engine's environment; unique per spawn.
    pub token: String,
    /// The engine's executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment; nothing else is inherited.
    pub env: BTreeMap<String, String>,
    /// Where the shim listens.
    pub socket: PathBuf,
    /// The state file: what runs here and how it ended, replaced atomically and fsynced.
    pub record: PathBuf,
    /// Where the engine's output goes; rotated.
    pub log: PathBuf,
    /// How long the engine lives on after its orchestrator is gone.
    pub orphan_grace: Duration,
}

/// What a shim tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ShimEvent {
    /// The engine's process exists.
    Started {
        /// Its process id.
        pid: i32,
    },
    /// The engine could not be executed.
    Failed {
        /// What the system said.
        reason: String,
    },
    /// The engine ended and its whole tree is gone.
    Exited {
        /// Exit code, if it exited.
        code: Option<i32>,
        /// Signal, if one killed it.
        signal: Option<i32>,
        /// What kind of end this was.
        class: FailureClass,
        /// The last lines of its output.
        log_tail: Vec<String>,
    },
}

/// What a shim is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum ShimCommand {
    /// SIGTERM, then after `grace` SIGKILL to the whole tree.
    Stop {
        /// How long the engine may take to end by itself.
        grace: Duration,
    },
}

/// A start of an engine, as far as its shim is concerned.
impl ShimSpec {
    /// The generation as the actors know it.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.generation)
    }
}
