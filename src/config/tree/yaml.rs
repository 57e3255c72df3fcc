//! YAML, by the spanned nodes of serde-saphyr.

use std::{fmt, ops::Range};

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::{Document, KeyPath, Places, Problem, float, syntax};

/// Reads YAML, anchors and merge keys included. Like PyYAML it lets the last of several equal keys
/// count, because files of the Python KVWarden have to load as they are.
pub(crate) fn parse_yaml(text: &str) -> Document {
    let mut document = Document {
        places: Places::new(text),
        ..Document::default()
    };
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::PassThrough };
    match serde_saphyr::from_str_with_options::<Node>(text, options) {
        Ok(Node(root)) => document.value = yaml_value(root.value, &KeyPath::root(), &mut document),
        Err(error) => document.malformed = vec![yaml_syntax(&document.places, &error)],
    }
    // An empty document is an empty table.
    if document.value.is_null() {
        document.value = Value::Object(Map::new());
    }
    document
}

fn yaml_syntax(places: &Places, error: &serde_saphyr::Error) -> Problem {
    let error = error.without_snippet();
    let byte = |location: &serde_saphyr::Location| {
        let number = |number| usize::try_from(number).ok();
        let start = places.offset(number(location.line())?, number(location.column())?)?;
        Some(start..start)
    };
    let location = error.location();
    let span = location.and_then(|location| byte_range(&location).or_else(|| byte(&location)));
    let text = error.to_string();
    // The position is told separately; the message ends with it.
    let message = text.split(" at line ").next().unwrap_or(&text);
    syntax(places, span, message)
}

fn byte_range(location: &serde_saphyr::Location) -> Option<Range<usize>> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len().unwrap_or(0)).ok()?;
    Some(start..start + length)
}

/// One node of a YAML document and where it stands.
struct Node(Spanned<Raw>);

enum Raw {
    Scalar(Value),
    List(Vec<Node>),
    Table(Vec<(Spanned<String>, Node)>),
}

fn yaml_value(raw: Raw, path: &KeyPath, document: &mut Document) -> Value {
    match raw {
        Raw::Scalar(value) => value,
        Raw::List(nodes) => {
            let mut list = Vec::with_capacity(nodes.len());
            for (index, Node(node)) in nodes.into_iter().enumerate() {
                let here = path.index(index);
                if let Some(span) = byte_range(&node.referenced) {
                    document.places.insert(here.clone(), span.clone(), span);
                }
                list.push(yaml_value(node.value, &here, document));
            }
            Value::Array(list)
        }
        Raw::Table(entries) => {
            let mut map = Map::new();
            for (key, Node(node)) in entries {
                let here = path.key(&key.value);
                let spans = (byte_range(&key.referenced), byte_range(&node.referenced));
                if let (Some(key), Some(value)) = spans {
                    document.places.insert(here.clone(), key, value);
                }
                let value = yaml_value(node.value, &here, document);
                if map.insert(key.value, value).is_some() {
                    document.repeated.push(here);
                }
            }
            Value::Object(map)
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> de::Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(float(&value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Raw::List(nodes))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Table(entries))
    }
}
