//! TOML, by the spanned tables of the `toml` crate.

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::{Document, KeyPath, Places, float, syntax};

/// Reads TOML. The parser goes on after a mistake, so that all of them are found.
pub(crate) fn parse_toml(text: &str) -> Document {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut places = Places::new(text);
    let value = toml_table(table.get_ref(), &KeyPath::root(), &mut places);
    let problem = |error: &toml::de::Error| syntax(&places, error.span(), error.message());
    let mut malformed: Vec<_> = errors.iter().map(problem).collect();
    // The parser trips more than once over one mistake; the first time tells it best.
    malformed.sort_by_key(|problem| problem.at);
    malformed.dedup_by_key(|problem| problem.at.map(|(line, _)| line));
    Document {
        value,
        places,
        malformed,
        ..Document::default()
    }
}

fn toml_table(table: &DeTable<'_>, path: &KeyPath, places: &mut Places) -> Value {
    let mut map = Map::new();
    for (key, value) in table {
        let here = path.key(key.get_ref());
        places.insert(here.clone(), key.span(), value.span());
        let value = toml_value(value.get_ref(), &here, places);
        map.insert(key.get_ref().to_string(), value);
    }
    Value::Object(map)
}

fn toml_value(value: &DeValue<'_>, path: &KeyPath, places: &mut Places) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(digits) => integer(digits.as_str(), digits.radix()),
        DeValue::Float(digits) => float(digits.as_str()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Table(table) => toml_table(table, path, places),
        DeValue::Array(elements) => {
            let element = |(index, element): (usize, &toml::Spanned<DeValue<'_>>)| {
                let here = path.index(index);
                places.insert(here.clone(), element.span(), element.span());
                toml_value(element.get_ref(), &here, places)
            };
            Value::Array(elements.iter().enumerate().map(element).collect())
        }
    }
}

/// A number that fits nowhere stays text, and is refused as one.
fn integer(digits: &str, radix: u32) -> Value {
    let signed = i64::from_str_radix(digits, radix).map(Value::from);
    let unsigned = || u64::from_str_radix(digits, radix).map(Value::from);
    signed
        .or_else(|_| unsigned())
        .unwrap_or_else(|_| Value::from(digits))
}
