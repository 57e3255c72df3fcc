//! One file per command.

pub mod bench;
pub mod check;
pub mod client;
pub mod doctor;
pub mod engine;
pub mod key;
pub mod models;
pub mod reload;
pub mod replay;
mod reply;
pub mod serve;
pub mod status;
pub mod usage;
pub mod version;
mod wish;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{layout::Layout, shim, sim};

const EXAMPLES: &str = "\
Examples:
  kvwarden serve demo --engine sim            try it: no GPU, nothing to download, made-up text
  kvwarden doctor --config node.toml          is this machine ready for that configuration?
  kvwarden engine install vllm                fetch an engine before it is needed
  kvwarden serve --config node.toml           serve
  kvwarden status                             what does it do?
  kvwarden models unload llama                make room, now
  kvwarden usage --by tenant --since 7d       who used how many tokens?

Each command says more with --help.";

/// Shares the GPUs of one node fairly between tenants
#[derive(Debug, Parser)]
#[command(
    name = "kvwarden",
    version,
    arg_required_else_help = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models behind one OpenAI-compatible API
    Serve(serve::ServeArgs),
    /// Show what a running kvwarden does: models, tenants, GPUs
    Status(status::StatusArgs),
    /// List the models of a running kvwarden, or load, unload, put to sleep and pin one
    Models(models::ModelsArgs),
    /// Have a running kvwarden read its configuration file again
    Reload(reload::ReloadArgs),
    /// Look for what would keep kvwarden or its engines from working on this machine
    Doctor(doctor::DoctorArgs),
    /// Say everything that is wrong with a configuration file
    Check(check::CheckArgs),
    /// Install, list and remove inference engines
    Engine(engine::EngineArgs),
    /// Make an API key, and the hash of it that goes into the configuration
    Key(key::KeyArgs),
    /// Measure what scheduling does to latency and throughput
    Bench(bench::BenchArgs),
    /// Run a log of requests through the planner, and through what other tools do
    Replay(replay::ReplayArgs),
    /// Show what tenants used: requests and tokens, by tenant, model or day
    Usage(usage::UsageArgs),
    /// Print the version
    Version(version::VersionArgs),
    /// The parent of one engine; started by `serve`
    #[command(hide = true)]
    Shim,
    /// The simulated engine; started by `serve`
    #[command(hide = true)]
    SimEngine(sim::SimArgs),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// What stopped it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(args) => serve::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Models(args) => models::run(&args),
            Command::Reload(args) => reload::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Engine(args) => {
                engine::run(&args, &Layout::from_env())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Key(args) => key::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Replay(args) => replay::run(&args),
            Command::Usage(args) => usage::run(&args),
            Command::Version(args) => version::run(&args),
            Command::Shim => Ok(shim::run()),
            Command::SimEngine(args) => {
                sim::run(args)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
