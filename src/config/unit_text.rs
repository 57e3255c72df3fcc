//! Durations and sizes as the values of keys.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    read::value_in_words,
    units::{DURATION_HELP, SIZE_HELP, UnitError, parse_duration, parse_size},
};

/// A duration in a file (`"30s"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Value")]
#[schemars(inline, with = "String", title = "duration")]
pub struct DurationText(pub Duration);

/// A number of bytes in a file (`"8GiB"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Value")]
#[schemars(inline, with = "String", title = "size")]
pub struct SizeText(pub u64);

impl TryFrom<Value> for DurationText {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let expected = r#"a duration such as "30s""#;
        with_unit(&value, parse_duration, DURATION_HELP, expected).map(Self)
    }
}

impl TryFrom<Value> for SizeText {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        with_unit(&value, parse_size, SIZE_HELP, r#"a size such as "8GiB""#).map(Self)
    }
}

/// The error carries its help after a line break; `read` takes it apart again.
fn with_unit<T>(
    value: &Value,
    parse: fn(&str) -> Result<T, UnitError>,
    help: &str,
    expected: &str,
) -> Result<T, String> {
    match value {
        Value::String(text) => {
            parse(text).map_err(|UnitError { message, help }| format!("{message}\n{help}"))
        }
        Value::Number(number) => Err(format!("`{number}` has no unit\n{help}")),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            let found = value_in_words(value);
            Err(format!("expected {expected}, found {found}"))
        }
    }
}
