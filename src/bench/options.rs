//! What is measured, and how long.

use std::{path::PathBuf, time::Duration};

use kvwarden_policy::steps::Preset;

use super::{arm::Arm, stats::Window, workload::Shape};
use crate::config::Engine;

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The engine kvwarden starts.
    pub engine: Engine,
    /// What a simulated engine simulates.
    pub preset: &'static Preset,
    /// The weights of a real one; the model's name on a server that runs already.
    pub model: Option<String>,
    /// A configuration to take engine and model from.
    pub config: Option<PathBuf>,
    /// Load of each flood as a multiple of capacity; none keeps the hero's published rate.
    pub flood: Option<f64>,
    /// What the flood is made of.
    pub shape: Shape,
    /// Sizes of requests, as part of the goals' own; none for what suits the engine.
    pub scale: Option<f64>,
    /// Tenants in all.
    pub tenants: usize,
    /// Weights of the noisy ones, in order; absent ones are 1.
    pub weights: Vec<u32>,
    /// How long each run sends.
    pub duration: Duration,
    /// Requests planned before it do not count, in any arm.
    pub warmup: Duration,
    /// Which arms.
    pub arms: Vec<Arm>,
    /// Seeds the plans; round `n` uses `seed + n` in every arm.
    pub seed: u64,
    /// How often all arms are run.
    pub rounds: u32,
    /// A noisy tenant's bucket in the bucket arm, requests per minute; none for Python KVWarden's
    /// 600, or half of what a small engine can do.
    pub bucket_rpm: Option<u32>,
    /// Where the engine is kept from one arm to the next; none starts one for each.
    pub keep_engine: Option<PathBuf>,
    /// A server that runs already; its URL without `/v1`.
    pub base_url: Option<String>,
    /// Its key.
    pub api_key: Option<String>,
    /// Largest 99th percentile of the generator's own lag. A run beyond it is refused, or reported
    /// with a warning where the engine has the same cores as the generator: there the lag is part
    /// of what is shared, and no free core would mend it.
    pub max_lag: Duration,
}

impl Options {
    /// What counts of each run.
    #[must_use]
    pub fn window(&self) -> Window {
        Window {
            from: self.warmup,
            until: self.duration,
        }
    }

    /// Tenants that stay within their share.
    #[must_use]
    pub fn quiet(&self) -> usize {
        self.tenants.saturating_sub(self.noisy()).max(1)
    }

    /// Tenants that flood.
    #[must_use]
    pub fn noisy(&self) -> usize {
        self.shape.noisy_of(self.tenants)
    }
}
