//! Gets peers from their registries into a directory of our own; nothing of the system is changed.
//! What is there already is not fetched again.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// Where all of them are kept.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("kvwarden-peers"))
}

/// Files of Debian's packages, unpacked below the directory that is given back.
pub(crate) fn debian(name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    once(name, |dir| {
        let fetch = || {
            run(Command::new("apt-get")
                .args(["download", "-qq"])
                .args(packages)
                .current_dir(dir))
        };
        if fetch().is_err() {
            run(Command::new("apt-get").args(["update", "-qq"]))?;
            fetch()?;
        }
        for file in fs::read_dir(dir)? {
            let file = file?.path();
            if file.extension().is_some_and(|kind| kind == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(file).arg(dir))?;
            }
        }
        Ok(())
    })
}

/// A package of PyPI and what it needs, in an environment of its own; `bin` is below it.
pub(crate) fn pypi(name: &str, requirements: &[&str]) -> anyhow::Result<PathBuf> {
    once(name, |dir| {
        run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        let mut pip = Command::new(dir.join("bin/pip"));
        run(pip
            .args(["install", "-q", "--disable-pip-version-check"])
            .args(requirements))
    })
}

/// A package of npm and what it needs.
pub(crate) fn npm(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    once(name, |dir| {
        let mut npm = Command::new("npm");
        run(npm
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(dir)
            .arg(package))
    })
}

/// A directory that `make` fills; one that was not filled to the end is filled anew.
fn once(name: &str, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let dir = cache()?.join(name);
    let done = dir.join(".installed");
    if done.exists() {
        return Ok(dir);
    }
    anstream::eprintln!("installing {name} ..");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    make(&dir)?;
    fs::write(done, "")?;
    Ok(dir)
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = said
            .trim()
            .lines()
            .last()
            .unwrap_or("nothing was said")
            .to_owned();
        bail!("{program}: {last}");
    }
    Ok(())
}
