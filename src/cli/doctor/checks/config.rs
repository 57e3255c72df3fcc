//! Is the configuration one that can be served?

use std::path::Path;

use super::Check;
use crate::{
    config::{ConfigError, Loaded, Problem},
    terminal,
};

const NAME: &str = "configuration";

pub(super) fn file(path: Option<&Path>, loaded: Option<&Result<Loaded, ConfigError>>) -> Check {
    let (Some(path), Some(loaded)) = (path, loaded) else {
        return Check::not_applicable(
            NAME,
            "none given; with --config FILE what it needs is looked for",
        );
    };
    let fix = format!("kvwarden check {}", path.display());
    match loaded {
        Err(error) => Check::problem(NAME, first_of(&error.problems, error.to_string()), fix),
        Ok(loaded) if !loaded.warnings.is_empty() => {
            let warnings = terminal::count(loaded.warnings.len(), "warning");
            let summary = format!("{} has {warnings}", path.display());
            Check::warning(NAME, first_of(&loaded.warnings, summary), fix)
        }
        Ok(loaded) => {
            let models = terminal::count(loaded.config.models.len(), "model");
            Check::ok(NAME, format!("{} is valid: {models}", path.display()))
        }
    }
}

fn first_of(problems: &[Problem], summary: String) -> String {
    let Some(first) = problems.first() else {
        return summary;
    };
    match first.at {
        Some((line, column)) => format!("{summary}; at {line}:{column}: {}", first.message),
        None => format!("{summary}: {}", first.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::doctor::State,
        config::{Config, Environment, Overrides},
    };

    fn check(text: &str) -> Check {
        let path = Path::new("node.toml");
        let loaded = Config::load_str(text, path, &Environment::new(), &Overrides::default());
        file(Some(path), Some(&loaded))
    }

    #[test]
    fn first_problem_is_told_with_its_place() {
        let check = check("listne = \"x\"\n[[models]]\nid = \"m\"\nengine = \"sim\"\n");
        assert_eq!(check.state, State::Problem);
        assert!(check.finding.contains("at 1:1: "), "{check:?}");
        assert_eq!(check.fix.as_deref(), Some("kvwarden check node.toml"));
    }

    #[test]
    fn valid_file_is_ok_and_none_is_not_applicable() {
        let good = check("[[models]]\nid = \"m\"\nengine = \"sim\"\n");
        assert_eq!(good, Check::ok(NAME, "node.toml is valid: 1 model"));
        assert_eq!(file(None, None).state, State::NotApplicable);
    }
}
