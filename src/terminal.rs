//! How commands print: tables, colours, amounts.
//!
//! Everything is written with its colours; `anstream` takes them out where nobody sees them.

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};
use kvwarden_policy::{lifecycle::State, residency::Until};

pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const CARE: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const QUIET: Style = Style::new().dimmed();
pub(crate) const HEAD: Style = Style::new().bold();

/// A table without lines.
pub(crate) fn table(header: impl IntoIterator<Item = impl ToString>) -> Table {
    let bold = |name| Cell::new(name).add_attribute(Attribute::Bold);
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .enforce_styling()
        .set_header(header.into_iter().map(bold));
    // Blanks behind a styled text could not be trimmed.
    table.style_text_only();
    table
}

/// A number, to the right.
pub(crate) fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// A text, or a dash.
pub(crate) fn maybe(value: Option<impl ToString>) -> Cell {
    value.map_or_else(|| Cell::new("-"), Cell::new)
}

/// A model's state in its colour.
pub(crate) fn state(state: State) -> Cell {
    let cell = Cell::new(state);
    match state {
        State::Ready => cell.fg(Color::Green),
        State::Broken { .. } => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        State::Backoff { .. } => cell.fg(Color::Yellow),
        State::Adopting
        | State::Starting { .. }
        | State::Waking { .. }
        | State::Verifying { .. }
        | State::Fetching
        | State::Waiting { .. } => cell.fg(Color::Cyan),
        State::Cold
        | State::Asleep { .. }
        | State::Draining { .. }
        | State::Demoting { .. }
        | State::Stopping => cell.add_attribute(Attribute::Dim),
    }
}

/// What an engine without a place waits for.
pub(crate) fn waits_for(until: Until) -> &'static str {
    match until {
        Until::Changed => "(others are changing)",
        Until::Worth => "(not yet worth a swap)",
        Until::Room => "(no room)",
        Until::Device => "(its GPUs are not here)",
    }
}

/// The table's lines without blanks at their ends.
pub(crate) fn lines(table: &Table) -> String {
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// Bytes as people say them; rounded down, so that what is free is not overstated.
pub(crate) fn bytes(bytes: u64) -> String {
    let (unit, shift) = match bytes {
        0..0x400 => return format!("{bytes} B"),
        0x400..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 30),
        0x100_0000_0000.. => ("TiB", 40),
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    if tenths < 1000 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", tenths / 10)
    }
}

/// Seconds as people say them.
pub(crate) fn seconds(seconds: f64) -> String {
    // A float that is no duration (negative, not a number) counts as none.
    let whole = std::time::Duration::try_from_secs_f64(seconds).map_or(0, |time| time.as_secs());
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match whole {
        0..60 => format!("{:.1} s", seconds.max(0.0)),
        60..3600 => format!("{minutes} min {} s", whole % 60),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// `1 model`, `2 models`.
pub(crate) fn count(number: usize, thing: &str) -> String {
    count_of(number, thing, &format!("{thing}s"))
}

/// As [`count`], for words that take no `s`.
pub(crate) fn count_of(number: usize, one: &str, several: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{number} {several}"),
    }
}

/// A number with its thousands apart.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_said_as_people_say_them() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((80 << 30) - 1), "79.9 GiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(bytes(500 << 30), "500 GiB");
        assert_eq!(bytes(9 << 50), "9216 TiB");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
    }

    #[test]
    fn durations_keep_two_units() {
        assert_eq!(seconds(0.24), "0.2 s");
        assert_eq!(seconds(75.0), "1 min 15 s");
        assert_eq!(seconds(3661.0), "1 h 1 min");
        assert_eq!(seconds(200_000.0), "2 d 7 h");
        assert_eq!(seconds(-1.0), "0.0 s");
    }
}
