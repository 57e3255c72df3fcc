//! The steps of an install, as data.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use super::python::Version;

/// Where an install works, and with what.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The engine's directory: `venv/`, the recipe's files, the marker.
    pub root: PathBuf,
    /// The `uv` to use.
    pub uv: PathBuf,
    /// The interpreter the environment is made from.
    pub python: PathBuf,
    /// Its version, which is part of the path of site-packages.
    pub python_version: Version,
}

/// One step of an install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the user reads while it runs.
    pub label: &'static str,
    /// What is done.
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Runs a program to its end.
    Run {
        /// The executable.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
        /// Variables added to its environment.
        env: Vec<(&'static str, &'static str)>,
    },
    /// Writes a file, making its directory.
    Write {
        /// Where.
        path: PathBuf,
        /// What.
        contents: &'static str,
    },
}

/// The variables every `uv` runs with: its own progress bars would only fill the log, and a Python
/// it downloaded would not be the one that was checked.
pub(super) const UV_ENV: [(&str, &str); 2] =
    [("UV_NO_PROGRESS", "1"), ("UV_PYTHON_DOWNLOADS", "never")];

// === building blocks ===

/// Words of a command line: text and paths mixed.
pub(super) type Args<'a> = &'a [&'a dyn AsRef<OsStr>];

pub(super) fn pip(label: &'static str, paths: &Paths, args: Args<'_>) -> Step {
    let python = paths.venv_python();
    let front: Args<'_> = &[&"pip", &"install", &"--python", &python];
    run(label, &paths.uv, &[front, args].concat(), &UV_ENV)
}

pub(super) fn run(
    label: &'static str,
    program: &Path,
    args: Args<'_>,
    env: &[(&'static str, &'static str)],
) -> Step {
    let args = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
    let action = Action::Run {
        program: program.to_owned(),
        args,
        env: env.to_vec(),
    };
    Step { label, action }
}

pub(super) fn write(label: &'static str, path: PathBuf, contents: &'static str) -> Step {
    Step {
        label,
        action: Action::Write { path, contents },
    }
}

// === impl Paths ===

impl Paths {
    /// The virtual environment.
    #[must_use]
    pub fn venv(&self) -> PathBuf {
        self.root.join("venv")
    }

    /// Its interpreter.
    #[must_use]
    pub fn venv_python(&self) -> PathBuf {
        self.venv().join("bin/python")
    }

    pub(super) fn site_packages(&self) -> PathBuf {
        self.venv()
            .join(format!("lib/python{}/site-packages", self.python_version))
    }
}
