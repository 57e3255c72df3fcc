//! The last lines an engine printed: what an operator sees first, and what the cause of a failure
//! is read from. Bounded however the engine prints: 50 lines of 500 bytes.

use std::{collections::VecDeque, time::Duration};

use kvwarden_policy::failure::{self, Weight};
use tokio::time::Instant;

/// Enough for a Python traceback with the lines that led to it.
const LINES: usize = 50;
const LINE_BYTES: usize = 500;

/// Lines that explain an end and were pushed out by later ones. When a worker of vLLM dies, its core and
/// its API server print some 160 lines of traceback after the one that says so.
const KEPT: usize = 6;

/// What was said longer ago has not ended the engine: a handled error, or a sentence a
/// client smuggled into the log. Long enough for workers to time out on one that died.
const RECENT: Duration = Duration::from_secs(120);

/// Lines weighed per second: reading one takes some 20 us, and a flood that is read
/// slowly would make the engine wait. No failure prints that many.
const LOOKS_PER_SECOND: u32 = 1000;

/// The last lines of a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<Line>,
    kept: Vec<Kept>,
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

/// A line that explains an end, and how much.
#[derive(Debug)]
struct Kept {
    weight: Weight,
    line: Line,
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

    /// The last lines, oldest first; what explains an end and scrolled away recently takes the oldest
    /// places.
    pub(super) fn lines(&self, now: Instant) -> Vec<String> {
        let kept = self.kept.iter().map(|kept| &kept.line);
        let kept = kept.filter(|line| line.is_recent(now));
        let current = (!self.current.is_empty()).then(|| readable(&self.current));
        let mut all: Vec<String> = kept.map(Line::text).collect();
        let places = LINES - all.len() - usize::from(current.is_some());
        let skipped = self.lines.len().saturating_sub(places);
        all.extend(self.lines.iter().skip(skipped).map(Line::text));
        all.extend(current);
        all
    }

    /// Only what was printed recently, for judging what ended the engine.
    pub(super) fn recent(&self, now: Instant) -> Vec<String> {
        let kept = self.kept.iter().map(|kept| &kept.line);
        let lines = kept.chain(&self.lines);
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
        if self.looks.allow(now) {
            let weight = failure::weigh(&oldest.text());
            if weight >= Weight::Failure {
                self.keep(weight, oldest, now);
                return Vec::new();
            }
        }
        oldest.bytes.clear();
        oldest.bytes
    }

    /// Keeps a line, in the place of the oldest of those that explain least.
    fn keep(&mut self, weight: Weight, line: Line, now: Instant) {
        self.kept.retain(|kept| kept.line.is_recent(now));
        if self.kept.len() >= KEPT {
            let lightest = self.kept.iter().enumerate();
            let lightest = lightest.min_by_key(|(_, kept)| kept.weight);
            match lightest.map(|(at, kept)| (at, kept.weight)) {
                Some((at, least)) if least <= weight => drop(self.kept.remove(at)),
                Some(_) | None => return,
            }
        }
        self.kept.push(Kept { weight, line });
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

    /// The head of each file says how the engine ended and the sentence that shall be shown.
    #[test]
    fn line_that_explains_is_still_there_in_every_log_of_the_corpus() {
        let dir = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/actors/policy/src/failure/corpus"
        );
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let (head, log) = text.split_once("\n---\n").unwrap();
            let field = |name| head.lines().find_map(|line| line.strip_prefix(name));
            let exit = failure::Exit {
                code: field("code: ").map(|code| code.parse().unwrap()),
                signal: field("signal: ").map(|signal| signal.parse().unwrap()),
                is_oom_killed: false,
            };
            let lines = fed(&[log]);
            let class = failure::classify(exit, &lines, false);
            let sentence = failure::describe(exit, class, &lines);
            assert_eq!(Some(&*sentence), field("sentence: "), "{}", path.display());
        }
    }

    #[test]
    fn flood_of_handled_errors_does_not_push_out_a_cause() {
        let errors = "ValueError: handled\n".repeat(100);
        let traceback = "  File \"x.py\", line 1\n".repeat(100);
        let lines = fed(&[
            "torch.OutOfMemoryError: CUDA out of memory.\n",
            &errors,
            &traceback,
        ]);
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
