//! What is measured, and how long: the options that all benches have.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;
use clap::Args;
use kvwarden_actors::engine::EngineKind;
use kvwarden_policy::simulation::steps::{self, Preset};

use super::{arm::Arm, stats::Window, workload::Shape};
use crate::config::{engine_parser, units::parse_duration};

/// Python KVWarden's own warm-up cut.
const WARMUP: Duration = Duration::from_secs(10);

/// A shorter run says nothing, and a mistyped unit should not cost a day.
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(3600);

/// Most rounds and tenants, for the same reason.
pub const MOST: u32 = 100;

/// What is measured, and how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The engine to start
    #[arg(long, default_value = "sim", value_parser = engine_parser())]
    pub engine: EngineKind,
    /// What the simulated engine simulates
    #[arg(long, default_value = "a100-8b", value_parser = preset)]
    pub preset: &'static Preset,
    /// The model of a real engine: a path, a hub id, or pypi:PACKAGE/FILE [default: a small one on CPU engines]
    #[arg(long, value_name = "SOURCE")]
    pub model: Option<String>,
    /// Take engine and model from this TOML file; its tenants and limits are replaced
    #[arg(long, value_name = "FILE", conflicts_with_all = ["engine", "model"])]
    pub config: Option<PathBuf>,
    /// How long each run sends (at least 2s)
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Requests planned before it do not count, in any arm [default: 10s, at most a quarter of the run]
    #[arg(long, value_parser = parse_duration)]
    pub warmup: Option<Duration>,
    /// Which arms, in which order
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "solo,fifo,bucket,drr,fair"
    )]
    pub arms: Vec<Arm>,
    /// Seeds arrivals, lengths and prompts
    // Round `n` uses `seed + n` in every arm.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often to run all arms, in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    pub rounds: u32,
    /// Each noisy tenant's requests per minute in the bucket arm [default: 600; on a CPU half of what the engine can]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub bucket_rpm: Option<u32>,
    /// Sizes of requests, as part of the shape's [default: 1; 0.125 on a CPU]
    #[arg(long, value_name = "PART", value_parser = part)]
    pub scale: Option<f64>,
    /// Start the engine once for all arms; it is left in this directory, for two minutes, to the next bench
    #[arg(long, value_name = "DIR", conflicts_with = "base_url")]
    pub keep_engine: Option<PathBuf>,
    /// Bench this running server instead, alone and flooded; its URL without /v1
    #[arg(long, value_name = "URL", requires = "model", conflicts_with_all = ["config", "engine"])]
    pub base_url: Option<String>,
    /// API key of that server
    #[arg(
        long,
        value_name = "KEY",
        env = "KVWARDEN_BENCH_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,
    /// Refuse to report if the load generator itself was later than this (99th percentile); warn where it shares the engine's cores
    // There the lag is part of what is shared, and no free core would mend it.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = parse_duration)]
    pub max_client_lag: Duration,
    /// What the flood is made of.
    #[arg(skip = Shape::Hero)]
    pub shape: Shape,
    /// Load of each flood as a multiple of capacity; none keeps the hero's published rate.
    #[arg(skip)]
    pub flood: Option<f64>,
    /// Tenants in all.
    #[arg(skip)]
    pub tenants: usize,
    /// Weights of the noisy ones, in order; absent ones are 1.
    #[arg(skip)]
    pub weights: Vec<u32>,
}

impl Options {
    /// These, once they are found to make sense.
    ///
    /// # Errors
    /// When nothing could be measured.
    pub fn checked(mut self) -> anyhow::Result<Self> {
        ensure!(
            (SHORTEST..=LONGEST).contains(&self.duration),
            "--duration is {} to {} s",
            SHORTEST.as_secs(),
            LONGEST.as_secs()
        );
        ensure!(
            self.window().from < self.duration,
            "--warmup leaves nothing of --duration"
        );
        let mut arms = Vec::new();
        for arm in self.arms {
            if !arms.contains(&arm) {
                arms.push(arm);
            }
        }
        self.arms = arms;
        Ok(self)
    }

    /// What counts of each run.
    #[must_use]
    pub fn window(&self) -> Window {
        Window {
            from: self.warmup.unwrap_or(WARMUP.min(self.duration / 4)),
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

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if part > 0.0 && part <= 1.0 => Ok(part),
        _ => Err("expected a part, above 0 and up to 1".to_owned()),
    }
}

fn preset(name: &str) -> Result<&'static Preset, String> {
    steps::preset(name).ok_or_else(|| {
        let known: Vec<_> = steps::PRESETS.iter().map(|preset| preset.name).collect();
        format!("known presets: {}", known.join(", "))
    })
}
