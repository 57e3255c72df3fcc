//! Measures kvwarden beside the proxies that people would put in its place. See `README.md`.

mod answer;
mod backend;
mod bench;
mod engine;
mod histogram;
mod http;
mod install;
mod load;
mod peer;
mod process;
mod table;
mod trial;

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{runtime, task::LocalSet};

use self::{bench::Bench, peer::Peer, table::Table, trial::TRIALS};

/// Both ends of 10,000 streams.
const FILES: u64 = 65_536;

/// Measures kvwarden beside the proxies that people would put in its place.
#[derive(Debug, Parser)]
struct Args {
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
    /// The program to measure, else it is built.
    #[arg(long)]
    kvwarden: Option<PathBuf>,
    /// A directory for `peers.json` and `peers.txt`.
    #[arg(long)]
    out: Option<PathBuf>,
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
    let peers = match args.peers.as_slice() {
        [] => Peer::ALL.to_vec(),
        some => some.to_vec(),
    };
    let trials = TRIALS.iter().enumerate().filter(|(place, trial)| {
        let is_named = |name: &String| name == trial.key || (name == "first" && *place < 5);
        args.rows.is_empty() || args.rows.iter().any(is_named)
    });
    let trials: Vec<_> = trials.map(|(_, trial)| trial).collect();
    let mut bench = Bench::new(&kvwarden, Duration::from_secs_f64(args.seconds)).await?;
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
    let text = table.text(&peers);
    anstream::println!("{text}");
    if let Some(out) = &args.out {
        fs::create_dir_all(out)?;
        fs::write(out.join("peers.txt"), text)?;
        let json = serde_json::to_string_pretty(&table.json(&peers))?;
        fs::write(out.join("peers.json"), json)?;
    }
    Ok(())
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
