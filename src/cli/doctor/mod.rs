//! `kvwarden doctor`: what on this machine would keep kvwarden or its engines from working, and
//! what to do about it.
//!
//! Looking and judging are apart. [`machine`] takes the readings; each function in [`checks`] turns
//! a few of them into one [`Check`] and touches nothing itself, so its tests need no machine. The
//! doctor changes nothing, installs nothing, asks nobody on the network; of what it tries, an empty
//! cgroup and a listening port, nothing is left.

mod checks;
mod machine;

use std::{
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;

use crate::terminal::{self, BAD, CARE, GOOD};

/// Options of `kvwarden doctor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit code: 0 where there is no problem, 1 where there is one.")]
pub struct DoctorArgs {
    /// The configuration that shall be served; what it needs is then looked for
    #[arg(long, short, value_name = "FILE", env = "KVWARDEN_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    finding: String,
    /// A command or a sentence.
    fix: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// Something will not work.
    Problem,
    /// Nothing here depends on it.
    NotApplicable,
}

/// Exit code 0 where there is no problem, 1 where there is one.
///
/// # Errors
/// When the findings can't be printed.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let checks = checks::all(args.config.as_deref());
    let mut out = anstream::stdout().lock();
    if args.json {
        let is_ok = number_of(&checks, State::Problem) == 0;
        writeln!(out, "{:#}", json!({ "ok": is_ok, "checks": checks }))?;
    } else {
        render(&checks, io::stdout().is_terminal(), &mut out)?;
    }
    Ok(match number_of(&checks, State::Problem) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn number_of(checks: &[Check], state: State) -> usize {
    checks.iter().filter(|check| check.state == state).count()
}

fn render(checks: &[Check], is_terminal: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).enforce_styling();
    table.style_text_only();
    if is_terminal {
        // Long findings wrap within their column.
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for check in checks {
        table.add_row([
            paint(Cell::new(check.state.mark(is_terminal)), check.state),
            Cell::new(check.name),
            Cell::new(&check.finding),
        ]);
        if let Some(fix) = &check.fix {
            let fix = Cell::new(format!("fix: {fix}")).add_attribute(Attribute::Bold);
            table.add_row([Cell::new(""), Cell::new(""), fix]);
        }
    }
    write!(out, "{}\n{}\n", terminal::lines(&table), summary(checks))
}

fn summary(checks: &[Check]) -> String {
    let problems = number_of(checks, State::Problem);
    let warnings = number_of(checks, State::Warning);
    match (problems, warnings) {
        (0, 0) => format!("{GOOD}all is well{GOOD:#}"),
        (0, _) => format!(
            "{CARE}no problem, {}{CARE:#}",
            terminal::count(warnings, "warning")
        ),
        (_, _) => format!(
            "{BAD}{}{BAD:#}, {}",
            terminal::count(problems, "problem"),
            terminal::count(warnings, "warning")
        ),
    }
}

fn paint(cell: Cell, state: State) -> Cell {
    match state {
        State::Ok => cell.fg(Color::Green),
        State::Warning => cell.fg(Color::Yellow),
        State::Problem => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        State::NotApplicable => cell.add_attribute(Attribute::Dim),
    }
}

// === impl State ===

impl State {
    /// A symbol on a terminal, a word for `grep`.
    fn mark(self, is_terminal: bool) -> &'static str {
        match (self, is_terminal) {
            (Self::Ok, true) => "✓",
            (Self::Warning, true) => "!",
            (Self::Problem, true) => "✗",
            (Self::NotApplicable, true) => "-",
            (Self::Ok, false) => "ok",
            (Self::Warning, false) => "warning",
            (Self::Problem, false) => "problem",
            (Self::NotApplicable, false) => "n/a",
        }
    }
}

// === impl Check ===

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(name, State::Ok, finding, None)
    }

    fn not_applicable(name: &'static str, finding: impl Into<String>) -> Self {
        Self::new(name, State::NotApplicable, finding, None)
    }

    fn warning(name: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, State::Warning, finding, Some(fix.into()))
    }

    fn problem(name: &'static str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, State::Problem, finding, Some(fix.into()))
    }

    fn new(
        name: &'static str,
        state: State,
        finding: impl Into<String>,
        fix: Option<String>,
    ) -> Self {
        Self {
            name,
            state,
            finding: finding.into(),
            fix,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(checks: &[Check], is_terminal: bool) -> String {
        let mut out = Vec::new();
        render(checks, is_terminal, &mut out).unwrap();
        String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap()
    }

    #[test]
    fn piped_findings_are_ascii_words_with_their_fix_below() {
        let checks = [
            Check::ok("clock", "is right"),
            Check::problem("memory", "none left", "buy some"),
        ];
        let text = printed(&checks, false);
        assert!(text.is_ascii(), "{text}");
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["ok", "clock", "is", "right"]);
        assert_eq!(lines[1], ["problem", "memory", "none", "left"]);
        assert_eq!(lines[2], ["fix:", "buy", "some"]);
        assert!(text.ends_with("\n1 problem, 0 warnings\n"), "{text}");
    }

    #[test]
    fn terminal_gets_symbols() {
        assert!(printed(&[Check::ok("clock", "is right")], true).contains("✓"));
    }

    #[test]
    fn summary_counts_what_needs_a_hand() {
        let summary = |checks: &[Check]| anstream::adapter::strip_str(&summary(checks)).to_string();
        assert_eq!(summary(&[Check::ok("a", "")]), "all is well");
        let warned = [Check::warning("a", "", ""), Check::not_applicable("b", "")];
        assert_eq!(summary(&warned), "no problem, 1 warning");
    }
}
