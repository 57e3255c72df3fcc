//! The configuration: what the operator writes, and what the rest of the program is told.
//!
//! A file goes through four steps, each in its own module. `tree` reads TOML or YAML into one plain
//! value that remembers where every key stands. `read` turns that into the mirror of the file
//! (`file`; for the YAML of the Python KVWarden `python`, by way of `yaml`). `overrides` lays the command line over it.
//! `check` resolves it to [`Config`], in which nothing is optional that the rest of the program
//! needs.
//!
//! No step stops at its first finding: an author sees every [`Problem`] of a file at once, with its
//! place. Nothing here starts, fetches or connects to anything; a hub id needs no network.

pub mod change;
mod check;
pub mod file;
mod load;
mod name;
mod overrides;
mod path;
mod places;
mod problem;
mod python;
mod read;
mod report;
mod resolved;
mod schema;
#[cfg(test)]
mod tests;
mod tree;
mod unit_text;
pub mod units;
mod unknown;
mod yaml;

pub use change::Changes;
pub use file::{NodeLimits, TenantHeader};
pub use load::ConfigError;
pub use overrides::Overrides;
pub(crate) use overrides::engine_parser;
pub use problem::Problem;
pub use resolved::{
    Auth, Config, EventsConfig, KeyHash, Loaded, ModelConfig, ModelSource, Residency, TenantConfig,
};

use std::collections::BTreeMap;

/// Names and values that come from outside the file.
pub type Environment = BTreeMap<String, String>;

/// The variables of this process. One whose value is not text cannot be meant by a file that is.
#[must_use]
pub fn process_environment() -> Environment {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The key in a variable. Secrets that come out of files often end in a line end.
#[must_use]
pub fn api_key(value: &str) -> &str {
    value.trim()
}
