//! `kvwarden reload`: has a running server read its configuration again.

use std::{io::Write as _, process::ExitCode};

use actix_web::http::StatusCode;
use clap::Args;

use super::client::{ClientError, Target};
use crate::config::Changes;

/// A configuration that is refused, as with `kvwarden check`.
const REFUSED: u8 = 2;

/// Options of `kvwarden reload`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit code: 0 where the file was taken, 1 where the server cannot be asked, 2 where the file was refused and everything stays as it was."
)]
pub struct ReloadArgs {
    #[command(flatten)]
    target: Target,
    /// Print JSON: the server's own answer
    #[arg(long)]
    json: bool,
}

/// Asks, and tells what changed or why nothing did.
///
/// # Errors
/// When the server can't be asked.
pub fn run(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let answer = match args.target.post_json("/kvwarden/reload") {
        Ok(answer) => answer,
        Err(ClientError::Failed {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            message,
            ..
        }) => {
            anstream::eprintln!("{message}");
            return Ok(ExitCode::from(REFUSED));
        }
        Err(error) => return Err(error.into()),
    };
    let mut out = anstream::stdout().lock();
    if args.json {
        writeln!(out, "{answer:#}")?;
    } else {
        let changes: Changes = serde_json::from_value(answer)?;
        writeln!(out, "{}", changes.to_string().replace("; ", "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
