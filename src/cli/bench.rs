//! `kvwarden bench`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use kvwarden_policy::steps::{self, Preset};

use crate::{
    bench::{
        arm::Arm,
        fairness,
        hero::{self, Flavor},
        options::Options,
        report::{self, Report},
        workload::Shape,
    },
    config::{Engine, units::parse_duration},
    serve::raise_descriptor_limit,
};

/// Python KVWarden's own warm-up cut.
const WARMUP: Duration = Duration::from_secs(10);

/// Longest run; a mistyped unit should not cost a day.
const LONGEST: Duration = Duration::from_secs(3600);

/// Most rounds and tenants, for the same reason.
const MOST: u32 = 100;

/// Options of `kvwarden bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum BenchCommand {
    /// Flood an engine and see what a quiet tenant gets, and what that costs, in every arm
    Fairness(FairnessArgs),
    /// Python KVWarden's published run, its figures beside ours
    ReproduceHero(HeroArgs),
}

#[derive(Args, Clone, Debug)]
struct FairnessArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// What the noisy tenant sends
    #[arg(long, default_value = "decode")]
    shape: Shape,
    /// Load of each flood as a multiple of what the engine can do of it [default: 2x; 1x if unequal]
    #[arg(long, value_name = "TIMES", value_parser = times)]
    flood: Option<f64>,
    /// Tenants in all: one noisy, the others quiet; if unequal one quiet, the others noisy [default: 2; 4 if unequal]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=i64::from(MOST)))]
    tenants: Option<u32>,
    /// Weights of the noisy tenants, in order [default: 1 each]
    #[arg(long, value_name = "WEIGHT", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1000))]
    weights: Vec<u32>,
}

#[derive(Args, Clone, Debug)]
struct HeroArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Which of the published runs
    #[arg(long, default_value = "2tenant")]
    flavor: Flavor,
}

