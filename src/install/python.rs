//! Finding a Python to make environments from.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::InstallError;

/// Major and minor version of Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u8, pub u8);

/// An interpreter that was asked about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Python {
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
    /// Whether it can make environments by itself; Debian packages that apart.
    pub(crate) has_venv: bool,
}

/// The system's own first; then the rest, the best tested first.
const CANDIDATES: [&str; 6] = [
    "python3",
    "python3.12",
    "python3.11",
    "python3.13",
    "python3.10",
    "python3.14",
];

const PROBE: &str = "import sys, importlib.util as u
print(*sys.version_info[:2], int(all(map(u.find_spec, ('venv', 'ensurepip')))), sys.executable)";

/// The interpreter `asked` for, or the first on PATH whose version is within `range`.
pub(super) fn find(
    asked: Option<&Path>,
    range: (Version, Version),
) -> Result<Python, InstallError> {
    let found: Vec<Python> = match asked {
        Some(path) => probe(path).into_iter().collect(),
        None => all(),
    };
    if found.is_empty() {
        return Err(InstallError::NoPython {
            asked: asked.map(Path::to_owned),
        });
    }
    choose(&found, range)
}

/// Every interpreter on PATH, the one to prefer first.
pub(crate) fn all() -> Vec<Python> {
    CANDIDATES
        .iter()
        .filter_map(|name| probe(Path::new(name)))
        .collect()
}

fn choose(found: &[Python], (oldest, newest): (Version, Version)) -> Result<Python, InstallError> {
    let fits = found
        .iter()
        .find(|python| (oldest..=newest).contains(&python.version));
    fits.cloned().ok_or_else(|| InstallError::PythonVersion {
        found: found
            .iter()
            .map(Python::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        oldest,
        newest,
    })
}

fn probe(program: &Path) -> Option<Python> {
    let mut command = Command::new(program);
    command
        .args(["-I", "-c", PROBE])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(line: &str) -> Option<Python> {
    let mut words = line.trim().splitn(4, ' ');
    let version = Version(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let has_venv = words.next()? == "1";
    let path = PathBuf::from(words.next()?);
    Some(Python {
        path,
        version,
        has_venv,
    })
}

/// The executable of that name on PATH, or in the directories of system tools that some users'
/// PATH lacks.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl fmt::Display for Python {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.path.display(), self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(version: Version) -> Python {
        Python {
            path: "/usr/bin/python3".into(),
            version,
            has_venv: true,
        }
    }

    const RANGE: (Version, Version) = (Version(3, 11), Version(3, 13));

    #[test]
    fn first_interpreter_within_the_range_is_chosen() {
        let found = [
            python(Version(3, 9)),
            python(Version(3, 13)),
            python(Version(3, 11)),
        ];
        assert_eq!(choose(&found, RANGE).unwrap().version, Version(3, 13));
    }

    #[test]
    fn error_names_what_was_found_and_what_is_needed() {
        let error = choose(&[python(Version(3, 9))], RANGE)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/usr/bin/python3 is 3.9"), "{error}");
        assert!(error.contains("3.11 to 3.13"), "{error}");
    }

    #[test]
    fn path_with_spaces_survives_the_probe() {
        let python = parse("3 12 0 /opt/my python/bin/python3\n").unwrap();
        assert_eq!(python.path, Path::new("/opt/my python/bin/python3"));
        assert!(!python.has_venv);
    }

    #[test]
    fn interpreter_that_is_not_there_is_an_error_with_its_path() {
        let error = find(Some(Path::new("/no/python")), RANGE)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/python"), "{error}");
    }
}
