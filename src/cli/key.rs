//! `kvwarden key`: an API key for a client, and its hash for the configuration.

use std::{io::Write as _, process::ExitCode};

use clap::Args;
use serde_json::json;

use crate::config::KeyHash;

/// Options of `kvwarden key`.
#[derive(Args, Clone, Debug)]
pub struct KeyArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes a key of 256 random bits.
///
/// # Errors
/// When standard output is closed.
pub fn run(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    let key = format!(
        "sk-kvw-{:032x}{:032x}",
        rand::random::<u128>(),
        rand::random::<u128>()
    );
    let hash = KeyHash::of(&key);
    let mut out = anstream::stdout();
    if args.json {
        writeln!(out, "{}", json!({ "key": key, "hash": hash.to_string() }))?;
    } else {
        writeln!(out, "key for the client (shown this once): {key}")?;
        writeln!(
            out,
            "for the configuration:                api_keys = [\"{hash}\"]"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
