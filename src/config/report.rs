//! Collects what reading and checking find.

use std::collections::BTreeSet;

use super::{
    path::KeyPath,
    places::{Places, Source},
    problem::Problem,
};

/// Collects what reading and checking find.
#[derive(Default)]
pub(crate) struct Report {
    places: Places,
    /// Keys whose values could not be read.
    broken: BTreeSet<KeyPath>,
    /// Refuses the file.
    pub(crate) problems: Vec<Problem>,
    /// Does not.
    pub(crate) warnings: Vec<Problem>,
}

/// A table of the file whose keys are checked.
pub(crate) struct Section<'r> {
    /// Where it stands.
    pub(crate) path: KeyPath,
    /// Where everything is told.
    pub(crate) report: &'r mut Report,
}

impl Report {
    /// A report on a text whose keys stand at `places`.
    pub(crate) fn new(places: Places) -> Self {
        Self {
            places,
            ..Self::default()
        }
    }

    /// Records what is wrong with the value of `key`.
    pub(crate) fn problem(&mut self, key: &KeyPath, message: impl Into<String>) -> &mut Problem {
        let name = self.places.name(key);
        let problem = self.places.problem(name, self.places.value(key), message);
        self.problems.push_mut(problem)
    }

    /// Records what is odd about the value of `key`.
    pub(crate) fn warning(&mut self, key: &KeyPath, message: impl Into<String>) -> &mut Problem {
        let name = self.places.name(key);
        let problem = self.places.problem(name, self.places.value(key), message);
        self.warnings.push_mut(problem)
    }

    /// Records that `key` itself, whatever its value, should not be there.
    pub(crate) fn problem_at_key(&mut self, key: &KeyPath, message: String) -> &mut Problem {
        let name = self.places.name(key);
        let problem = self.places.problem(name, self.places.key(key), message);
        self.problems.push_mut(problem)
    }

    /// Records that `key` itself, whatever its value, is odd.
    pub(crate) fn warning_at_key(&mut self, key: &KeyPath, message: String) -> &mut Problem {
        let name = self.places.name(key);
        let problem = self.places.problem(name, self.places.key(key), message);
        self.warnings.push_mut(problem)
    }

    /// The table at `path`.
    pub(crate) fn section(&mut self, path: KeyPath) -> Section<'_> {
        Section { path, report: self }
    }

    /// In the order of the file.
    pub(crate) fn sort(&mut self) {
        self.problems.sort_by_key(|problem| problem.at);
        self.warnings.sort_by_key(|problem| problem.at);
    }

    /// Says that `key` comes from `name` instead: another key of the file, or an option of the command line.
    pub(crate) fn comes_from(&mut self, key: KeyPath, name: Source) {
        self.places.comes_from(key, name);
    }

    /// Whether the value of `key`, or a table it should stand in, could not be read, so that what
    /// follows from it is unknown.
    pub(crate) fn is_broken(&self, key: &KeyPath) -> bool {
        let broken = |key: &KeyPath| {
            let mut around = std::iter::successors(Some(key.clone()), KeyPath::parent);
            around.any(|key| self.broken.contains(&key))
        };
        broken(key) || matches!(self.places.source(key), Some(Source::Key(key)) if broken(key))
    }

    /// Whether anybody wrote `key`, and a value that could be read.
    pub(crate) fn stands(&self, key: &KeyPath) -> bool {
        let is_option = matches!(self.places.source(key), Some(Source::Option(_)));
        is_option || self.places.stands(key) && !self.is_broken(key)
    }

    /// Remembers that the value of `key` could not be read.
    pub(crate) fn set_broken(&mut self, key: KeyPath) {
        self.broken.insert(key);
    }
}

impl Section<'_> {
    /// Records what is wrong with the value of `key`.
    pub(crate) fn problem(&mut self, key: &str, message: impl Into<String>) -> &mut Problem {
        self.report.problem(&self.path.key(key), message)
    }

    /// Records what is wrong with an element of `list`.
    pub(crate) fn problem_in(
        &mut self,
        list: &str,
        index: usize,
        message: impl Into<String>,
    ) -> &mut Problem {
        let element = self.path.key(list).index(index);
        self.report.problem(&element, message)
    }

    /// Records a zero where it makes no sense.
    pub(crate) fn positive(&mut self, key: &str, is_positive: bool) {
        if !is_positive {
            self.problem(key, "has to be more than zero")
                .help("leave the key out for its default");
        }
    }

    /// Whether anybody wrote `key`, and a value that could be read.
    pub(crate) fn stands(&self, key: &str) -> bool {
        self.report.stands(&self.path.key(key))
    }

    /// Whether the value of `key` could not be read.
    pub(crate) fn is_broken(&self, key: &str) -> bool {
        self.report.is_broken(&self.path.key(key))
    }
}
