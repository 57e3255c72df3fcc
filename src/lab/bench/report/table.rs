//! The report for people.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};

use super::{ArmReport, Report};
use crate::lab::bench::{
    stats::{Quantile, Service},
    workload::Role,
};

const HEADER: [&str; 14] = [
    "arm",
    "quiet p50 ms",
    "quiet p99 ms",
    "x solo",
    "quiet ok/sent",
    "quiet refused",
    "quiet tok/s",
    "noisy tok/s",
    "all tok/s",
    "kept",
    "noisy refused",
    "in engine",
    "waiting > 2",
    "client lag ms",
];

/// Prints the table and what to know about it.
///
/// # Errors
/// When the output is closed.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let label = report
        .label
        .map_or(String::new(), |label| format!("{label}: "));
    writeln!(out, "{label}{}", report.engine)?;
    for ((_, party), capacity) in report.workload.of(Role::Noisy).zip(&report.capacities) {
        let rate = party.load.rate;
        writeln!(
            out,
            "{}: {rate:.2} requests/s, {:.2}x of capacity ({})",
            party.load.tenant,
            rate / capacity.requests_per_s,
            capacity.how
        )?;
    }
    writeln!(
        out,
        "TTFT from the planned moment; {} round(s), window {} s to {} s in every arm, seed {}, {}",
        report.rounds,
        report.window.from.as_secs_f64(),
        report.window.until.as_secs_f64(),
        report.seed,
        report.date
    )?;
    writeln!(out, "{}", table(HEADER, report.arms.iter().map(row)))?;
    if report.arms.iter().any(|arm| arm.jain.is_some()) {
        writeln!(out, "{}", shares(report))?;
    }
    if report.arms.iter().any(|arm| arm.quiet.ttft.unfinished > 0) {
        writeln!(
            out,
            ">= : quiet requests still had no first token when the run ended"
        )?;
    }
    for warning in report.warnings() {
        writeln!(out, "warning: {warning}")?;
    }
    if report.label.is_some() {
        writeln!(
            out,
            "SIMULATED: step times come from a model of the engine, not from a GPU; the sockets, \
             the scheduling and the load are real"
        )?;
    }
    Ok(())
}

/// Numbers stand to the right.
pub(crate) fn table(
    header: impl IntoIterator<Item = impl ToString>,
    rows: impl Iterator<Item = Vec<String>>,
) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_header(header.into_iter().map(|name| name.to_string()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(arm: &ArmReport) -> Vec<String> {
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let waiting = arm.queues.engine_waiting_at_most_2;
    let ttft = arm.quiet.ttft;
    vec![
        arm.arm.name().to_owned(),
        quantile(ttft.p50),
        quantile(ttft.p99),
        or_dash(arm.quiet_p99_over_solo, |ratio| {
            format!("{}{ratio:.2}", sign(ttft.p99))
        }),
        format!("{}/{}", arm.quiet.ok, arm.quiet.sent),
        refused(&arm.quiet),
        format!("{:.0}", arm.quiet.output_tokens_per_s),
        format!("{:.0}", arm.noisy.output_tokens_per_s),
        format!("{:.0}", arm.tokens_per_s),
        or_dash(arm.throughput_kept, percent),
        refused(&arm.noisy),
        or_dash(arm.queues.engine_running_p50, |count| format!("{count:.0}")),
        or_dash(waiting, |at_most_2| percent(1.0 - at_most_2)),
        format!("{:.0}", arm.client_lag_p99_ms),
    ]
}

/// What each of several floods got of the service, as a multiple of what its weight is due.
fn shares(report: &Report) -> Table {
    let noisy = report.workload.of(Role::Noisy);
    let names = noisy.map(|(_, party)| format!("{} (weight {})", party.load.tenant, party.weight));
    let header = ["arm", "Jain, 10 s"]
        .map(str::to_owned)
        .into_iter()
        .chain(names);
    let competing = report.arms.iter().filter(|arm| arm.jain.is_some());
    let rows = competing.map(|arm| {
        let jain = or_dash(arm.jain, |jain| format!("{jain:.3}"));
        let own = arm.shares.iter().map(|share| format!("{share:.2} of due"));
        [arm.arm.name().to_owned(), jain]
            .into_iter()
            .chain(own)
            .collect()
    });
    table(header, rows)
}

fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or("-".to_owned(), show)
}

/// Which part of the requests was refused.
pub(crate) fn refused(service: &Service) -> String {
    match (service.refusals(), service.sent) {
        (_, 0) => "-".to_owned(),
        (0, _) => "0".to_owned(),
        (refused, sent) => format!("{:.0}%", refused as f64 / sent as f64 * 100.0),
    }
}

/// In milliseconds.
pub(crate) fn quantile(quantile: Quantile) -> String {
    let sign = sign(quantile);
    or_dash(quantile.ms, |ms| match ms {
        ms if ms < 100.0 => format!("{sign}{ms:.1}"),
        ms => format!("{sign}{ms:.0}"),
    })
}

fn sign(quantile: Quantile) -> &'static str {
    if quantile.at_least { ">= " } else { "" }
}
