//! `kvwarden replay`: what the planner, and others, make of a log.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueHint, builder::PossibleValuesParser};
use comfy_table::Cell as Field;
use kvwarden_policy::simulation::swapping::{PolicyName, Request, World, cells::Cell};

use crate::terminal;
use crate::{
    config::units::{parse_duration, parse_size},
    journal,
    lab::replay::{PolicyReport, Report},
    layout::Layout,
};

/// Options of `kvwarden replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The event log of a server: usage.db in its state directory, or JSON lines; if nothing is said,
    /// the usual state directory's
    #[arg(value_hint = ValueHint::FilePath)]
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
    /// Write the log as JSON lines instead of replaying it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["generate", "json", "plot"])]
    export: Option<PathBuf>,
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
    if let Some(file) = &args.export {
        let path = log(args);
        is_there(&path)?;
        journal::export(&path, file)?;
        let is_empty = file.metadata().is_ok_and(|file| file.len() == 0);
        anyhow::ensure!(
            !is_empty,
            "cannot export {}: {}",
            path.display(),
            journal::log::LogError::NoHeader
        );
        return Ok(ExitCode::SUCCESS);
    }
    let (source, mut world, requests) = load(args)?;
    adapt(&mut world, args);
    if let Some(path) = &args.save {
        let file = create(path)?;
        journal::log::write(&world, &requests, BufWriter::new(file))?;
    }
    let report = Report::of(source, &world, &requests, &names(args));
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(&report)?)?;
    } else {
        print(&report, &mut out)?;
    }
    if let Some(path) = &args.plot {
        draw(&report, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is replayed, under what name.
fn load(args: &ReplayArgs) -> anyhow::Result<(String, World, Vec<Request>)> {
    if let Some(cell) = &args.generate {
        let source = format!("{}, seed {}", cell.name(), args.seed);
        return Ok((source, cell.world(), cell.requests(args.seed)));
    }
    let path = log(args);
    is_there(&path)?;
    let read = journal::read_events(&path);
    let shown = path.display().to_string();
    let (world, requests) = read.with_context(|| format!("cannot replay {shown}"))?;
    Ok((shown, world, requests))
}

fn log(args: &ReplayArgs) -> PathBuf {
    let usual = || journal::path(&Layout::from_env().state);
    args.log.clone().unwrap_or_else(usual)
}

fn is_there(path: &Path) -> anyhow::Result<()> {
    let path = (!path.exists()).then(|| path.display());
    path.map_or(Ok(()), |path| {
        bail!(
            "there is no {path}: name the usage.db in the server's state directory, or make requests up with --generate"
        )
    })
}

/// Replaces what the options do. A model that may not be on the new devices may be on any of them.
fn adapt(world: &mut World, args: &ReplayArgs) {
    world.settings.max_wait = args.max_wait.or(world.settings.max_wait);
    if let Some(total) = args.capacity {
        world.devices.iter_mut().for_each(|device| device.1 = total);
    }
    if let (Some(gpus), Some((_, total))) = (args.gpus, world.devices.first().cloned()) {
        let device = |index| (format!("gpu-{index}").into(), total);
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

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let requests = terminal::count(report.requests, "request");
    let models = terminal::count(report.models, "model");
    let (label, source) = (report.label, &report.source);
    let lasts = terminal::seconds(report.lasts_s);
    writeln!(out, "{label}: {source}, {requests} for {models} in {lasts}")?;
    let mut table = terminal::table([
        "POLICY", "STALL", "TIMES", "P50", "P99", "LONGEST", "STARTS", "WAKES",
    ]);
    let first = report.policies.first().map_or(0.0, |policy| policy.stall_s);
    for policy in &report.policies {
        table.add_row(row(policy, first));
    }
    write!(out, "{}", terminal::lines(&table))
}

fn row(policy: &PolicyReport, first: f64) -> [Field; 8] {
    let seconds = |seconds| terminal::number(terminal::seconds(seconds));
    let times = (first > 0.0).then(|| format!("{:.2}", policy.stall_s / first));
    [
        Field::new(policy.policy),
        seconds(policy.stall_s),
        terminal::maybe(times),
        seconds(policy.p50_s),
        seconds(policy.p99_s),
        seconds(policy.max_s),
        terminal::number(policy.starts),
        terminal::number(policy.wakes),
    ]
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
