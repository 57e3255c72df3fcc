//! Cuts a body into server-sent events, by the grammar of WHATWG HTML 9.2.5: a line ends with LF, CR
//! or both, an event with a blank line.
//!
//! No byte is changed, left out or looked at twice, and the usual piece, one whole event, is not
//! copied. There is no limit on the length of an event here: who reads bounds
//! [`pending`](Splitter::pending).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// What a body of events may begin with instead of its first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A body in the making.
#[derive(Default)]
pub struct Splitter {
    whole: VecDeque<Bytes>,
    /// The beginning of an event that is not whole; all of it was looked at.
    begun: BytesMut,
    line: Line,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// At the beginning of a line, behind LF or CR LF, or at the beginning of the body.
    #[default]
    Begins,
    /// At the beginning of a line, behind a CR alone.
    BeginsAfterCr,
    /// Amid a line.
    Amid,
    /// Behind a CR at the end of what came, in front of its LF if it has one.
    EndsAfterCr { is_blank: bool },
    /// Behind an event that ended with two CRs: an LF would belong to the second.
    EventEndedAfterCr,
}

// === impl Splitter ===

impl Splitter {
    /// Takes in what came.
    pub fn push(&mut self, mut piece: Bytes) {
        while let Some(end) = self.end_of_event(&piece) {
            let last = piece.split_to(end);
            let event = if self.begun.is_empty() {
                last
            } else {
                let mut begun = std::mem::take(&mut self.begun);
                begun.extend_from_slice(&last);
                begun.freeze()
            };
            self.whole.push_back(event);
        }
        self.begun.extend_from_slice(&piece);
    }

    /// The next whole event, its blank line included.
    pub fn next_event(&mut self) -> Option<Bytes> {
        self.whole.pop_front()
    }

    /// Bytes of the event that is not whole yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.begun.len()
    }

    /// At the end of the body: the event that came without its blank line.
    pub fn rest(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.begun);
        self.line = Line::default();
        (!rest.is_empty()).then(|| rest.freeze())
    }

    /// Behind the blank line that ends the event begun, if `piece` has it.
    fn end_of_event(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < piece.len() {
            let byte = piece[at];
            match self.line {
                Line::EndsAfterCr { is_blank } => {
                    let has_lf = byte == b'\n';
                    at += usize::from(has_lf);
                    self.line = if has_lf {
                        Line::Begins
                    } else {
                        Line::BeginsAfterCr
                    };
                    if is_blank {
                        self.line = Line::Begins;
                        return Some(at);
                    }
                }
                Line::EventEndedAfterCr => {
                    at += usize::from(byte == b'\n');
                    self.line = Line::Begins;
                }
                Line::Begins | Line::BeginsAfterCr if byte == b'\n' => {
                    self.line = Line::Begins;
                    return Some(at + 1);
                }
                // A body that ends its lines with CR alone would wait for an LF that never comes.
                Line::BeginsAfterCr if byte == b'\r' => {
                    self.line = Line::EventEndedAfterCr;
                    return Some(at + 1);
                }
                Line::Begins if byte == b'\r' => {
                    at += 1;
                    self.line = Line::EndsAfterCr { is_blank: true };
                }
                Line::Begins | Line::BeginsAfterCr | Line::Amid => {
                    at += self.end_of_line(&piece[at..]);
                }
            }
        }
        None
    }

    /// Passes over the rest of a line that is not blank.
    fn end_of_line(&mut self, piece: &[u8]) -> usize {
        let Some(end) = memchr::memchr2(b'\n', b'\r', piece) else {
            self.line = Line::Amid;
            return piece.len();
        };
        self.line = if piece[end] == b'\n' {
            Line::Begins
        } else {
            Line::EndsAfterCr { is_blank: false }
        };
        end + 1
    }
}

/// Whether a body that begins like this has events in it, whatever its content type says. No JSON
/// begins with the name of a field, or with a colon.
#[must_use]
pub fn looks_like_events(beginning: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 5] = [b"data:", b"event:", b"id:", b"retry:", b":"];
    let beginning = without_mark(beginning).trim_ascii_start();
    // The first piece may be shorter than the name.
    !beginning.is_empty()
        && BEGINNINGS
            .iter()
            .any(|name| beginning.starts_with(name) || name.starts_with(beginning))
}

/// The lines of an event, without their ends.
pub(super) fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = without_mark(event);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let (line, behind) = rest.split_at(end);
        let is_both = behind.starts_with(b"\r\n");
        rest = behind.get(1 + usize::from(is_both)..).unwrap_or_default();
        Some(line)
    })
}

/// The value of a `data:` line. One blank belongs to the name.
pub(super) fn data_of(line: &[u8]) -> Option<&[u8]> {
    let value = match line.strip_prefix(b"data") {
        Some([]) => &[],
        Some([b':', value @ ..]) => value,
        Some(_) | None => return None,
    };
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}
