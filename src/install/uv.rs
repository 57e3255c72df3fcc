//! The `uv` that makes environments: the user's own, or a private one.

use std::path::PathBuf;

use super::{
    InstallError,
    lock::Lock,
    progress::{Event, Progress},
    python::{self, Python},
    run::Runner,
    step::run,
};
use crate::layout::Layout;

/// The `uv` on PATH, else the private one if it was made.
pub(crate) fn find(layout: &Layout) -> Option<PathBuf> {
    python::on_path("uv").or_else(|| Some(private(layout)).filter(|uv| uv.is_file()))
}

fn private(layout: &Layout) -> PathBuf {
    layout.data.join("tools/uv/bin/uv")
}

/// Finds `uv` on PATH, else makes a private one with Python's own `venv` and pip.
pub(super) fn ensure(
    layout: &Layout,
    python: &Python,
    progress: &dyn Progress,
) -> Result<PathBuf, InstallError> {
    if let Some(uv) = python::on_path("uv") {
        return Ok(uv);
    }
    let root = layout.data.join("tools/uv");
    let uv = private(layout);
    let waiting = || progress.report(Event::Waiting { what: "uv" });
    let lock = Lock::take(&layout.data.join("tools/uv.lock"), waiting)?;
    if uv.is_file() {
        return Ok(uv);
    }
    if !python.has_venv {
        return Err(InstallError::NoVenv {
            python: python.path.clone(),
        });
    }
    let log = layout.data.join("tools/uv.log");
    let runner = Runner {
        log,
        lock: &lock,
        growth: None,
        progress,
    };
    runner.step(&run(
        "making a place for uv",
        &python.path,
        &[&"-m", &"venv", &"--clear", &root],
        &[],
    ))?;
    // pip puts the executable there last, so an interrupted install is done again.
    runner.step(&run(
        "installing uv",
        &root.join("bin/python"),
        &[
            &"-m",
            &"pip",
            &"install",
            &"--quiet",
            &"--disable-pip-version-check",
            &"uv",
        ],
        &[],
    ))?;
    Ok(uv)
}
