//! How durations and sizes stand in a file, for `#[serde(with = "..")]`: the schema goes by the same name.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize as _, Deserializer, Serialize, Serializer, de, ser};
use serde_json::Value;

use super::{
    read::value_in_words,
    units::{
        DURATION_HELP, SIZE_HELP, UnitError, format_duration, format_size, parse_duration,
        parse_size,
    },
};

/// A duration (`"30s"`).
#[derive(JsonSchema)]
#[schemars(inline, with = "String", title = "duration")]
pub(super) struct DurationText;

/// A number of bytes (`"8GiB"`).
#[derive(JsonSchema)]
#[schemars(inline, with = "String", title = "size")]
pub(super) struct SizeText;

impl DurationText {
    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: From<Duration>>(
        from: D,
    ) -> Result<T, D::Error> {
        let expected = r#"a duration such as "30s""#;
        with_unit(from, parse_duration, DURATION_HELP, expected).map(T::from)
    }

    pub(super) fn serialize<S: Serializer>(
        time: &(impl Copy + Into<Option<Duration>>),
        to: S,
    ) -> Result<S::Ok, S::Error> {
        (*time).into().map(format_duration).serialize(to)
    }
}

impl SizeText {
    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
        from: D,
    ) -> Result<T, D::Error> {
        let bytes = with_unit(from, parse_size, SIZE_HELP, r#"a size such as "8GiB""#)?;
        T::try_from(bytes).map_err(|_| de::Error::custom("it is too large for this machine"))
    }

    pub(super) fn serialize<S: Serializer>(
        bytes: &impl Serialize,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes = serde_json::to_value(bytes).map_err(ser::Error::custom)?;
        bytes.as_u64().map(format_size).serialize(to)
    }
}

/// Whether this is none of whatever it counts: as a number, a duration or a size.
pub(super) fn is_zero(value: &Value) -> bool {
    *value == 0 || *value == "0ms" || *value == "0B"
}

/// The error carries its help after a line break; `read` takes it apart again.
fn with_unit<'de, T, D: Deserializer<'de>>(
    from: D,
    parse: fn(&str) -> Result<T, UnitError>,
    help: &str,
    expected: &str,
) -> Result<T, D::Error> {
    let told = match Value::deserialize(from)? {
        Value::String(text) => match parse(&text) {
            Ok(value) => return Ok(value),
            Err(UnitError { message, help }) => format!("{message}\n{help}"),
        },
        Value::Number(number) => format!("`{number}` has no unit\n{help}"),
        value @ (Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
            format!("expected {expected}, found {}", value_in_words(&value))
        }
    };
    Err(de::Error::custom(told))
}
