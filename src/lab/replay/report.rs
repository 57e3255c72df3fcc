//! The report for people.

use std::io::{self, Write};

use comfy_table::Cell;

use super::{PolicyReport, Report};
use crate::cli::show;

/// Prints the table.
///
/// # Errors
/// When the output is closed.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let requests = show::count(report.requests, "request");
    let models = show::count(report.models, "model");
    let (label, source) = (report.label, &report.source);
    let lasts = show::seconds(report.lasts_s);
    writeln!(out, "{label}: {source}, {requests} for {models} in {lasts}")?;
    let mut table = show::table([
        "POLICY", "STALL", "TIMES", "P50", "P99", "LONGEST", "STARTS", "WAKES",
    ]);
    let first = report.policies.first().map_or(0.0, |policy| policy.stall_s);
    for policy in &report.policies {
        table.add_row(row(policy, first));
    }
    write!(out, "{}", show::lines(&table))
}

fn row(policy: &PolicyReport, first: f64) -> [Cell; 8] {
    let seconds = |seconds| show::number(show::seconds(seconds));
    let times = (first > 0.0).then(|| format!("{:.2}", policy.stall_s / first));
    [
        Cell::new(policy.policy),
        seconds(policy.stall_s),
        show::maybe(times),
        seconds(policy.p50_s),
        seconds(policy.p99_s),
        seconds(policy.max_s),
        show::number(policy.starts),
        show::number(policy.wakes),
    ]
}
