//! `kvwarden replay`: what the planner, and others, make of a log.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueHint, builder::PossibleValuesParser};
use kvwarden_policy::{
    residency::Limits,
    simulation::swapping::{PolicyName, Request, World, cells::Cell},
};

use crate::{
    config::units::{parse_duration, parse_size},
    journal::log,
    lab::replay::{self, Report},
};

/// Options of `kvwarden replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The event log of a server
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "generate")]
    log: Option<PathBuf>,
    /// Make requests up instead: a shape, how much room there is, and what a reload costs
    #[arg(long, value_name = "CELL", conflicts_with = "log", value_parser = cell)]
    generate: Option<Cell>,
    /// Seeds what is made up
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Who decides; several, separated by commas, or all
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "kvwarden", value_parser = policies())]
    policy: Vec<String>,
    /// That many equal devices instead of the log's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4))]
    gpus: Option<u32>,
    /// The size of each device instead of the log's (24GiB)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    capacity: Option<u64>,
    /// Who has waited this long gets a place
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_wait: Option<Duration>,
    /// Write what was made up as a log
    #[arg(long, value_name = "FILE", requires = "generate")]
    save: Option<PathBuf>,
    /// Draw the stalls into this .svg or .png
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn cell(name: &str) -> Result<Cell, String> {
    let names = || Cell::all().map(Cell::name).collect::<Vec<_>>().join(", ");
    Cell::named(name).ok_or_else(|| format!("there are {}", names()))
}

fn policies() -> PossibleValuesParser {
    let names = PolicyName::ALL.map(PolicyName::as_str);
    PossibleValuesParser::new(names.into_iter().chain(["all"]))
}

/// Runs the command.
///
/// # Errors
/// When the log can't be read or a file can't be written.
pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let (source, mut world, requests) = load(args)?;
    adapt(&mut world, args);
    if let Some(path) = &args.save {
        let file = create(path)?;
        log::write(&world, &requests, BufWriter::new(file))?;
    }
    let report = Report::of(source, &world, &requests, &names(args));
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(&report)?)?;
    } else {
        replay::print(&report, &mut out)?;
    }
    if let Some(path) = &args.plot {
        draw(&report, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is replayed, under what name.
fn load(args: &ReplayArgs) -> anyhow::Result<(String, World, Vec<Request>)> {
    match (&args.log, &args.generate) {
        (Some(path), _) => {
            let shown = path.display();
            let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
            let read = log::read(BufReader::new(file));
            let (world, requests) = read.with_context(|| format!("cannot replay {shown}"))?;
            Ok((shown.to_string(), world, requests))
        }
        (None, Some(cell)) => {
            let source = format!("{}, seed {}", cell.name(), args.seed);
            Ok((source, cell.world(), cell.requests(args.seed)))
        }
        (None, None) => bail!("a log or --generate is needed"),
    }
}

/// Replaces what the options do. A model that may not be on the new devices may be on any of them.
fn adapt(world: &mut World, args: &ReplayArgs) {
    world.settings.max_wait = args.max_wait.or(world.settings.max_wait);
    if let Some(total) = args.capacity {
        let limits = Limits { total, reserved: 0 };
        world
            .devices
            .iter_mut()
            .for_each(|device| device.1 = limits);
    }
    if let (Some(gpus), Some((_, limits))) = (args.gpus, world.devices.first().cloned()) {
        let device = |index| (format!("gpu-{index}").into(), limits);
        world.devices = (0..gpus).map(device).collect();
        world
            .models
            .iter_mut()
            .for_each(|spec| spec.allowed.clear());
    }
}

fn names(args: &ReplayArgs) -> Vec<PolicyName> {
    let is_asked = |name: &PolicyName| {
        let mut asked = args.policy.iter();
        asked.any(|asked| asked == "all" || asked == name.as_str())
    };
    PolicyName::ALL.into_iter().filter(is_asked).collect()
}

fn draw(report: &Report, path: &Path) -> anyhow::Result<()> {
    let picture = match path.extension().and_then(|end| end.to_str()) {
        Some("svg") => report.svg()?.into_bytes(),
        Some("png") => report.png()?,
        _ => bail!("{}: a plot is an .svg or a .png", path.display()),
    };
    create(path)?.write_all(&picture)?;
    Ok(())
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}
