//! `kvwarden version`.

use std::{io::Write as _, process::ExitCode};

use clap::Args;
use serde_json::json;

/// Options of `kvwarden version`.
#[derive(Args, Clone, Debug)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the version.
///
/// # Errors
/// When standard output is closed.
pub fn run(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    let mut out = anstream::stdout();
    if args.json {
        writeln!(out, "{}", json!({ "version": version }))?;
    } else {
        writeln!(out, "kvwarden {version}")?;
    }
    Ok(ExitCode::SUCCESS)
}
