//! Where things lie on disk.
//!
//! Two roots. `data` holds what can be downloaded again (engine environments, model files), `state`
//! what belongs to running engines (sockets, logs). Both default to the XDG directories.

use std::path::{Path, PathBuf};

/// The directories kvwarden reads and writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Engine environments and fetched model files; safe to delete while nothing runs.
    pub data: PathBuf,
    /// Sockets, logs and records of running engines; private to the user.
    pub state: PathBuf,
}

impl Layout {
    /// `$KVWARDEN_DATA_DIR` and `$KVWARDEN_STATE_DIR`, else the XDG cache and state directories.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            data: root("KVWARDEN_DATA_DIR", "XDG_CACHE_HOME", ".cache"),
            state: root("KVWARDEN_STATE_DIR", "XDG_STATE_HOME", ".local/state"),
        }
    }

    /// The private environment of one engine.
    #[must_use]
    pub fn engine(&self, name: &str) -> PathBuf {
        self.data.join("engines").join(name)
    }

    /// Fetched model files.
    #[must_use]
    pub fn models(&self) -> PathBuf {
        self.data.join("models")
    }

    /// Rotated logs of engines.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// KV that outlives its engine: one directory per model.
    #[must_use]
    pub fn kv(&self) -> PathBuf {
        self.state.join("kv")
    }

    /// Sockets of engine shims. Unix socket paths end at 107 bytes, so names here are short.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }
}

fn root(own: &str, xdg: &str, under_home: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os(own).filter(|dir| !dir.is_empty()) {
        return PathBuf::from(dir);
    }
    let base = std::env::var_os(xdg)
        .filter(|dir| Path::new(dir).is_absolute())
        .map_or_else(
            || {
                std::env::var_os("HOME")
                    .map_or_else(std::env::temp_dir, PathBuf::from)
                    .join(under_home)
            },
            PathBuf::from,
        );
    base.join("kvwarden")
}
