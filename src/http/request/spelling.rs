//! Numbers and flags as engines read them, in all the ways in which one of them does.
//!
//! vLLM and SGLang read with pydantic, which takes `4.0`, `"4"` and `1` for `true`; llama.cpp cuts `4.7`.
//! What is read here is only what kvwarden itself goes by: the field goes on as it was written, and what
//! none can read its engine refuses.

use std::borrow::Cow;

use serde_json::value::RawValue;

/// A whole number, rounded up and as near as one can be told. None: nobody could read it as one.
pub(super) fn whole(raw: &RawValue) -> Option<i64> {
    let text = text(raw)?;
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    match text {
        "true" => return Some(1),
        "false" => return Some(0),
        _ => {}
    }
    let number: f64 = text.replace('_', "").parse().ok()?;
    (!number.is_nan()).then(|| saturating(number.ceil()))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a number that is too large stands for the largest one"
)]
fn saturating(number: f64) -> i64 {
    number as i64
}

/// Yes or no. None: nobody could read it as one.
pub(super) fn flag(raw: &RawValue) -> Option<bool> {
    let text = text(raw)?;
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "1.0" | "t" | "yes" | "y" | "on" => Some(true),
        "false" | "0" | "0.0" | "f" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}

/// What a string says, or a number or a word as it is written.
pub(super) fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let json = raw.get();
    match json.as_bytes().first() {
        Some(b'[' | b'{') | None => None,
        Some(b'"') if json.contains('\\') => serde_json::from_str(json).ok().map(Cow::Owned),
        Some(b'"') => json.get(1..json.len() - 1).map(Cow::Borrowed),
        Some(_) => Some(Cow::Borrowed(json)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn a_whole_number_is_read_however_it_is_spelt() {
        for (json, number) in [
            ("4", 4),
            ("4.0", 4),
            ("4e0", 4),
            ("1e3", 1000),
            ("-1", -1),
            ("-1.0", -1),
            ("\"16\"", 16),
            ("\" 1_6 \"", 16),
            ("\"+16.0\"", 16),
            (r#""\u0031""#, 1),
            ("true", 1),
            ("4.2", 5),
            ("1e30", i64::MAX),
            ("-1e999", i64::MIN),
        ] {
            assert_eq!(whole(&raw(json)), Some(number), "{json}");
        }
        for json in ["[4]", "{}", "\"\"", "\"many\"", "\"NaN\""] {
            assert_eq!(whole(&raw(json)), None, "{json}");
        }
    }

    #[test]
    fn yes_is_read_however_it_is_spelt() {
        for json in ["true", "1", "1.0", "\"true\"", "\"Yes\"", "\"1\""] {
            assert_eq!(flag(&raw(json)), Some(true), "{json}");
        }
        for json in ["false", "0", "0.0", "\"off\"", "\"F\""] {
            assert_eq!(flag(&raw(json)), Some(false), "{json}");
        }
        for json in ["2", "\"maybe\"", "[true]", "{}"] {
            assert_eq!(flag(&raw(json)), None, "{json}");
        }
    }
}
