//! `kvwarden bench`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use crate::{
    lab::bench::{
        fairness,
        hero::{self, Flavor},
        options::{MOST, Options},
        report::{self, Report},
        workload::Shape,
    },
    serve::raise_descriptor_limit,
};

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
    #[command(flatten)]
    options: Options,
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
        BenchCommand::Fairness(args) => (&args.common, args.options(), None),
        BenchCommand::ReproduceHero(args) => (&args.common, args.options(), Some(args.flavor)),
    };
    let options = options.checked()?;
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
        for path in report::write_all(report, dir)? {
            anstream::eprintln!("wrote {}", path.display());
        }
    }
    Ok(())
}

impl FairnessArgs {
    fn options(&self) -> Options {
        let (flood, tenants) = match self.shape {
            // Each alone is enough, and all together are far too much.
            Shape::Unequal => (1.0, 4),
            Shape::Decode | Shape::Prefill | Shape::Mixed | Shape::Hero | Shape::Short => (2.0, 2),
        };
        Options {
            shape: self.shape,
            flood: Some(self.flood.unwrap_or(flood)),
            tenants: self.tenants.unwrap_or(tenants) as usize,
            weights: self.weights.clone(),
            ..self.common.options.clone()
        }
    }
}

impl HeroArgs {
    fn options(&self) -> Options {
        Options {
            shape: Shape::Hero,
            tenants: self.flavor.tenants(),
            ..self.common.options.clone()
        }
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
