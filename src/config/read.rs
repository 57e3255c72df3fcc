//! A document into the types that mirror it, finding every wrong value and every unknown key.
//!
//! Serde stops at the first wrong value. So a wrong value is recorded and taken out of the document,
//! and the document is read again; every round takes one value out, which bounds the rounds.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    path::{KeyPath, Step},
    report::Report,
    schema::Schema,
};

/// Reads what can be read; the rest is in the report. Returns the keys that `T` does not have.
pub(crate) fn read<T>(document: &mut Value, report: &mut Report) -> (T, Vec<KeyPath>)
where
    T: DeserializeOwned + JsonSchema + Default,
{
    take_out_what_is_no_table(document, &Schema::of::<T>(), &KeyPath::root(), report);
    loop {
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&*document, &mut track);
        let mut ignored = |path: serde_ignored::Path<'_>| unknown.push(ignored_path(&path));
        let error = match serde_ignored::deserialize::<_, _, T>(tracked, &mut ignored) {
            Ok(value) => return (value, unknown),
            Err(error) => error,
        };
        let path = tracked_path(&track.path());
        let wrong = Wrong::new(&error.to_string(), path.is_secret());
        report.problem(&path, wrong.message, wrong.help);
        report.set_broken(path.to_last_key());
        if !take_out(document, &path.to_last_key()) {
            return (T::default(), Vec::new());
        }
    }
}

/// Puts an empty table wherever something else stands for one, so that its neighbours in a list are
/// read. Serde would take a list for a table, its elements for the fields in order; nobody means that.
fn take_out_what_is_no_table(
    value: &mut Value,
    schema: &Schema,
    path: &KeyPath,
    report: &mut Report,
) {
    let children: Vec<Step> = match value {
        Value::Object(map) => map.keys().cloned().map(Step::Key).collect(),
        Value::Array(list) => (0..list.len()).map(Step::Index).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return,
    };
    for step in children {
        let here = path.then(step.clone());
        let Some(child) = child_mut(value, &step) else {
            continue;
        };
        if schema.is_table(&here) && !child.is_object() && !child.is_null() {
            let message = match here.is_secret() {
                true => "expected a table".to_owned(),
                false => format!("expected a table, found {}", value_in_words(child)),
            };
            report.problem(&here, message, None);
            report.set_broken(here);
            *child = Value::Object(serde_json::Map::new());
        } else {
            take_out_what_is_no_table(child, schema, &here, report);
        }
    }
}

fn value_in_words(value: &Value) -> String {
    match value {
        Value::Object(_) => "a table".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Null => "nothing".to_owned(),
        Value::String(text) => format!("the text {text:?}"),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn child_mut<'v>(value: &'v mut Value, step: &Step) -> Option<&'v mut Value> {
    match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    }
}

/// Removes the key at `path`; false where there is none.
fn take_out(document: &mut Value, path: &KeyPath) -> bool {
    let Some((Step::Key(key), above)) = path.steps().split_last() else {
        return false;
    };
    let table = above.iter().try_fold(document, child_mut);
    let removed = table
        .and_then(Value::as_object_mut)
        .and_then(|table| table.remove(key));
    removed.is_some()
}

fn tracked_path(path: &serde_path_to_error::Path) -> KeyPath {
    use serde_path_to_error::Segment;
    path.iter()
        .fold(KeyPath::root(), |path, segment| match segment {
            Segment::Seq { index } => path.index(*index),
            Segment::Map { key } => path.key(key),
            Segment::Enum { .. } | Segment::Unknown => path,
        })
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> KeyPath {
    use serde_ignored::Path;
    match path {
        Path::Root => KeyPath::root(),
        Path::Seq { parent, index } => ignored_path(parent).index(*index),
        Path::Map { parent, key } => ignored_path(parent).key(key),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => ignored_path(parent),
    }
}

/// Serde's words for a wrong value, in the words of the file.
struct Wrong {
    message: String,
    help: Option<String>,
}

impl Wrong {
    fn new(error: &str, secret: bool) -> Self {
        // Our own types put their help after a line break.
        if let Some((message, help)) = error.split_once('\n') {
            return Self {
                message: message.to_owned(),
                help: Some(help.to_owned()),
            };
        }
        if let Some(wrong) = Self::variant(error) {
            return wrong;
        }
        let of_type = error.strip_prefix("invalid type: ");
        let of_value = error.strip_prefix("invalid value: ");
        let Some((found, expected)) = of_type
            .or(of_value)
            .and_then(|text| text.rsplit_once(", expected "))
        else {
            return Self {
                message: error.to_owned(),
                help: None,
            };
        };
        let (found, expected) = (found_in_words(found), expected_in_words(expected));
        // What stands where a key belongs may be the key.
        let message = match secret {
            true => format!("expected {expected}"),
            false => format!("expected {expected}, found {found}"),
        };
        Self {
            message,
            help: None,
        }
    }

    fn variant(error: &str) -> Option<Self> {
        let rest = error.strip_prefix("unknown variant `")?;
        let (found, variants) = rest.split_once("`, expected ")?;
        let variants: Vec<&str> = variants.split('`').skip(1).step_by(2).collect();
        let list = variants
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let help = match nearest(found, &variants) {
            Some(near) => format!("did you mean `{near}`? It can be {list}"),
            None => format!("it can be {list}"),
        };
        Some(Self {
            message: format!("`{found}` is not known here"),
            help: Some(help),
        })
    }
}

fn found_in_words(found: &str) -> String {
    match found {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" | "unit value" => "nothing".to_owned(),
        _ => {
            let number = found
                .strip_prefix("integer `")
                .or(found.strip_prefix("floating point `"));
            let plain = number.or(found.strip_prefix("boolean `"));
            match plain.and_then(|text| text.strip_suffix('`')) {
                Some(plain) => plain.to_owned(),
                None => found.replacen("string ", "the text ", 1),
            }
        }
    }
}

fn expected_in_words(expected: &str) -> &str {
    match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "i32" | "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "text in quotes",
        "path string" => "a path in quotes",
        "a sequence" => "a list",
        "a map" => "a table",
        _ if expected.starts_with("struct ") => "a table",
        _ => expected,
    }
}

/// The candidate that was most likely meant.
pub(crate) fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    /// Below this, two of our keys can be nearer to each other than to their misspellings.
    const LIKELY: f64 = 0.8;
    let word = word.to_lowercase().replace(' ', "_");
    let scored = candidates
        .iter()
        .map(|name| (strsim::jaro_winkler(&word, name), *name));
    let (score, name) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= LIKELY).then_some(name)
}

/// Help for a word that is none of a fixed few.
pub(crate) fn one_of(word: &str, kind: &str, candidates: &[&str]) -> String {
    let list = candidates.join(", ");
    match nearest(word, candidates) {
        Some(near) => format!("did you mean `{near}`? {kind} are {list}"),
        None => format!("{kind} are {list}"),
    }
}
