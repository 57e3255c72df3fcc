//! `kvwarden usage`: what tenants used, from the database that the server keeps.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum as _, ValueHint};
use comfy_table::Cell;
use serde_json::{Value, json};

use crate::terminal;
use crate::{
    config::units::parse_duration,
    journal::{self, Column, Store, Total},
    layout::Layout,
};

/// Options of `kvwarden usage`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Reads usage.db in the state directory, so no server has to run.")]
pub struct UsageArgs {
    /// What to add up by, in this order; several, separated by commas
    #[arg(
        long,
        value_enum,
        value_name = "COLUMN",
        value_delimiter = ',',
        default_value = "tenant,model"
    )]
    by: Vec<Column>,
    /// From when on: a time ago (7d, 12h) or a UTC date (2026-11-01)
    #[arg(long, value_name = "WHEN", default_value = "30d")]
    since: String,
    /// Until when: a time ago or a UTC date, itself not included; until now if nothing is said
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
    /// The server's state directory, where a configuration sets another than usual
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the totals.
///
/// # Errors
/// When there is no database, or a moment is none.
pub fn run(args: &UsageArgs) -> anyhow::Result<ExitCode> {
    let state = args.state_dir.clone();
    let path = journal::path(&state.unwrap_or_else(|| Layout::from_env().state));
    if !path.exists() {
        let path = path.display();
        bail!(
            "there is no {path}: nothing was used yet, it is not kept (keep_usage), or the server has another state directory (--state-dir)"
        );
    }
    let store = Store::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let now = SystemTime::now();
    let since = moment(&store, &args.since, now)?;
    let until = match &args.until {
        Some(until) => moment(&store, until, now)?,
        None => now,
    };
    let totals = store.totals(since, until, &args.by)?;
    let mut out = anstream::stdout().lock();
    if args.json {
        let rows: Vec<Value> = totals.iter().map(|total| row(total, &args.by)).collect();
        writeln!(out, "{:#}", Value::from(rows))?;
    } else {
        print(&totals, &args.by, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn moment(store: &Store, text: &str, now: SystemTime) -> anyhow::Result<SystemTime> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    store.moment(text)?.with_context(|| {
        format!("{text:?} is no moment: write a time ago (7d, 12h) or a UTC date (2026-11-01, or \"2026-11-01 06:00\")")
    })
}

fn row(total: &Total, by: &[Column]) -> Value {
    let usage = total.usage;
    let mut row = json!({});
    for (column, value) in by.iter().zip(&total.of) {
        row[name(*column)] = json!(value);
    }
    row["requests"] = json!(total.requests);
    row["prompt_tokens"] = json!(usage.prompt_tokens);
    row["cached_tokens"] = json!(usage.cached_tokens);
    row["output_tokens"] = json!(usage.completion_tokens);
    row
}

fn print(totals: &[Total], by: &[Column], out: &mut dyn Write) -> io::Result<()> {
    let columns = by.iter().map(|column| name(*column).to_uppercase());
    let counts = [
        "REQUESTS",
        "PROMPT TOKENS",
        "OF THEM CACHED",
        "OUTPUT TOKENS",
    ];
    let mut table = terminal::table(columns.chain(counts.map(str::to_owned)));
    for total in totals {
        let usage = total.usage;
        let counts = [
            total.requests,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
        ];
        let counts = counts.map(|count| terminal::number(terminal::thousands(count)));
        table.add_row(total.of.iter().map(Cell::new).chain(counts));
    }
    write!(out, "{}", terminal::lines(&table))
}

fn name(column: Column) -> String {
    let value = column.to_possible_value();
    value
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
