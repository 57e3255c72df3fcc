//! What keys a file may have, asked of its types: for suggestions and for the reference.

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
            key: "",
            heading: "Top of the file".to_owned(),
            node: &self.0,
        }];
        let properties = self.0.get("properties").and_then(Value::as_object);
        for (key, node) in properties.into_iter().flatten() {
            let found = [
                (format!("[{key}]"), Some(node)),
                (format!("[{key}.NAME]"), node.get("additionalProperties")),
                (format!("[[{key}]]"), node.get("items")),
            ];
            tables.extend(found.into_iter().filter_map(|(heading, node)| {
                let node = self.resolve(node?)?;
                // A table without keys of its own is one of the author's.
                (!keys_of(node).is_empty()).then_some(Table { key, heading, node })
            }));
        }
        tables
    }
}

fn keys_of(node: &Value) -> Vec<&str> {
    let properties = node.get("properties").and_then(Value::as_object);
    let keys = properties.into_iter().flatten();
    keys.map(|(key, _)| key.as_str()).collect()
}

/// One table of the file.
pub(crate) struct Table<'s> {
    /// Its key; empty above all headings.
    pub(crate) key: &'s str,
    /// How its heading is written (`[auth]`, `[tenants.NAME]`, `[[models]]`).
    pub(crate) heading: String,
    /// Its schema.
    pub(crate) node: &'s Value,
}

impl Table<'_> {
    /// Its keys.
    pub(crate) fn keys(&self) -> Vec<&str> {
        keys_of(self.node)
    }
}
