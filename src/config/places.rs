//! Where everything stands in a text, and what it is called to its author.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
};

use super::{path::KeyPath, problem::Problem};

/// Where the keys of a text stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    spans: BTreeMap<KeyPath, Spans>,
    /// For counting lines and columns.
    text: String,
    sources: BTreeMap<KeyPath, Source>,
}

#[derive(Clone, Debug)]
struct Spans {
    key: Range<usize>,
    value: Range<usize>,
}

/// Where a value of the mirror comes from when it is not the key of the same name.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Another key of the file.
    Key(KeyPath),
    /// An option of the command line.
    Option(&'static str),
}

impl Places {
    pub(crate) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            ..Self::default()
        }
    }

    /// Remembers where a key and its value stand.
    pub(crate) fn insert(&mut self, path: KeyPath, key: Range<usize>, value: Range<usize>) {
        self.spans.insert(path, Spans { key, value });
    }

    /// The bytes of the value of `key`, or of the nearest table around it.
    pub(crate) fn value(&self, key: &KeyPath) -> Option<Range<usize>> {
        self.find(key, |place| &place.value)
    }

    /// The bytes of `key` itself, or of the nearest table around it.
    pub(crate) fn key(&self, key: &KeyPath) -> Option<Range<usize>> {
        self.find(key, |place| &place.key)
    }

    fn find(&self, key: &KeyPath, part: fn(&Spans) -> &Range<usize>) -> Option<Range<usize>> {
        let key = match self.source(key) {
            Some(Source::Option(_)) => return None,
            Some(Source::Key(key)) => key,
            None => key,
        };
        if let Some(place) = self.spans.get(key) {
            return Some(self.first_line(part(place)));
        }
        let mut around = std::iter::successors(key.parent(), KeyPath::parent);
        let place = around.find_map(|key| self.spans.get(&key))?;
        Some(self.first_line(&place.key))
    }

    /// A table's bytes may be many lines; the first says which one is meant.
    fn first_line(&self, span: &Range<usize>) -> Range<usize> {
        let text = self.text.get(span.clone()).unwrap_or_default();
        let length = text.find('\n').unwrap_or(text.len());
        span.start..span.start + text[..length].trim_end().len()
    }

    /// How `key` is called to its author.
    pub(crate) fn name(&self, key: &KeyPath) -> String {
        match self.source(key) {
            Some(Source::Option(option)) => (*option).to_owned(),
            Some(Source::Key(key)) => key.to_string(),
            None => key.to_string(),
        }
    }

    /// Whether anybody wrote `key`.
    pub(crate) fn stands(&self, key: &KeyPath) -> bool {
        self.spans.contains_key(key) || self.sources.contains_key(key)
    }

    /// Where the value of `key` comes from, if not from there.
    pub(crate) fn source(&self, key: &KeyPath) -> Option<&Source> {
        self.sources.get(key)
    }

    /// Says that `key` comes from somewhere else.
    pub(crate) fn comes_from(&mut self, key: KeyPath, source: Source) {
        self.sources.insert(key, source);
    }

    /// What is wrong with the thing called `key`, which stands in these bytes.
    pub(crate) fn problem(
        &self,
        key: String,
        span: Option<Range<usize>>,
        message: impl Into<String>,
    ) -> Problem {
        let start = span.as_ref().map(|span| span.start);
        Problem {
            key,
            at: start.and_then(|start| self.line_column(start)),
            message: message.into(),
            help: None,
            span,
        }
    }

    /// 1-based line and column of a byte; columns count characters.
    fn line_column(&self, offset: usize) -> Option<(usize, usize)> {
        let before = self.text.get(..offset)?;
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = before.matches('\n').count() + 1;
        Some((line, before[line_start..].chars().count() + 1))
    }

    /// The byte at a 1-based line and column.
    pub(crate) fn offset(&self, line: usize, column: usize) -> Option<usize> {
        let before = self.text.split_inclusive('\n').take(line.checked_sub(1)?);
        let start: usize = before.map(str::len).sum();
        let rest = self.text.get(start..)?.char_indices();
        let mut rest = rest.map(|(offset, _)| start + offset);
        Some(rest.nth(column.checked_sub(1)?).unwrap_or(self.text.len()))
    }

    /// The bytes of every value that may be a secret. A hash is none, and its author needs to see it.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = Range<usize>> {
        let is_hash = |span: &Range<usize>| {
            let text = self.text.get(span.clone()).unwrap_or_default();
            text.trim_start_matches(['"', '\'', '[', ' '])
                .starts_with("sha256:")
        };
        // Of a list or a table only what stands in it is secret; that follows it in this order.
        let is_leaf = |key: &KeyPath| {
            let after = (Bound::Excluded(key), Bound::Unbounded);
            let next = self.spans.range::<KeyPath, _>(after).next();
            !next.is_some_and(|(next, _)| next.steps().starts_with(key.steps()))
        };
        let secret = move |(key, _): &(&KeyPath, &Spans)| key.is_secret() && is_leaf(key);
        let secrets = self.spans.iter().filter(secret);
        let spans = secrets.map(|(_, place)| place.value.clone());
        spans.filter(move |span| !is_hash(span))
    }
}
