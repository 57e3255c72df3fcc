//! Telling the user how far an install is: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::Mutex,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// What happens during an install, in this order; `Waiting` may come first, `OnDisk` often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Another process installs the same thing.
    Waiting {
        /// What is waited for.
        what: &'a str,
    },
    /// Work begins.
    Started {
        /// What is installed.
        what: &'a str,
        /// About how many bytes it will take, where known.
        bytes: Option<u64>,
    },
    /// A step begins.
    Step {
        /// What it does.
        label: &'a str,
    },
    /// Bytes that have come so far.
    OnDisk(u64),
    /// Everything is there.
    Finished {
        /// What was installed.
        what: &'a str,
        /// Its version, where it has one.
        version: Option<&'a str>,
    },
}

/// Listens to an install. Called from the installing thread and from one beside it.
pub trait Progress: Sync {
    /// Takes note of an event.
    fn report(&self, event: Event<'_>);

    /// How long it is content to see nothing move. Then a step is ended.
    fn patience(&self) -> Duration {
        Duration::from_secs(180)
    }
}

impl<F: Fn(Event<'_>) + Sync> Progress for F {
    fn report(&self, event: Event<'_>) {
        self(event);
    }
}

/// A bar if stderr is a terminal, else [`Lines`].
#[must_use]
pub fn to_stderr() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        return Box::new(Bar::default());
    }
    Box::new(Lines)
}

/// One plain line per step on stderr, for logs and pipes.
#[derive(Debug)]
pub struct Lines;

impl Progress for Lines {
    fn report(&self, event: Event<'_>) {
        let line = match event {
            Event::Waiting { what } => format!("{what}: waiting for another install of it"),
            Event::Started {
                what,
                bytes: Some(bytes),
            } => {
                format!("{what}: installing, about {} MiB", bytes >> 20)
            }
            Event::Started { what, bytes: None } => format!("{what}: fetching"),
            Event::Step { label } => format!("  {label}"),
            Event::OnDisk(_) => return,
            Event::Finished { what, version } => {
                format!("{what}: ready {}", version.unwrap_or_default())
                    .trim_end()
                    .to_owned()
            }
        };
        // Nobody is left to tell that stderr is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// A bar on stderr that grows with the bytes on disk.
#[derive(Debug, Default)]
pub struct Bar {
    bar: Mutex<Option<ProgressBar>>,
}

const KNOWN: &str =
    "{prefix:.bold} [{bar:28}] {binary_bytes}/{binary_total_bytes} {elapsed} {wide_msg}";
const UNKNOWN: &str = "{prefix:.bold} {spinner} {binary_bytes} {elapsed} {wide_msg}";

impl Progress for Bar {
    fn report(&self, event: Event<'_>) {
        // A poisoned lock only means that a drawing thread panicked; drawing on is harmless.
        let mut slot = self
            .bar
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Waiting { what } => {
                let bar = new_bar(what, None);
                bar.set_message("waiting for another install of it");
                if let Some(old) = slot.replace(bar) {
                    old.finish_and_clear();
                }
            }
            Event::Started { what, bytes } => {
                if let Some(waiting) = slot.replace(new_bar(what, bytes)) {
                    waiting.finish_and_clear();
                }
            }
            Event::Step { label } => {
                if let Some(bar) = &*slot {
                    bar.set_message(label.to_owned());
                }
            }
            Event::OnDisk(bytes) => {
                if let Some(bar) = &*slot {
                    grow(bar, bytes);
                }
            }
            Event::Finished { version, .. } => {
                if let Some(bar) = slot.take() {
                    bar.set_length(bar.position());
                    bar.finish_with_message(format!("ready {}", version.unwrap_or_default()));
                }
            }
        }
    }
}

/// The expected size is a guess where packages are not pinned: rather a longer bar than one at 110%.
fn grow(bar: &ProgressBar, bytes: u64) {
    // Linking in from the cache may start below what the downloads had reached.
    let bytes = bytes.max(bar.position());
    if bar.length().is_some_and(|length| bytes > length) {
        bar.set_length(bytes);
    }
    bar.set_position(bytes);
}

fn new_bar(what: &str, bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), KNOWN),
        None => (ProgressBar::new_spinner(), UNKNOWN),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    // So that the clock goes on while a step is silent.
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

impl Drop for Bar {
    /// After an error the bar stays where it was, and the message goes below it.
    fn drop(&mut self) {
        if let Ok(Some(bar)) = self.bar.get_mut().map(Option::take) {
            bar.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [KNOWN, UNKNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }

    #[test]
    fn bar_never_shrinks_and_never_overflows() {
        let bar = ProgressBar::hidden();
        bar.set_length(100);
        grow(&bar, 80);
        grow(&bar, 20);
        assert_eq!(bar.position(), 80);
        grow(&bar, 130);
        assert_eq!(bar.length(), Some(130));
    }
}
