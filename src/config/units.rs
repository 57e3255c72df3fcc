//! Durations and sizes as people write them: `1h30m`, `250ms`, `8GiB`.
//!
//! A number without a unit is refused: whether `30` means seconds or milliseconds is a thing two
//! people have different answers to. Only whole numbers are read, so that nothing is rounded.

use std::time::Duration;

/// Why a text is not a duration or a size, and how to write one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UnitError {
    /// What is wrong with the text.
    pub message: String,
    /// How to write what was probably meant.
    pub help: String,
}

impl UnitError {
    fn new(message: String, help: &str) -> Self {
        let help = help.to_owned();
        Self { message, help }
    }
}

/// Largest first, which is also the order they are written in.
const DURATIONS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Binary before decimal: `8GiB` is what memory is counted in.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// How to write a duration.
pub(crate) const DURATION_HELP: &str =
    r#"write a whole number and a unit (ms, s, m, h, d), such as "30s", "250ms" or "1h30m""#;
/// How to write a size.
pub(crate) const SIZE_HELP: &str = r#"write a whole number and a unit (KiB, MiB, GiB, TiB, KB, MB, GB, TB, B), such as "8GiB" or "512MiB""#;

/// Reads a duration.
///
/// # Errors
/// Says what is wrong with the text and gives an example.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = |message| UnitError::new(message, DURATION_HELP);
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(error("a duration is missing".to_owned()));
    }
    let mut total: u64 = 0;
    let mut allowed = &DURATIONS[..];
    while !rest.is_empty() {
        let (count, unit, after) = number_and_unit(rest, text).map_err(error)?;
        let Some(at) = allowed.iter().position(|(name, _)| *name == unit) else {
            let is_known = DURATIONS.iter().any(|(name, _)| *name == unit);
            return Err(error(match is_known {
                true => format!("`{unit}` stands out of order in {text:?}"),
                false => format!("`{unit}` is not a unit of time"),
            }));
        };
        total = count
            .checked_mul(allowed[at].1)
            .and_then(|ms| total.checked_add(ms))
            .ok_or_else(|| error(format!("{text:?} is too long")))?;
        allowed = &allowed[at + 1..];
        rest = after;
    }
    Ok(Duration::from_millis(total))
}

/// Reads a number of bytes.
///
/// # Errors
/// Says what is wrong with the text and gives an example.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let error = |message| UnitError::new(message, SIZE_HELP);
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(error("a size is missing".to_owned()));
    }
    let (count, unit, rest) = number_and_unit(trimmed, text).map_err(error)?;
    if !rest.is_empty() {
        return Err(error(format!("{text:?} has something after its unit")));
    }
    let Some((_, bytes)) = SIZES.iter().find(|(name, _)| *name == unit) else {
        // `8gb`, `8G` and `8Gi` all have one likely reading.
        let meant = |name: &str| {
            name.eq_ignore_ascii_case(unit)
                || name.trim_end_matches('B').eq_ignore_ascii_case(unit)
                || name.trim_end_matches("iB").eq_ignore_ascii_case(unit)
        };
        let likely = SIZES.iter().find(|(name, _)| meant(name));
        let help = likely.map(|(name, _)| format!(r#"write "{count}{name}""#));
        let message = format!("`{unit}` is not a unit of size");
        return Err(UnitError::new(
            message,
            help.as_deref().unwrap_or(SIZE_HELP),
        ));
    };
    let bytes = count.checked_mul(*bytes);
    bytes.ok_or_else(|| error(format!("{text:?} is too large")))
}

/// Splits `30s` into its number, its unit and what follows, or says why it can't be.
fn number_and_unit<'t>(rest: &'t str, text: &str) -> Result<(u64, &'t str, &'t str), String> {
    let (digits, after) = split_while(rest, |c| c.is_ascii_digit());
    if digits.is_empty() {
        return Err(format!("{text:?} does not start with a number"));
    }
    if after.starts_with(['.', ',']) {
        return Err(format!("{text:?} is not a whole number of its unit"));
    }
    let (unit, after) = split_while(after.trim_start(), char::is_alphabetic);
    if unit.is_empty() {
        return Err(format!("`{digits}` has no unit"));
    }
    let count = digits.parse();
    let count = count.map_err(|_| format!("{text:?} is too large"))?;
    Ok((count, unit, after.trim_start()))
}

fn split_while(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// Writes a number of bytes so that [`parse_size`] reads the same.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    in_largest(bytes, &SIZES)
}

/// Writes a duration so that [`parse_duration`] reads the same, to the millisecond.
pub(crate) fn format_duration(time: Duration) -> String {
    in_largest(
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        &DURATIONS,
    )
}

/// In the largest unit of which it is a whole number; the smallest stands last.
fn in_largest(amount: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, unit): &&(&str, u64)| amount >= *unit && amount.is_multiple_of(*unit);
    let found = units.iter().find(fits).or(units.last());
    found.map_or_else(
        || amount.to_string(),
        |(name, unit)| format!("{}{name}", amount / unit),
    )
}

/// Reads `80%`, `0.8` or `80` as a share of one; for command lines.
///
/// # Errors
/// Says how to write it.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text.trim(), 1.0),
    };
    let share = number.parse().unwrap_or(f64::NAN) / scale;
    // As in the Python KVWarden: a plain 80 means 80%.
    let share = if share > 1.0 { share / 100.0 } else { share };
    if share > 0.0 && share <= 1.0 {
        return Ok(share);
    }
    Err(r#"write a share above 0 and up to 1, such as "0.8" or "80%""#.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        for (text, ms) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            (" 1h 30m ", 5_400_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("512 MiB", 512 << 20),
            ("2GB", 2_000_000_000),
            ("1B", 1),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_texts_say_what_is_wrong() {
        for (text, message) in [
            ("", "a duration is missing"),
            ("30", "`30` has no unit"),
            ("soon", r#""soon" does not start with a number"#),
            ("-5s", r#""-5s" does not start with a number"#),
            ("1.5s", r#""1.5s" is not a whole number of its unit"#),
            ("5min", "`min` is not a unit of time"),
            ("5s1h", r#"`h` stands out of order in "5s1h""#),
            (
                "99999999999999999999s",
                r#""99999999999999999999s" is too large"#,
            ),
            (
                "999999999999999999d",
                r#""999999999999999999d" is too long"#,
            ),
        ] {
            let error = parse_duration(text).unwrap_err();
            assert_eq!(error.message, message);
            assert!(error.help.contains(r#""30s""#), "{}", error.help);
        }
        assert_eq!(parse_size("30").unwrap_err().message, "`30` has no unit");
    }

    #[test]
    fn misspelt_size_is_answered_with_the_right_one() {
        let help = |text| parse_size(text).unwrap_err().help;
        assert_eq!(help("8gb"), r#"write "8GB""#);
        assert_eq!(help("8G"), r#"write "8GiB""#);
        assert_eq!(help("8Gi"), r#"write "8GiB""#);
        assert!(help("8parsecs").contains("8GiB"));
    }

    #[test]
    fn share_of_the_gpu_is_read_with_and_without_percent() {
        assert_eq!(parse_share("80%"), Ok(0.8));
        assert_eq!(parse_share("0.8"), Ok(0.8));
        assert_eq!(parse_share("80"), Ok(0.8));
        for wrong in ["", "0", "-1", "300%%", "nan", "inf", "20000"] {
            assert!(parse_share(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_size_survives_being_written(bytes: u64) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn every_duration_survives_being_written(ms: u64) {
            let time = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(time)), Ok(time));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text: String) {
            let _ = (parse_duration(&text), parse_size(&text), parse_share(&text));
        }
    }
}
