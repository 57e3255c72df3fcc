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
        // What stands where a key belongs may be the key.
        let found = at(document, &path).filter(|_| !path.is_secret());
        let (message, help) = in_words(&error.to_string(), found);
        report.problem(&path, message).help = help;
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
            report.problem(&here, message);
            report.set_broken(here);
            *child = Value::Object(serde_json::Map::new());
        } else {
            take_out_what_is_no_table(child, schema, &here, report);
        }
    }
}

/// A value as its author would call it.
pub(crate) fn value_in_words(value: &Value) -> String {
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

fn at<'v>(document: &'v Value, path: &KeyPath) -> Option<&'v Value> {
    path.steps()
        .iter()
        .try_fold(document, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => value.get(index),
        })
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

/// Serde's words for a wrong value, in the words of the file, and what to do about it.
fn in_words(error: &str, found: Option<&Value>) -> (String, Option<String>) {
    // Our own types put their help after a line break.
    if let Some((message, help)) = error.split_once('\n') {
        return (message.to_owned(), Some(help.to_owned()));
    }
    if let Some((word, variants)) = unknown_variant(error) {
        let list: Vec<_> = variants.iter().map(|name| format!("`{name}`")).collect();
        let list = list.join(", ");
        let help = match nearest(word, &variants) {
            Some(near) => format!("did you mean `{near}`? It can be {list}"),
            None => format!("it can be {list}"),
        };
        return (format!("`{word}` is not known here"), Some(help));
    }
    let is_wrong = error.starts_with("invalid type: ") || error.starts_with("invalid value: ");
    let message = match error.rsplit_once(", expected ") {
        Some((_, expected)) if is_wrong => {
            let expected = expected_in_words(expected);
            let found = found.map(|value| format!(", found {}", value_in_words(value)));
            format!("expected {expected}{}", found.unwrap_or_default())
        }
        _ => error.to_owned(),
    };
    (message, None)
}

/// The word that is none of these.
fn unknown_variant(error: &str) -> Option<(&str, Vec<&str>)> {
    let rest = error.strip_prefix("unknown variant `")?;
    let (word, variants) = rest.split_once("`, expected ")?;
    Some((word, variants.split('`').skip(1).step_by(2).collect()))
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
