//! The arms of the experiment. Their configurations differ in nothing else.

mod base;

use std::path::Path;

use clap::ValueEnum;
use serde::Serialize;

pub use self::base::Base;
use super::workload::Role;

/// How the engine is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// The quiet tenants alone
    Solo,
    /// First come, first served: no sharing at all
    Fifo,
    /// Python KVWarden's answer: fifo, and a request bucket on the noisy tenant
    Bucket,
    /// Python KVWarden's other discipline: deficit round robin
    Drr,
    /// kvwarden's token-cost fair queue
    Fair,
    /// A server that runs already (`--base-url`)
    #[value(skip)]
    Server,
}

/// What sets one server apart.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// Which arm.
    pub arm: Arm,
    /// Its loopback port.
    pub port: u16,
    /// Its sockets and logs.
    pub state_dir: &'a Path,
    /// Its engine is taken over by the next server there.
    pub keeps_engine: bool,
    /// The noisy tenant's bucket in [`Arm::Bucket`], requests per minute.
    pub bucket_rpm: u32,
}

// === impl Arm ===

impl Arm {
    /// The name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Solo => "solo",
            Self::Fifo => "fifo",
            Self::Bucket => "bucket",
            Self::Drr => "drr",
            Self::Fair => "fair",
            Self::Server => "server",
        }
    }

    /// The model's `scheduling`.
    pub(super) fn scheduling(self) -> &'static str {
        match self {
            Self::Solo | Self::Fifo | Self::Bucket | Self::Server => "fifo",
            Self::Drr => "drr",
            Self::Fair => "fair",
        }
    }

    /// Who sends in it.
    #[must_use]
    pub fn sends(self, role: Role) -> bool {
        self != Self::Solo || role == Role::Quiet
    }
}
