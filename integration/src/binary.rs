//! The binary under test.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Names a binary to test instead of the one built from this tree.
const OVERRIDE: &str = "KVWARDEN_BIN";

/// The root of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The `kvwarden` executable, built first unless it is fresh; `$KVWARDEN_BIN` if that is set.
///
/// # Panics
/// If it does not build.
#[must_use]
pub fn kvwarden() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os(OVERRIDE) {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let built = escargot::CargoBuild::new()
        .manifest_path(workspace().join("Cargo.toml"))
        // The packages and the kinds of target of `cargo test --workspace`: cargo resolves the
        // same features, and what that command has built is not compiled a second time.
        .args(["--workspace", "--test", "shim"])
        .bin("kvwarden")
        .run();
    let run = built.expect("kvwarden builds");
    run.path().to_owned()
}
