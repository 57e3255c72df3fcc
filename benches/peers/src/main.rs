//! Measures kvwarden beside the proxies that people would put in its place. See `README.md`.

mod answer;
mod backend;
mod bench;
mod engine;
mod gate;
mod growth;
mod histogram;
mod http;
mod install;
mod load;
mod machine;
mod peer;
mod plot;
mod process;
mod table;
mod trial;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::{runtime, task::LocalSet};

use self::{bench::Bench, peer::Peer, table::Table, trial::TRIALS};

/// Both ends of 10,000 streams.
const FILES: u64 = 65_536;
/// The trials of the README's table come first.
const FIRST: usize = 5;

/// Measures kvwarden beside the proxies that people would put in its place.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Option<Alone>,
    /// Only these.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Only these kinds of load; `first` is the README's table.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long each load is measured.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Instead, whether the cost stays what it is as tenants, requests, models, streams and workers get more.
    #[arg(long)]
    growth: bool,
    /// The program to measure, else it is built.
    #[arg(long, global = true)]
    kvwarden: Option<PathBuf>,
    /// A directory for the results, as text, JSON and SVG; best `benches/results/DATE`.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Args {
    fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// What is done instead.
#[derive(Debug, Subcommand)]
enum Alone {
    /// Counts instructions of requests, and fails if they are more than `ceilings.json` allows.
    Gate {
        /// Set the ceilings anew.
        #[arg(long)]
        bless: bool,
    },
}

fn main() -> anyhow::Result<()> {
    if let Ok(engines) = env::var(engine::ENGINES) {
        return engine::run(&engines);
    }
    let args = Args::parse();
    raise_limit()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, measure(&args))
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    let kvwarden = match &args.kvwarden {
        Some(path) => path.canonicalize()?,
        None => built()?,
    };
    if let Some(Alone::Gate { bless }) = args.command {
        return gate::run(&kvwarden, bless).await;
    }
    let machine = machine::describe();
    let (name, (text, mut json)) = match args.growth {
        true => (
            "growth",
            growth::run(&kvwarden, args.rounds, args.window()).await?,
        ),
        false => ("peers", compare(args, &kvwarden).await?),
    };
    anstream::println!("{text}");
    if let Some(out) = &args.out {
        fs::create_dir_all(out)?;
        fs::write(out.join(format!("{name}.txt")), text)?;
        json = json!({ "machine": machine, "rounds": args.rounds, "seconds": args.seconds, name: json });
        let json = serde_json::to_string_pretty(&json)? + "\n";
        fs::write(out.join(format!("{name}.json")), json)?;
    }
    Ok(())
}

async fn compare(args: &Args, kvwarden: &Path) -> anyhow::Result<(String, Value)> {
    let peers = match args.peers.as_slice() {
        [] => Peer::ALL.to_vec(),
        some => some.to_vec(),
    };
    let trials: Vec<_> = TRIALS
        .iter()
        .enumerate()
        .filter(|(place, trial)| {
            let is_named = |name: &String| name == trial.key || (name == "first" && *place < FIRST);
            args.rows.is_empty() || args.rows.iter().any(is_named)
        })
        .map(|(_, trial)| trial)
        .collect();
    let mut bench = Bench::new(kvwarden, args.window()).await?;
    let mut table = Table::default();
    for round in 1..=args.rounds {
        for trial in &trials {
            anstream::eprintln!("round {round}: {}", trial.key);
            for peer in &peers {
                table.add(*peer, trial, bench.run(*peer, trial).await);
            }
        }
    }
    bench.end().await;
    let panels = table.panels(&peers);
    if let (Some(out), false) = (&args.out, panels.is_empty()) {
        fs::create_dir_all(out)?;
        fs::write(out.join("peers.svg"), plot::svg(&panels)?)?;
    }
    Ok((table.text(&peers), table.json(&peers)))
}

/// Builds the program to measure, beside this one.
fn built() -> anyhow::Result<PathBuf> {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let cargo = ["build", "--release", "-p", "kvwarden"];
    install::run(Command::new("cargo").args(cargo).current_dir(workspace))?;
    let own = env::current_exe()?;
    Ok(own.parent().context("no directory")?.join("kvwarden"))
}

fn raise_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = setrlimit(Resource::RLIMIT_NOFILE, FILES, hard.max(FILES));
    if wanted.is_err() {
        // Not everybody may have that many.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}
