//! Why an engine ended, read from its exit status and its last words.

use serde::{Deserialize, Serialize};

/// The class of a failure: what an operator has to look at, and whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// It ended because we asked it to.
    Stopped,
    /// Not enough GPU or host memory.
    OutOfMemory,
    /// Its port was taken by another process.
    PortInUse,
    /// The model's files are missing, gated or unreadable.
    BadModel,
    /// It did not know a flag or a flag's value.
    BadFlag,
    /// The GPU's driver or CUDA refused to work.
    Driver,
    /// The engine or its environment could not be installed or started at all.
    NotInstalled,
    /// It did not become ready in time.
    StartTimeout,
    /// It answered, but not like an engine that works.
    Canary,
    /// Killed from outside: SIGKILL that was not ours, such as the kernel's OOM killer.
    Killed,
    /// It ended by itself and left no known sign.
    Crashed,
}

impl FailureClass {
    /// Trying again with the same configuration can't help.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        matches!(self, Self::BadModel | Self::BadFlag | Self::NotInstalled)
    }
}
