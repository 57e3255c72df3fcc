//! The configuration from outside: texts in, problems and [`Config`] out.

mod change;
mod engines;
mod example_files;
mod flags;
mod memory;
mod models;
mod python_yaml;
mod reading;
mod reference;
mod refused;
mod rendering;
mod tenants;

use std::path::Path;

use super::{Config, ConfigError, Environment, Loaded, Overrides, Problem};

/// One simulated model, for files that are about something else.
const MODEL: &str = "[[models]]\nid = \"m\"\nengine = \"sim\"\n";

fn try_load(text: &str) -> Result<Loaded, ConfigError> {
    load_at("node.toml", text, &[])
}

/// Reads a text as if it stood in this file.
fn load_at(
    path: impl AsRef<Path>,
    text: &str,
    env: &[(&str, &str)],
) -> Result<Loaded, ConfigError> {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load_str(text, path.as_ref(), &env.collect(), &Overrides::default())
}

fn load(text: &str) -> Config {
    let loaded = try_load(text);
    loaded
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

/// Where the problems of a refused file stand, as `line:column key`.
fn places(loaded: Result<Loaded, ConfigError>) -> Vec<String> {
    let problems = loaded.expect_err("the file should be refused").problems;
    let place = |problem: Problem| {
        let (line, column) = problem.at.unwrap_or_default();
        format!("{line}:{column} {}", problem.key)
    };
    problems.into_iter().map(place).collect()
}