#[derive(Args, Clone, Debug)]
struct CommonArgs {
    /// The engine to start
    #[arg(long, default_value = "sim")]
    engine: Engine,
    /// What the simulated engine simulates
    #[arg(long, default_value = "a100-8b", value_parser = preset)]
    preset: &'static Preset,
    /// The model of a real engine: a path, a hub id, or pypi:PACKAGE/FILE [default: a small one on CPU engines]
    #[arg(long, value_name = "SOURCE")]
    model: Option<String>,
    /// Take engine and model from this TOML file; its tenants and limits are replaced
    #[arg(long, value_name = "FILE", conflicts_with_all = ["engine", "model"])]
    config: Option<PathBuf>,
    /// How long each run sends (at least 2s)
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Requests planned before it do not count, in any arm [default: 10s, at most a quarter of the run]
    #[arg(long, value_parser = parse_duration)]
    warmup: Option<Duration>,
    /// Which arms, in which order
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "solo,fifo,bucket,drr,fair"
    )]
    arms: Vec<Arm>,
    /// Seeds arrivals, lengths and prompts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often to run all arms, in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    rounds: u32,
    /// Each noisy tenant's requests per minute in the bucket arm [default: 600; on a CPU half of what the engine can]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    bucket_rpm: Option<u32>,
    /// Sizes of requests, as part of the shape's [default: 1; 0.125 on a CPU]
    #[arg(long, value_name = "PART", value_parser = part)]
    scale: Option<f64>,
    /// Start the engine once for all arms; it is left in this directory, for two minutes, to the next bench
    #[arg(long, value_name = "DIR", conflicts_with = "base_url")]
    keep_engine: Option<PathBuf>,
    /// Bench this running server instead, alone and flooded; its URL without /v1
    #[arg(long, value_name = "URL", requires = "model", conflicts_with_all = ["config", "engine"])]
    base_url: Option<String>,
    /// API key of that server
    #[arg(
        long,
        value_name = "KEY",
        env = "KVWARDEN_BENCH_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// Refuse to report if the load generator itself was later than this (99th percentile); warn where it shares the engine's cores
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = parse_duration)]
    max_client_lag: Duration,
    /// Write summary.json, requests.jsonl, fairness.svg and fairness.png here
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When nothing could be measured, and why.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let (common, options, flavor) = match &args.command {
        BenchCommand::Fairness(args) => (&args.common, args.options()?, None),
        BenchCommand::ReproduceHero(args) => {
            let tenants = args.flavor.tenants();
            let options = args.common.options(Shape::Hero, tenants)?;
            (&args.common, options, Some(args.flavor))
        }
    };
    raise_descriptor_limit();
    let measured = async {
        tokio::select! {
            report = fairness::measure(&options) => report,
            // Whatever is dropped here stops its servers and engines.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    };
    let report = actix_web::rt::System::new().block_on(measured)?;
    show(&report, common, flavor)?;
    Ok(ExitCode::SUCCESS)
}

fn show(report: &Report, common: &CommonArgs, flavor: Option<Flavor>) -> anyhow::Result<()> {
    let mut out = anstream::stdout();
    match common.json {
        true => writeln!(out, "{:#}", serde_json::to_value(report)?)?,
        false => report::print(report, &mut out)?,
    }
    if let Some(flavor) = flavor.filter(|_| !common.json) {
        hero::print(report, flavor, &mut out)?;
    }
    if let Some(dir) = &common.out {
        write_files(report, dir)?;
    }
    Ok(())
}

fn write_files(report: &Report, dir: &Path) -> anyhow::Result<()> {
    for path in report::write_all(report, dir)? {
        anstream::eprintln!("wrote {}", path.display());
    }
    Ok(())
}

impl FairnessArgs {
    fn options(&self) -> anyhow::Result<Options> {
        let (flood, tenants) = match self.shape {
            // Each alone is enough, and all together are far too much.
            Shape::Unequal => (1.0, 4),
            Shape::Decode | Shape::Prefill | Shape::Mixed | Shape::Hero | Shape::Short => (2.0, 2),
        };
        let tenants = self.tenants.unwrap_or(tenants) as usize;
        Ok(Options {
            flood: Some(self.flood.unwrap_or(flood)),
            weights: self.weights.clone(),
            ..self.common.options(self.shape, tenants)?
        })
    }
}

impl CommonArgs {
    fn options(&self, shape: Shape, tenants: usize) -> anyhow::Result<Options> {
        let (shortest, longest) = (Duration::from_secs(2), LONGEST);
        anyhow::ensure!(
            (shortest..=longest).contains(&self.duration),
            "--duration is {} to {} s",
            shortest.as_secs(),
            longest.as_secs()
        );
        let warmup = self.warmup.unwrap_or(WARMUP.min(self.duration / 4));
        anyhow::ensure!(
            warmup < self.duration,
            "--warmup leaves nothing of --duration"
        );
        let mut arms = Vec::new();
        for arm in &self.arms {
            if !arms.contains(arm) {
                arms.push(*arm);
            }
        }
        Ok(Options {
            engine: self.engine,
            preset: self.preset,
            model: self.model.clone(),
            config: self.config.clone(),
            flood: None,
            shape,
            scale: self.scale,
            tenants,
            weights: Vec::new(),
            duration: self.duration,
            warmup,
            arms,
            seed: self.seed,
            rounds: self.rounds,
            bucket_rpm: self.bucket_rpm,
            keep_engine: self.keep_engine.clone(),
            base_url: self.base_url.clone(),
            api_key: self.api_key.clone(),
            max_lag: self.max_client_lag,
        })
    }
}

/// `2x`, `1.5x` or `1.5`.
fn times(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('x').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(times) if times > 0.0 && times <= 100.0 => Ok(times),
        _ => Err("expected a multiple of the capacity, above 0x and up to 100x".to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_multiples() {
        assert_eq!(times("2x"), Ok(2.0));
        assert_eq!(times("1.5"), Ok(1.5));
        assert!(times("x").is_err() && times("0x").is_err() && times("1e9x").is_err());
    }
}
