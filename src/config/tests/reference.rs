//! The reference is generated, so that it can neither lack a key nor keep one that is gone.

use std::fmt::Write as _;

use serde_json::Value;

use crate::config::{file::File, path::KeyPath, schema::Schema};

const REFERENCE: &str = include_str!("../reference.md");

const HEAD: &str = "<!-- Generated from src/config/file.rs; `BLESS=1 cargo test reference` writes it anew. -->

# Configuration reference

kvwarden reads TOML. `kvwarden check FILE` explains what is wrong with a file, all of it at once. Every key may be left
out unless it says *required*. A duration is written `\"30s\"`, `\"250ms\"` or `\"1h30m\"`, a size `\"8GiB\"` or `\"512MiB\"`.
The YAML of the Python KVWarden is read as well; its keys without effect give a warning.
";

fn generate() -> String {
    let schema = Schema::of::<File>();
    let defaults = schema.keys(&KeyPath::of("tenant_defaults"));
    let mut out = HEAD.to_owned();
    for table in schema.tables() {
        let heading = match table.key {
            "" => table.heading,
            _ => format!("`{}`", table.heading),
        };
        let _ = write!(
            out,
            "\n## {heading}\n\n{}\n\n| key | value | |\n|---|---|---|\n",
            describe(table.node)
        );
        for (key, node) in table.node["properties"].as_object().unwrap() {
            // A table has a section of its own, and what a tenant inherits stands where it comes from.
            let is_elsewhere = match table.key {
                "" => is_table(node),
                "tenants" => defaults.contains(&key.as_str()),
                _ => false,
            };
            if !is_elsewhere {
                let _ = writeln!(
                    out,
                    "| `{key}` | {} | {}{} |",
                    kind(node),
                    describe(node),
                    default(node)
                );
            }
        }
    }
    out
}

fn is_table(node: &Value) -> bool {
    let parts = ["", "/items", "/additionalProperties"];
    let mut parts = parts.iter().filter_map(|part| node.pointer(part));
    parts.any(|part| part.get("$ref").is_some() || part.get("properties").is_some())
}

/// What the type says itself; a default that depends on others stands in the description.
fn default(node: &Value) -> String {
    match node["default"].to_string().as_str() {
        "null" | "[]" | "{}" => String::new(),
        value => format!(" Default: `{value}`."),
    }
}

fn describe(node: &Value) -> String {
    node["description"]
        .as_str()
        .unwrap_or_default()
        .replace('\n', " ")
}

fn kind(node: &Value) -> &str {
    if let Some(title) = node["title"].as_str() {
        return title;
    }
    if let Some(inner) = node.pointer("/anyOf/0") {
        return kind(inner);
    }
    // Every type with a name that is no table is one of a few words.
    if node.get("$ref").is_some() {
        return "text";
    }
    let name = node["type"].as_str().or_else(|| node["type"][0].as_str());
    match name {
        Some("string") => "text",
        Some("integer") => "whole number",
        Some("number") => "number",
        Some("boolean") => "true or false",
        Some("array") => "list of text",
        Some("object") => "table of text",
        other => panic!("{other:?} has no word: {node}"),
    }
}

#[test]
fn reference_has_every_key_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/reference.md");
    let generated = generate();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &generated).unwrap();
        return;
    }
    assert_eq!(
        REFERENCE, generated,
        "run `BLESS=1 cargo test reference` and commit {path}"
    );
}

#[test]
fn what_tenants_have_in_common_is_said_once_for_all() {
    let schema = Schema::of::<File>();
    let of = |path: KeyPath| schema.at(&path).unwrap()["properties"].clone();
    let (mut one, all) = (
        of(KeyPath::of("tenants").key("a")),
        of(KeyPath::of("tenant_defaults")),
    );
    let own = ["api_keys", "group"].map(|key| one.as_object_mut().unwrap().remove(key));
    assert!(own.iter().all(Option::is_some));
    assert_eq!(one, all);
    let lines: Vec<_> = REFERENCE
        .lines()
        .filter(|line| line.starts_with("| `tokens_per_day`"))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    // The journal of usage is read at the start.
    assert!(lines[0].contains("counts on over a restart"), "{lines:?}");
}

#[test]
fn every_key_is_described() {
    for table in Schema::of::<File>().tables() {
        for (key, node) in table.node["properties"].as_object().unwrap() {
            let described = node["description"]
                .as_str()
                .is_some_and(|text| text.ends_with('.'));
            assert!(described, "{}: `{key}` has no sentence", table.heading);
        }
    }
}
