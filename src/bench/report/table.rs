//! The report for people.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};

use super::{ArmReport, Report};
use crate::bench::stats::Quantile;

const HEADER: [&str; 12] = [
    "arm",
    "quiet p50 ms",
    "quiet p99 ms",
    "x solo",
    "quiet ok/sent",
    "quiet refused",
    "noisy tok/s",
    "all tok/s",
    "kept",
    "noisy refused",
    "in engine",
    "waiting in it p99",
];

/// Prints the table and what to know about it.
///
/// # Errors
/// When the output is closed.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let label = report
        .label
        .map_or(String::new(), |label| format!("{label}: "));
    writeln!(
        out,
        "{label}{}, flood {:.2}x of {:.2} requests/s ({})",
        report.engine, report.flood, report.capacity.requests_per_s, report.capacity.how
    )?;
    writeln!(
        out,
        "TTFT from the planned moment; {} round(s), window {} s to {} s in every arm, seed {}, {}",
        report.rounds,
        report.window.from.as_secs_f64(),
        report.window.until.as_secs_f64(),
        report.seed,
        report.date
    )?;
    writeln!(out, "{}", table(report))?;
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

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_header(HEADER);
    for arm in &report.arms {
        table.add_row(row(arm));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(arm: &ArmReport) -> [String; 12] {
    let share = |part: usize, whole: usize| match (part, whole) {
        (_, 0) => "-".to_owned(),
        (0, _) => "0".to_owned(),
        (part, whole) => format!("{:.0}%", part as f64 / whole as f64 * 100.0),
    };
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
    let ttft = arm.quiet.ttft;
    [
        arm.arm.name().to_owned(),
        quantile(ttft.p50),
        quantile(ttft.p99),
        ratio(arm.quiet_p99_over_solo, ttft.p99.at_least),
        format!("{}/{}", arm.quiet.ok, arm.quiet.sent),
        share(arm.quiet.refusals(), arm.quiet.sent),
        format!("{:.0}", arm.noisy.output_tokens_per_s),
        format!("{:.0}", arm.tokens_per_s),
        arm.throughput_kept
            .map_or("-".to_owned(), |kept| format!("{:.1}%", kept * 100.0)),
        share(arm.noisy.refusals(), arm.noisy.sent),
        number(arm.queues.engine_running_p50),
        number(arm.queues.engine_waiting_p99),
    ]
}

fn quantile(quantile: Quantile) -> String {
    let sign = if quantile.at_least { ">= " } else { "" };
    quantile.ms.map_or("-".to_owned(), |ms| match ms {
        ms if ms < 100.0 => format!("{sign}{ms:.1}"),
        ms => format!("{sign}{ms:.0}"),
    })
}

fn ratio(value: Option<f64>, at_least: bool) -> String {
    let sign = if at_least { ">= " } else { "" };
    value.map_or("-".to_owned(), |value| format!("{sign}{value:.2}"))
}
