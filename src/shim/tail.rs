//! The last lines an engine printed: what an operator sees first, and what the cause of a failure
//! is read from. Bounded however the engine prints: 50 lines of 500 bytes.

use std::{collections::VecDeque, time::Duration};

use kvwarden_policy::failure;
use tokio::time::Instant;

/// Enough for a Python traceback with the lines that led to it.
const LINES: usize = 50;
const LINE_BYTES: usize = 500;

/// Lines that name a cause and were pushed out by later ones. vLLM's API server prints some 60
/// lines of traceback after the core's own.
const CAUSES: usize = 5;

/// A cause that was named longer ago has not ended the engine: a handled error, or a sentence a
/// client smuggled into the log. Long enough for workers to time out on one that died.
const RECENT: Duration = Duration::from_secs(120);

/// Lines looked at for a cause per second: reading one takes some 20 us, and a flood that is read
/// slowly would make the engine wait. No failure prints that many.
const LOOKS_PER_SECOND: u32 = 1000;

/// The last lines of a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<Line>,
    causes: VecDeque<Line>,
    looks: Looks,
    current: Vec<u8>,
    /// A carriage return was seen and what follows it decides: `\r\n` ends the line, anything else
    /// writes over it, as a progress bar does.
    returned: bool,
}

/// How many lines were looked at since when.
#[derive(Debug, Default)]
struct Looks {
    since: Option<Instant>,
    count: u32,
}

#[derive(Debug)]
struct Line {
    at: Instant,
    bytes: Vec<u8>,
}

impl Tail {
    /// Takes in the next bytes of output.
    pub(super) fn feed(&mut self, bytes: &[u8], now: Instant) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            self.extend(&rest[..end]);
            match rest[end] {
                b'\n' => self.end_line(now),
                _ => self.returned = true,
            }
            rest = &rest[end + 1..];
        }
        self.extend(rest);
    }

    /// The last lines, oldest first; causes that scrolled away recently take the oldest places.
    pub(super) fn lines(&self, now: Instant) -> Vec<String> {
        let causes = self.causes.iter().filter(|line| line.is_recent(now));
        let current = (!self.current.is_empty()).then(|| readable(&self.current));
        let mut all: Vec<String> = causes.map(Line::text).collect();
        let places = LINES - all.len() - usize::from(current.is_some());
        let skipped = self.lines.len().saturating_sub(places);
        all.extend(self.lines.iter().skip(skipped).map(Line::text));
        all.extend(current);
        all
    }

    /// Only what was printed recently, for judging what ended the engine.
    pub(super) fn recent(&self, now: Instant) -> Vec<String> {
        let lines = self.causes.iter().chain(&self.lines);
        lines
            .filter(|line| line.is_recent(now))
            .map(Line::text)
            .chain((!self.current.is_empty()).then(|| readable(&self.current)))
            .collect()
    }

    fn extend(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if std::mem::take(&mut self.returned) {
            self.current.clear();
        }
        let room = LINE_BYTES - self.current.len();
        self.current.extend(&bytes[..bytes.len().min(room)]);
    }

    fn end_line(&mut self, now: Instant) {
        self.returned = false;
        // The line that leaves lends its buffer to the next, so that a flood allocates nothing.
        let spare = self.make_room(now);
        let bytes = std::mem::replace(&mut self.current, spare);
        self.lines.push_back(Line { at: now, bytes });
    }

    fn make_room(&mut self, now: Instant) -> Vec<u8> {
        if self.lines.len() < LINES {
            return Vec::new();
        }
        let Some(mut oldest) = self.lines.pop_front() else {
            return Vec::new();
        };
        if self.looks.allow(now) && failure::cause_in(&oldest.text()).is_some() {
            if self.causes.len() == CAUSES {
                self.causes.pop_front();
            }
            self.causes.push_back(oldest);
            return Vec::new();
        }
        oldest.bytes.clear();
        oldest.bytes
    }
}

impl Looks {
    fn allow(&mut self, now: Instant) -> bool {
        let second = Duration::from_secs(1);
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= second)
        {
            *self = Self {
                since: Some(now),
                count: 0,
            };
        }
        self.count += 1;
        self.count <= LOOKS_PER_SECOND
    }
}

impl Line {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) <= RECENT
    }

    fn text(&self) -> String {
        readable(&self.bytes)
    }
}

/// Text without colours or other control characters: it will be shown in terminals, and an engine
/// echoes what clients send.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' && chars.as_str().starts_with('[') {
            // CSI .. final byte (ECMA-48 5.4).
            chars.next();
            chars.find(|c| ('@'..='~').contains(c));
        } else if c == '\t' || !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(chunks: &[&str]) -> Vec<String> {
        let now = Instant::now();
        let mut tail = Tail::default();
        for chunk in chunks {
            tail.feed(chunk.as_bytes(), now);
        }
        tail.lines(now)
    }

    #[test]
    fn lines_are_joined_over_reads_and_a_last_one_needs_no_newline() {
        assert_eq!(fed(&["a", "b\nc\r", "\nd"]), ["ab", "c", "d"]);
    }

    #[test]
    fn progress_bar_leaves_its_last_state() {
        assert_eq!(
            fed(&["load 1%\rload 2%\r", "load 3%\r\ndone\n"]),
            ["load 3%", "done"]
        );
    }

    #[test]
    fn colours_and_control_characters_are_dropped() {
        let coloured = "\x1b[1;36m(APIServer pid=1)\x1b[0;0m ready\x07\tnow\n";
        assert_eq!(fed(&[coloured]), ["(APIServer pid=1) ready\tnow"]);
    }

    #[test]
    fn long_lines_are_cut_and_old_ones_leave() {
        let many: String = (0..1000)
            .map(|n| format!("{n}{}\n", "x".repeat(9999)))
            .collect();
        let lines = fed(&[&many]);
        assert_eq!(lines.len(), LINES);
        assert!(lines.iter().all(|line| line.len() == LINE_BYTES));
        assert!(lines[0].starts_with("950x") && lines[49].starts_with("999x"));
    }

    #[test]
    fn cause_stays_though_a_longer_traceback_follows() {
        let traceback = "  File \"x.py\", line 1\n".repeat(100);
        let lines = fed(&["torch.OutOfMemoryError: CUDA out of memory.\n", &traceback]);
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0], "torch.OutOfMemoryError: CUDA out of memory.");
    }

    #[test]
    fn old_cause_is_shown_but_not_held_against_a_later_crash() {
        let mut tail = Tail::default();
        let then = Instant::now();
        tail.feed(b"MemoryError: but handled\n", then);
        let later = then + RECENT + Duration::from_secs(1);
        tail.feed(b"Segmentation fault\n", later);
        assert_eq!(tail.lines(later).len(), 2);
        assert_eq!(tail.recent(later), ["Segmentation fault"]);
    }
}
