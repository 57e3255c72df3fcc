//! What the orchestrator and an engine's shim say to each other.
//!
//! The shim (`kvwarden shim`) is the parent of one engine process. It reads one [`ShimSpec`] as a
//! JSON line from its standard input, so that secrets in the engine's environment touch neither
//! argv nor the disk, listens on [`ShimSpec::socket`], prints one line [`LISTENING`], and from then
//! on speaks JSON lines over that socket: it sends [`ShimEvent`], it obeys [`ShimCommand`].
//! A client that connects later first gets the events that already happened. After `Failed` or
//! `Exited` it says nothing more and leaves as soon as its clients hang up.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use kvwarden_policy::{Generation, failure::FailureClass};
use serde::{Deserialize, Serialize};

use super::tree::ProcessId;

/// What a shim prints once its socket is there.
pub const LISTENING: &str = "listening";

/// What a shim prints instead when it will not run the engine; the reason follows.
pub const REFUSED: &str = "refused: ";

/// Everything a shim needs to run one engine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimSpec {
    /// The model's canonical name, for messages.
    pub model: String,
    /// Which start of the model this is.
    pub generation: u64,
    /// The value of [`TREE_TOKEN`](super::tree::TREE_TOKEN) in the engine's environment; unique per spawn, of
    /// `[A-Za-z0-9._-]{1,64}` because it also names a cgroup.
    pub token: String,
    /// The engine's executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment; `TREE_TOKEN` and [`KEEP_ENVIRON`] are added, nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// Where the shim listens.
    pub socket: PathBuf,
    /// The state file ([`ShimRecord`]): what runs here and how it ended.
    pub record: PathBuf,
    /// Where the engine's output goes; rotated.
    pub log: PathBuf,
    /// How long the engine lives on after its orchestrator is gone.
    pub orphan_grace: Duration,
    /// What ends it where a signal to its processes does not: it runs before that signal, and after an
    /// end of the engine's own.
    #[serde(default)]
    pub stop: Option<StopCommand>,
}

/// A command that ends what runs outside the engine's own processes, as a container does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopCommand {
    /// The executable, or its name on the environment's `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
}

/// Set to `1` for every engine. Processes that set their own title with Python's `setproctitle`
/// (vLLM's `EngineCore` and workers, SGLang's scheduler) write over their environment in memory,
/// so `/proc/PID/environ` would lose `TREE_TOKEN`; with this variable they don't.
/// <https://github.com/dvarrazzo/py-setproctitle#environment-variables>
pub const KEEP_ENVIRON: &str = "SPT_NOENV";

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
        /// How.
        #[serde(flatten)]
        exit: ShimExit,
        /// The last lines of its output.
        log_tail: Vec<String>,
        /// How many of them, counted from the end, are new enough to explain it. All, if a shim of an
        /// earlier version does not say.
        #[serde(default)]
        recent: Option<usize>,
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

/// What a shim leaves on disk, replaced atomically and fsynced: the next orchestrator adopts by it
/// and sweeps by it. It holds no secret: neither environment nor arguments. What it takes to use the
/// engine is in the [`Handover`](super::handover::Handover) beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The model's canonical name.
    pub model: String,
    /// Which start of the model this is.
    pub generation: u64,
    /// Marks the processes of this tree; see [`TREE_TOKEN`](super::tree::TREE_TOKEN).
    pub token: String,
    /// Where the shim listens.
    pub socket: PathBuf,
    /// Where the engine's output is.
    pub log: PathBuf,
    /// The shim.
    pub shim: ProcessId,
    /// The engine's main process, once there is one.
    pub engine: Option<ProcessId>,
    /// How the engine ended; its tree is gone by then.
    pub exit: Option<ShimExit>,
}

/// How an engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimExit {
    /// Exit code, if it exited.
    pub code: Option<i32>,
    /// Signal, if one killed it.
    pub signal: Option<i32>,
    /// What kind of end this was.
    pub class: FailureClass,
}

impl ShimSpec {
    /// The generation as the actors know it.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.generation)
    }
}

/// Without the values of the environment: API keys are among them, and specs end up in logs.
impl fmt::Debug for ShimSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShimSpec")
            .field("model", &self.model)
            .field("generation", &self.generation)
            .field("token", &self.token)
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_of_a_spec_names_variables_but_not_their_values() {
        let spec = ShimSpec {
            model: "m".into(),
            generation: 1,
            token: "t".into(),
            program: "/bin/true".into(),
            args: vec![],
            env: BTreeMap::from([("VLLM_API_KEY".into(), "hunter2".into())]),
            socket: "s".into(),
            record: "r".into(),
            log: "l".into(),
            orphan_grace: Duration::ZERO,
            stop: None,
        };
        let text = format!("{spec:?}");
        assert!(text.contains("VLLM_API_KEY") && !text.contains("hunter2"));
        let line = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ShimSpec>(&line).unwrap(), spec);
    }
}
