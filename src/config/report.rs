//! Collects what reading and checking find.

use std::ops::Range;

use super::{
    path::KeyPath,
    places::{Places, Source},
    problem::{Problem, Severity},
};

/// Collects what reading and checking find.
pub(crate) struct Report {
    places: Places,
    /// Refuses the file.
    pub(crate) problems: Vec<Problem>,
    /// Does not.
    pub(crate) warnings: Vec<Problem>,
}

impl Report {
    /// A report on a text whose keys stand at `places`.
    pub(crate) fn new(places: Places) -> Self {
        Self {
            places,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Records what is wrong with the value of `key`.
    pub(crate) fn problem(
        &mut self,
        key: &KeyPath,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        let span = self.places.value(key);
        self.problems
            .push(self.place(key, span, message.into(), help.into()));
    }

    /// Records what is odd about the value of `key`.
    pub(crate) fn warn(
        &mut self,
        key: &KeyPath,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        let span = self.places.value(key);
        self.warnings
            .push(self.place(key, span, message.into(), help.into()));
    }

    /// Records that `key` itself, whatever its value, should not be there.
    pub(crate) fn key(
        &mut self,
        severity: Severity,
        key: &KeyPath,
        message: String,
        help: Option<String>,
    ) {
        let problem = self.place(key, self.places.key(key), message, help);
        match severity {
            Severity::Error => self.problems.push(problem),
            Severity::Warning => self.warnings.push(problem),
        }
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

    /// Whether the value of `key` could not be read, so that what follows from it is unknown.
    pub(crate) fn is_broken(&self, key: &KeyPath) -> bool {
        self.places.is_broken(key)
    }

    /// Remembers that the value of `key` could not be read.
    pub(crate) fn set_broken(&mut self, key: KeyPath) {
        self.places.set_broken(key);
    }

    fn place(
        &self,
        key: &KeyPath,
        span: Option<Range<usize>>,
        message: String,
        help: Option<String>,
    ) -> Problem {
        let at = span
            .as_ref()
            .and_then(|span| self.places.line_column(span.start));
        Problem {
            key: self.places.name(key),
            at,
            message,
            help,
            span,
        }
    }
}
