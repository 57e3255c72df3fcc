//! What a model, a tenant or a group may be called.

use super::{path::KeyPath, report::Report};

/// Longest name of a model; hub ids stay below 100.
pub(crate) const LONGEST_MODEL_NAME: usize = 128;

/// Longest name of a tenant or a group; it becomes a label of metrics.
pub(crate) const LONGEST_TENANT_NAME: usize = 64;

/// Whether a name can stand in URLs, headers and metrics as it is.
pub(crate) fn is_name(name: &str, longest: usize) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@/-".contains(c);
    (1..=longest).contains(&name.len()) && name.chars().all(allowed)
}

/// Reports a name that cannot.
pub(crate) fn check_name(key: &KeyPath, name: &str, of: &str, longest: usize, report: &mut Report) {
    if !is_name(name, longest) {
        report
            .problem(key, format!("{name:?} cannot name a {of}"))
            .help(format!(
                "use 1 to {longest} of the characters A-Z a-z 0-9 . _ : @ / -"
            ));
    }
}
