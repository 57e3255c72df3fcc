//! One file per command.

pub mod bench;
pub mod check;
pub mod engine;
pub mod key;
pub mod serve;
pub mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{layout::Layout, shim, sim};

/// Shares the GPUs of one node fairly between tenants
#[derive(Debug, Parser)]
#[command(name = "kvwarden", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models behind one OpenAI-compatible API
    Serve(serve::ServeArgs),
    /// Say everything that is wrong with a configuration file
    Check(check::CheckArgs),
    /// Install, list and remove inference engines
    Engine(engine::EngineArgs),
    /// Make an API key, and the hash of it that goes into the configuration
    Key(key::KeyArgs),
    /// Measure what scheduling does to latency and throughput
    Bench(bench::BenchArgs),
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
            Command::Check(args) => check::run(&args),
            Command::Engine(args) => {
                engine::run(&args, &Layout::from_env())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Key(args) => key::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Version(args) => version::run(&args),
            Command::Shim => Ok(shim::run()),
            Command::SimEngine(args) => {
                sim::run(args)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
