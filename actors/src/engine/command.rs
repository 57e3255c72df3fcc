//! Any server at all: a command line of the author's starts it, into which kvwarden puts what it
//! decides at every start.
//!
//! Of such a server nothing is known but that it speaks OpenAI's protocol. It is watched over like the
//! others; what runs outside its own processes, as a container does, ends by a command of the author's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Launch, Start,
    attach::QUIRKS,
    dialect::{Dialect, KvOnDisk, KvRoom, SourceKind},
    fields::Fields,
};

pub(super) static DIALECT: Dialect = Dialect {
    name: "command",
    about: "A server that a command of yours starts",
    family: "command",
    has_recipe: false,
    source: SourceKind::Command,
    uses_gpu: false,
    takes: &[
        "source",
        "command",
        "stop",
        "probe",
        "served_name",
        "api",
        "memory",
        "gpus",
        "env",
    ],
    owns: &[],
    owns_env: &[],
    max_concurrent: 256,
    cuts_prompts: false,
    kv_on_disk: KvOnDisk::Nowhere,
    kv_room: |_| KvRoom::Context,
    args: |launch, start| filled(launch, start, |own| own.command.get(1..)),
    // What the author adds is filled in where it is added.
    env: |_, _| BTreeMap::new(),
    quirks: QUIRKS,
    fields: Fields::Unknown,
    sleep: None,
    gauges: None,
};

/// A server of the author's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnServer {
    /// The words that start it, of which the first is the program.
    pub command: Vec<String>,
    /// The words that end it, where a signal to its own processes does not. Empty: none.
    pub stop: Vec<String>,
    /// The path that answers 2xx once it is up. None: `/health` or `/v1/models`, whichever it has.
    pub probe: Option<String>,
    /// The name it knows the model by, if that is not the model's own.
    pub served_name: Option<String>,
    /// What it answers.
    pub api: Vec<Api>,
    /// Where kvwarden keeps engines and models.
    pub data_dir: String,
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
}

/// What may stand in braces in a command.
pub const PLACEHOLDERS: [&str; 7] = [
    "port", "host", "model", "source", "devices", "data_dir", "key",
];

// === impl OwnServer ===

impl OwnServer {
    /// It generates text, which it is asked to prove.
    #[must_use]
    pub fn generates(&self) -> bool {
        self.api
            .iter()
            .any(|api| matches!(api, Api::Chat | Api::Completions))
    }
}

fn filled(
    launch: &Launch,
    start: Start<'_>,
    words: fn(&OwnServer) -> Option<&[String]>,
) -> Vec<String> {
    let words = launch.flags.own.as_deref().and_then(words);
    let words = words.unwrap_or_default().iter();
    words.map(|word| fill(word, launch, start)).collect()
}

/// The words that end the server: a program and its arguments.
pub(super) fn stop(launch: &Launch, start: Start<'_>) -> Option<(String, Vec<String>)> {
    let mut words = filled(launch, start, |own| Some(&own.stop)).into_iter();
    Some((words.next()?, words.collect()))
}

/// `text` with what this start gives to the names in it.
pub(super) fn fill(text: &str, launch: &Launch, start: Start<'_>) -> String {
    let (port, devices) = (start.port.to_string(), start.gpus.join(","));
    let own = launch.flags.own.as_deref();
    let data_dir = own.map_or("", |own| own.data_dir.as_str());
    replaced(text, |name| {
        Some(match name {
            "port" => port.as_str(),
            "host" => "127.0.0.1",
            "model" => &launch.served_name,
            "source" => &launch.model,
            "devices" => &devices,
            "data_dir" => data_dir,
            "key" => start.key,
            _ => return None,
        })
    })
}

fn replaced<'t>(text: &'t str, value: impl Fn(&str) -> Option<&'t str>) -> String {
    pieces(text)
        .map(|piece| match piece {
            Piece::Text(text) => text,
            Piece::Name { name, whole } => value(name).unwrap_or(whole),
        })
        .collect()
}

/// The names in braces in `text`, known or not.
pub fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    pieces(text).filter_map(|piece| match piece {
        Piece::Name { name, .. } => Some(name),
        Piece::Text(_) => None,
    })
}

/// A part of a word. Braces around anything but a name, as in JSON, are text.
enum Piece<'t> {
    Text(&'t str),
    Name { name: &'t str, whole: &'t str },
}

fn pieces(mut rest: &str) -> impl Iterator<Item = Piece<'_>> {
    std::iter::from_fn(move || {
        let mut after_first = rest.char_indices().skip(1);
        let (name, end) = match rest
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
        {
            Some((name, _)) if is_name(name) => (Some(name), name.len() + 2),
            _ if rest.is_empty() => return None,
            // This brace, if it is one, and the text up to the next.
            _ => {
                let next = after_first.find(|(_, c)| *c == '{');
                (None, next.map_or(rest.len(), |(at, _)| at))
            }
        };
        let (whole, after) = rest.split_at(end);
        rest = after;
        Some(match name {
            Some(name) => Piece::Name { name, whole },
            None => Piece::Text(whole),
        })
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_braces_are_filled_in_and_other_braces_stay() {
        let value = |name: &str| (name == "port").then_some("80");
        for (text, expected) in [
            ("", ""),
            ("{port}", "80"),
            ("{port}:8080", "80:8080"),
            ("-p={port}:{port}", "-p=80:80"),
            (r#"{"a": "{port}"}"#, r#"{"a": "80"}"#),
            ("{{port}}", "{80}"),
            ("{prot} {", "{prot} {"),
            ("ü{port}é", "ü80é"),
        ] {
            assert_eq!(replaced(text, value), expected);
        }
        let names: Vec<_> = placeholders("{a}{b_c} {D} {.e} {}").collect();
        assert_eq!(names, ["a", "b_c"]);
    }
}
