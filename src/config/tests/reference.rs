//! The reference is generated, so that it can neither lack a key nor keep one that is gone.

use std::fmt::Write as _;

use serde_json::Value;

use crate::config::{file::File, schema::Schema};

const REFERENCE: &str = include_str!("../reference.md");

const HEAD: &str = "<!-- Generated from src/config/file.rs; `BLESS=1 cargo test reference` writes it anew. -->

# Configuration reference

kvwarden reads TOML. `kvwarden check FILE` explains what is wrong with a file, all of it at once. Every key may be left
out unless it says *required*. A duration is written `\"30s\"`, `\"250ms\"` or `\"1h30m\"`, a size `\"8GiB\"` or `\"512MiB\"`.
The YAML of the Python KVWarden is read as well; its keys without effect give a warning.
";

fn generate() -> String {
    let schema = Schema::of::<File>();
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
            // A table has a section of its own.
            if !table.key.is_empty() || !is_table(node) {
                let _ = writeln!(out, "| `{key}` | {} | {} |", kind(node), describe(node));
            }
        }
    }
    out
}

fn is_table(node: &Value) -> bool {
    ["/$ref", "/items/$ref", "/additionalProperties/$ref"]
        .iter()
        .any(|reference| node.pointer(reference).is_some())
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
    let of_option = node["anyOf"].as_array().and_then(|any| any.first());
    if let Some(inner) = of_option {
        return if inner.get("$ref").is_some() {
            "text"
        } else {
            kind(inner)
        };
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
