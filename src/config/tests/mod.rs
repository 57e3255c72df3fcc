//! The configuration from outside: texts in, problems and [`Config`] out.

mod access;
mod change;
mod engines;
mod example_files;
mod flags;
mod groups;
mod memory;
mod models;
mod python_yaml;
mod reading;
mod reference;
mod rendering;

use std::path::Path;

use super::{Config, ConfigError, Environment, Loaded, Overrides, Problem};

/// One simulated model, for files that are about something else.
const MODEL: &str = "[[models]]\nid = \"m\"\nengine = \"sim\"\n";

fn try_load(text: &str) -> Result<Loaded, ConfigError> {
    Config::load_str(
        text,
        Path::new("node.toml"),
        &Environment::new(),
        &Overrides::default(),
    )
}

fn load(text: &str) -> Config {
    try_load(text)
        .unwrap_or_else(|error| panic!("{}", error.render()))
        .config
}

fn problems(text: &str) -> Vec<Problem> {
    try_load(text)
        .expect_err("the file should be refused")
        .problems
}

/// The only problem of a file.
fn problem(text: &str) -> Problem {
    let mut problems = problems(text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.remove(0)
}

/// Key and message of the only problem, and its help.
fn told(text: &str) -> (String, String) {
    let Problem {
        key, message, help, ..
    } = problem(text);
    (format!("{key}: {message}"), help.unwrap_or_default())
}

/// A file with one model on `engine` and further `keys`.
fn model(engine: &str, keys: &str) -> String {
    format!("[[models]]\nid = \"m\"\nengine = \"{engine}\"\n{keys}\n")
}
