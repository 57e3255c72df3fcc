//! Durations and sizes as the values of keys.

use std::{fmt, marker::PhantomData, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::units::{DURATION_HELP, SIZE_HELP, UnitError, parse_duration, parse_size};

/// A duration in a file (`"30s"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationText(pub Duration);

/// A number of bytes in a file (`"8GiB"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeText(pub u64);

/// A value that is written as text with a unit. The error carries its help after a line break;
/// `read` takes it apart again.
struct WithUnit<T> {
    parse: fn(&str) -> Result<T, UnitError>,
    expecting: &'static str,
    help: &'static str,
    value: PhantomData<T>,
}

impl<T> WithUnit<T> {
    fn bare<E: de::Error>(&self, number: impl fmt::Display) -> E {
        E::custom(format!("`{number}` has no unit\n{}", self.help))
    }
}

impl<T> de::Visitor<'_> for WithUnit<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let wrapped = |error: UnitError| E::custom(format!("{}\n{}", error.message, error.help));
        (self.parse)(text).map_err(wrapped)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Err(self.bare(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Err(self.bare(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        Err(self.bare(number))
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = r#"a duration such as "30s""#;
        let (parse, help, value) = (parse_duration as fn(&str) -> _, DURATION_HELP, PhantomData);
        deserializer
            .deserialize_any(WithUnit {
                parse,
                expecting,
                help,
                value,
            })
            .map(Self)
    }
}

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = r#"a size such as "8GiB""#;
        let (parse, help, value) = (parse_size as fn(&str) -> _, SIZE_HELP, PhantomData);
        deserializer
            .deserialize_any(WithUnit {
                parse,
                expecting,
                help,
                value,
            })
            .map(Self)
    }
}

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "title": "duration", "pattern": r"^(\d+(d|h|ms|m|s))+$" })
    }
}

impl JsonSchema for SizeText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "title": "size", "pattern": r"^\d+([KMGT]i?)?B$" })
    }
}
