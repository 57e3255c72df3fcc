//! What can go wrong with an install, and what to do about it.

use std::{io, path::PathBuf};

use super::python::Version;

/// Why an environment or a model file is not there. Every text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No recipe of that name.
    #[error("unknown engine `{name}`; known are {}", known.join(", "))]
    UnknownEngine {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// No interpreter at all.
    #[error("{}; install Python 3 or name one with --python PATH", match asked {
        Some(path) => format!("{} does not run as a Python interpreter", path.display()),
        None => "no python3 on PATH".to_owned(),
    })]
    NoPython {
        /// The one that was asked for.
        asked: Option<PathBuf>,
    },
    /// Only interpreters that the engine does not run on.
    #[error(
        "this engine needs Python {oldest} to {newest}, but {found}; name another with --python PATH"
    )]
    PythonVersion {
        /// What was found where.
        found: String,
        /// Oldest that works.
        oldest: Version,
        /// Newest that is known to work.
        newest: Version,
    },
    /// Python without its `venv` module.
    #[error("{} cannot create environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv) or put `uv` on PATH", python.display())]
    NoVenv {
        /// The interpreter.
        python: PathBuf,
    },
    /// No compiler for the stub libraries.
    #[error("{} not found; CPU builds need a C compiler and binutils (Debian, Ubuntu: apt-get install gcc libc6-dev binutils)", missing.join(", "))]
    NoCompiler {
        /// The programs that are missing.
        missing: Vec<&'static str>,
    },
    /// Not enough space, told before anything is downloaded.
    #[error("{} has {} MiB free and {} MiB are needed; free some, or set KVWARDEN_DATA_DIR to another disk", dir.display(), free >> 20, needed >> 20)]
    NoSpace {
        /// Where.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The disk filled up while a step ran.
    #[error(
        "the disk is full (while {label}); free some space, or set KVWARDEN_DATA_DIR to another disk\n{tail}"
    )]
    DiskFull {
        /// The step.
        label: &'static str,
        /// The last lines of its output.
        tail: String,
    },
    /// A package index could not be reached.
    #[error(
        "the package index could not be reached (while {label}); check the network, or point UV_INDEX_URL or HTTPS_PROXY at a mirror or proxy\n{tail}"
    )]
    Network {
        /// The step.
        label: &'static str,
        /// The last lines of its output.
        tail: String,
    },
    /// Nothing moved any more while a step ran.
    #[error("{label} stalled: {reason}; check the network\n{tail}")]
    Stalled {
        /// The step.
        label: &'static str,
        /// For how long, and what moved last.
        reason: String,
        /// The last lines of its output.
        tail: String,
    },
    /// A step failed for another reason.
    #[error("{label} failed ({status}): {command}\n{tail}")]
    Step {
        /// The step.
        label: &'static str,
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines of its output.
        tail: String,
    },
    /// The environment is in use.
    #[error("`{name}` is in use by process {pid}; stop it first")]
    InUse {
        /// The environment.
        name: String,
        /// A process that runs from it.
        pid: u32,
    },
    /// A model source that cannot be read.
    #[error("`{source_text}` is not a model source of the form pypi:PACKAGE/FILE")]
    BadSource {
        /// As it was written.
        source_text: String,
    },
    /// The package does not carry that file.
    #[error("package `{package}` has no file `{file}`; its largest files are {}", largest.join(", "))]
    NoSuchFile {
        /// The package.
        package: String,
        /// The file asked for.
        file: String,
        /// What else is in it.
        largest: Vec<String>,
    },
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl InstallError {
    /// It may go better another time without anybody doing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Stalled { .. } => true,
            Self::UnknownEngine { .. }
            | Self::NoPython { .. }
            | Self::PythonVersion { .. }
            | Self::NoVenv { .. }
            | Self::NoCompiler { .. }
            | Self::NoSpace { .. }
            | Self::DiskFull { .. }
            | Self::Step { .. }
            | Self::InUse { .. }
            | Self::BadSource { .. }
            | Self::NoSuchFile { .. }
            | Self::Io { .. } => false,
        }
    }
}

/// Said by uv, pip and the C library.
const DISK_FULL: [&str; 2] = ["No space left on device", "os error 28"];
const NETWORK: [&str; 9] = [
    "error sending request",
    "client error (Connect)",
    "dns error",
    "Failed to fetch",
    "Connection refused",
    "Network is unreachable",
    "Temporary failure in name resolution",
    "NewConnectionError",
    "operation timed out",
];

/// The error of a step that ended badly, by what its output says.
pub(super) fn of_step(
    label: &'static str,
    command: String,
    status: String,
    output: &str,
) -> InstallError {
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| output.contains(phrase));
    let tail = tail(output);
    if says(&DISK_FULL) {
        return InstallError::DiskFull { label, tail };
    }
    if says(&NETWORK) {
        return InstallError::Network { label, tail };
    }
    InstallError::Step {
        label,
        command,
        status,
        tail,
    }
}

/// Enough for a Python traceback's end or a resolver's explanation.
const TAIL_LINES: usize = 20;

pub(super) fn tail(output: &str) -> String {
    let lines: Vec<&str> = output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let kept = lines.len().saturating_sub(TAIL_LINES);
    lines[kept..]
        .iter()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// For `map_err`: names the path an I/O error is about.
pub(super) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.into();
    move |source| InstallError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(output: &str) -> InstallError {
        of_step(
            "installing",
            "uv pip install x".into(),
            "exit status: 2".into(),
            output,
        )
    }

    #[test]
    fn unreachable_index_is_told_from_other_failures() {
        let refused =
            "error: Failed to fetch: `https://index.example/simple/x/`\n  cause: dns error";
        assert!(matches!(error(refused), InstallError::Network { .. }));
        assert!(matches!(
            error("error: no solution found"),
            InstallError::Step { .. }
        ));
    }

    #[test]
    fn full_disk_wins_over_the_failed_download_it_causes() {
        let full = "Failed to fetch: wheel\n  cause: No space left on device (os error 28)";
        assert!(matches!(error(full), InstallError::DiskFull { .. }));
    }

    #[test]
    fn error_ends_with_the_last_twenty_lines() {
        let output: String = (1..=50).map(|n| format!("line {n}\n\n")).collect();
        let text = error(&output).to_string();
        assert!(
            text.contains("line 31\n") && text.ends_with("line 50"),
            "{text}"
        );
        assert!(!text.contains("line 30\n"), "{text}");
    }
}
