//! What keys a file may have, asked of its types: for suggestions and for the reference.

use std::fmt;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use super::path::{KeyPath, Step};

/// The JSON schema of a file's type.
pub(crate) struct Schema(Value);

impl Schema {
    /// The schema of `T`.
    pub(crate) fn of<T: JsonSchema>() -> Self {
        let generator = SchemaSettings::draft2020_12().into_generator();
        Self(generator.into_root_schema_for::<T>().to_value())
    }

    /// What may stand at `path`; none where no such path is known.
    pub(crate) fn at(&self, path: &KeyPath) -> Option<&Value> {
        path.steps()
            .iter()
            .try_fold(&self.0, |node, step| self.child(node, step))
    }

    fn child<'s>(&'s self, node: &'s Value, step: &Step) -> Option<&'s Value> {
        let child = match step {
            Step::Index(_) => node.get("items"),
            Step::Key(key) => {
                let named = node.get("properties").and_then(|keys| keys.get(key));
                named.or_else(|| node.get("additionalProperties"))
            }
        };
        self.resolve(child?)
    }

    fn resolve<'s>(&'s self, node: &'s Value) -> Option<&'s Value> {
        match node.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.0.pointer(reference.strip_prefix('#')?),
            None => Some(node),
        }
    }

    /// What `node` comes to, if that is a table with keys of its own.
    fn table<'s>(&'s self, node: Option<&'s Value>) -> Option<&'s Value> {
        self.resolve(node?).filter(|node| !keys_of(node).is_empty())
    }

    /// The keys of the table at `path`; empty where a table's keys are the author's own.
    pub(crate) fn keys(&self, path: &KeyPath) -> Vec<&str> {
        self.at(path).map(keys_of).unwrap_or_default()
    }

    /// Whether a table stands at `path`.
    pub(crate) fn is_table(&self, path: &KeyPath) -> bool {
        let of_type = |node: &Value| node.get("type").and_then(Value::as_str) == Some("object");
        self.at(path).is_some_and(of_type)
    }

    /// Every table of the file.
    pub(crate) fn tables(&self) -> Vec<Table<'_>> {
        let mut tables = vec![Table {
            heading: Heading::Top,
            node: &self.0,
        }];
        let properties = self.0.get("properties").and_then(Value::as_object);
        for (key, node) in properties.into_iter().flatten() {
            let found = [
                (Heading::Table(key), self.table(Some(node))),
                (
                    Heading::Named(key),
                    self.table(node.get("additionalProperties")),
                ),
                (Heading::List(key), self.table(node.get("items"))),
            ];
            let present = |(heading, node): (_, Option<_>)| {
                Some(Table {
                    heading,
                    node: node?,
                })
            };
            tables.extend(found.into_iter().filter_map(present));
        }
        tables
    }
}

fn keys_of(node: &Value) -> Vec<&str> {
    let properties = node.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
        .collect()
}

/// One table of the file.
pub(crate) struct Table<'s> {
    /// Where it stands.
    pub(crate) heading: Heading<'s>,
    /// Its schema.
    pub(crate) node: &'s Value,
}

impl Table<'_> {
    /// Its keys.
    pub(crate) fn keys(&self) -> Vec<&str> {
        keys_of(self.node)
    }
}

/// Where a table stands, and how its heading is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heading<'s> {
    /// Above all headings.
    Top,
    /// `[auth]`
    Table(&'s str),
    /// `[tenants.NAME]`
    Named(&'s str),
    /// `[[models]]`
    List(&'s str),
}

impl fmt::Display for Heading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => f.write_str("Top of the file"),
            Self::Table(key) => write!(f, "[{key}]"),
            Self::Named(key) => write!(f, "[{key}.NAME]"),
            Self::List(key) => write!(f, "[[{key}]]"),
        }
    }
}
