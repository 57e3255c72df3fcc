//! `kvwarden serve`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;
use kvwarden_actors::engine::EngineKind;
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Overrides, engine_parser, units::parse_share},
    layout::Layout,
    serve::{self, reload::Source},
};

/// A configuration that is refused, as with `kvwarden check`.
const REFUSED: u8 = 2;

/// Options of `kvwarden serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Models to serve without a configuration file: a path, a hub id, or pypi:PACKAGE/FILE
    #[arg(
        value_name = "MODEL",
        conflicts_with = "config",
        required_unless_present = "config"
    )]
    models: Vec<String>,
    /// The configuration: TOML, or the YAML of the Python KVWarden
    #[arg(long, short, value_name = "FILE", env = "KVWARDEN_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port to listen on
    #[arg(long)]
    port: Option<u16>,
    /// Engine for models that name none
    #[arg(long, value_parser = engine_parser())]
    engine: Option<EngineKind>,
    /// Requests that run at once, for every model
    #[arg(long, value_name = "N")]
    max_concurrent: Option<u32>,
    /// Share of GPU memory that models divide among them (0.8 or 80%)
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    gpu_budget: Option<f64>,
    /// error, warn, info, debug, trace, or a filter such as kvwarden=debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Write logs as JSON lines
    #[arg(long)]
    log_json: bool,
    /// Take over from the kvwarden that serves with this state directory, refusing no connection
    /// and cutting no stream; where none does, just serve
    #[arg(long)]
    takeover: bool,
}

/// Serves until it is told to stop.
///
/// # Errors
/// When the address is taken or the system refuses what serving needs.
pub fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        host: args.host.clone(),
        port: args.port,
        engine: args.engine,
        max_concurrent: args.max_concurrent,
        gpu_budget: args.gpu_budget,
        log_level: args.log_level.clone(),
    };
    let source = Source {
        file: args.config.clone(),
        models: args.models.clone(),
        overrides,
    };
    let loaded = match source.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            write!(anstream::stderr(), "{}", error.render())?;
            anstream::eprintln!("{error}");
            return Ok(ExitCode::from(REFUSED));
        }
    };
    write!(anstream::stderr(), "{}", loaded.render_warnings())?;
    start_logging(&loaded.config.log_level, args.log_json);
    let layout = Layout::from_env();
    let layout = Layout {
        data: loaded.config.data_dir.clone().unwrap_or(layout.data),
        state: loaded.config.state_dir.clone().unwrap_or(layout.state),
    };
    serve::run(&loaded.config, source, &layout, args.takeover)?;
    Ok(ExitCode::SUCCESS)
}

fn start_logging(level: &str, json: bool) {
    // The server library says four lines at every start; its warnings are worth reading.
    let filter = EnvFilter::try_new(format!("actix_server=warn,{level}"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Its complaint about a closed stderr would go to stderr, and that ends the process.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    if json {
        logs.json().init();
    } else {
        logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init();
    }
}
