//! What is on disk of an environment, and taking it away.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{InstallError, error::at, growth, recipe::Recipe};
use crate::layout::Layout;

/// What is on disk of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Nothing.
    Missing,
    /// An install that was interrupted, is under way, or is of an older recipe.
    Partial,
    /// All of it.
    Ready {
        /// The engine's version.
        version: String,
    },
}

/// One line of `engine list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Environment {
    /// Its name.
    pub name: &'static str,
    /// What is there.
    #[serde(flatten)]
    pub state: State,
    /// Bytes on disk. Files that environments share with uv's cache count in each.
    pub bytes: u64,
    /// Where.
    pub path: PathBuf,
}

/// Written last; what it says is true of the finished environment.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) recipe: u32,
    pub(super) version: String,
    pub(super) installed_at: u64,
    pub(super) python: PathBuf,
}

pub(super) const MARKER: &str = "installed.json";

pub(super) fn environment(recipe: &Recipe, layout: &Layout) -> Environment {
    let path = layout.engine(recipe.name);
    let state = match ready(recipe, &path) {
        Some(marker) => State::Ready {
            version: marker.version,
        },
        None if path.exists() => State::Partial,
        None => State::Missing,
    };
    Environment {
        name: recipe.name,
        state,
        bytes: growth::tree_bytes(&path),
        path,
    }
}

/// The marker, if it is there, of this recipe, and its interpreter still runs: a system upgrade may
/// have taken away the Python that the environment links to.
pub(super) fn ready(recipe: &Recipe, root: &Path) -> Option<Marker> {
    let text = fs::read_to_string(root.join(MARKER)).ok()?;
    let marker: Marker = serde_json::from_str(&text).ok()?;
    let usable = marker.recipe == recipe.revision && root.join("venv/bin/python").exists();
    usable.then_some(marker)
}

/// Where the environment at `root` has its packages. Its path names the Python's version, which the
/// marker does not: an environment has one.
pub(super) fn site_packages(root: &Path) -> Result<PathBuf, InstallError> {
    let lib = root.join("venv/lib");
    let mut entries = fs::read_dir(&lib).map_err(at(&lib))?.flatten();
    let python = entries.find(|entry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(b"python3.")
    });
    let missing = || at(&lib)(io::ErrorKind::NotFound.into());
    python.map_or_else(
        || Err(missing()),
        |python| Ok(python.path().join("site-packages")),
    )
}

/// The marker goes first: a removal cut short leaves a partial environment, not a ready one.
pub(super) fn clear(root: &Path) -> Result<(), InstallError> {
    let missing_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    missing_is_fine(fs::remove_file(root.join(MARKER))).map_err(at(root.join(MARKER)))?;
    missing_is_fine(fs::remove_dir_all(root)).map_err(at(root))
}

/// Engines outlive the server that started them, so the processes themselves are looked at.
pub(super) fn refuse_if_in_use(recipe: &Recipe, root: &Path) -> Result<(), InstallError> {
    let interpreter = root.join("venv/bin").into_os_string().into_encoded_bytes();
    let processes = fs::read_dir("/proc").map_err(at("/proc"))?;
    for entry in processes.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // The first argument only: an editor with a file of ours open uses nothing.
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if cmdline.starts_with(&interpreter) {
            return Err(InstallError::InUse {
                name: recipe.name.to_owned(),
                pid,
            });
        }
    }
    Ok(())
}
