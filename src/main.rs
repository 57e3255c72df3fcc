//! The command line: arguments in, exit code out.

use clap::{Parser, Subcommand};
use kvwarden::sim;

#[derive(Parser)]
#[command(name = "kvwarden")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a simulated model.
    #[command(hide = true)]
    SimEngine(sim::SimArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::SimEngine(args) => sim::run(args),
    }
}
