//! What is wrong with a configuration, and how it is shown: the line, a mark under the place, and
//! what to do about it.

use std::{fmt::Write as _, ops::Range, path::Path};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// One thing that is wrong with a configuration, or odd about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The key, as a dotted path (`models[1].engine`).
    pub key: String,
    /// 1-based line and column, where the format tells them.
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The bytes of the text it is about.
    #[serde(skip)]
    pub span: Option<Range<usize>>,
}

impl Problem {
    /// Says what to do about it.
    pub(crate) fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The configuration is refused.
    Error,
    /// It is taken, but its author should know.
    Warning,
}

/// The text a configuration came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file, as the user named it; empty for a command line.
    pub name: String,
    /// Its text, secrets blotted out.
    text: String,
}

impl Origin {
    /// A file's name and text, before anything is known about it.
    pub(crate) fn new(path: &Path, text: &str) -> Self {
        Self {
            name: path.display().to_string(),
            text: text.to_owned(),
        }
    }

    /// Blots out what no excerpt may show.
    pub(crate) fn blot(&mut self, secrets: impl IntoIterator<Item = Range<usize>>) {
        for span in secrets {
            if let Some(secret) = self.text.get(span.clone()) {
                // Same length and the same line breaks, so that every other place stays where it is.
                let blotted: String = secret
                    .bytes()
                    .map(|byte| match byte {
                        b'\n' | b'\r' => char::from(byte),
                        _ => '*',
                    })
                    .collect();
                self.text.replace_range(span, &blotted);
            }
        }
    }

    /// The problems one after the other, as a compiler shows them. Print it with `anstream`, which
    /// drops the colours where they don't belong.
    pub(crate) fn render(&self, problems: &[Problem], severity: Severity) -> String {
        let mut out = String::new();
        for problem in problems {
            let _ = writeln!(out, "{}\n", self.render_one(problem, severity));
        }
        out
    }

    fn render_one(&self, problem: &Problem, severity: Severity) -> String {
        let level = match severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = match problem.key.as_str() {
            "" => problem.message.clone(),
            key => format!("{key}: {}", problem.message),
        };
        let mut group = match &problem.span {
            Some(span) if self.text.get(span.clone()).is_some() => {
                let mark = AnnotationKind::Primary.span(span.clone());
                let snippet = Snippet::source(&self.text)
                    .path(&self.name)
                    .annotation(mark);
                level.primary_title(&title).element(snippet)
            }
            _ if self.name.is_empty() => {
                annotate_snippets::Group::with_title(level.primary_title(&title))
            }
            _ => level
                .primary_title(&title)
                .element(annotate_snippets::Origin::path(&self.name)),
        };
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help));
        }
        Renderer::styled().render(&[group])
    }
}
