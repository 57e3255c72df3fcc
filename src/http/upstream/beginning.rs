//! The head of an answer as it comes off a connection, in whatever pieces.

use std::{io, mem::MaybeUninit};

use actix_web::http::StatusCode;
use httparse::{Header, ParserConfig, Response};

use super::{
    framing::{Framing, malformed},
    head::Head,
};
use crate::http::limits::{MAX_HEAD, MAX_HEAD_FIELDS, MAX_INTERIM};

/// The beginning of an answer, as far as it is here.
#[derive(Default)]
pub(super) struct Beginning {
    /// What came of a head that is not whole.
    held: Vec<u8>,
    /// Heads that came before the answer's own.
    interim: usize,
}

/// A head that is whole.
pub(super) struct Begun {
    pub(super) head: Head,
    pub(super) framing: Framing,
    /// The connection stays open behind the body.
    pub(super) is_kept: bool,
}

// === impl Beginning ===

impl Beginning {
    /// Takes the next piece. Once the head is whole, tells it and where in the piece the body begins.
    ///
    /// # Errors
    /// When it is no head of an answer, or too long.
    pub(super) fn take(&mut self, piece: &[u8]) -> io::Result<Option<(Begun, usize)>> {
        let mut at = 0;
        while let Some((begun, taken)) = self.next(&piece[at..])? {
            at += taken;
            if let Some(begun) = begun {
                return Ok(Some((begun, at)));
            }
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(malformed("too many answers before the answer"));
            }
        }
        Ok(None)
    }

    /// One head, if it ends in this piece. Each byte is looked at once, however small the pieces are.
    fn next(&mut self, piece: &[u8]) -> io::Result<Option<(Option<Begun>, usize)>> {
        let before = self.held.len();
        // The usual head comes in one piece and is read where it is.
        let end = if before == 0 {
            end_of_head(piece, 0)
        } else {
            self.held.extend_from_slice(piece);
            end_of_head(&self.held, before.saturating_sub(2))
        };
        if end.unwrap_or(before + piece.len()) > MAX_HEAD {
            return Err(malformed("the head of the answer is too long"));
        }
        match end {
            None if before == 0 => self.held.extend_from_slice(piece),
            None => {}
            Some(end) if before == 0 => return Ok(Some((parse(&piece[..end])?, end))),
            Some(end) => {
                let begun = parse(&self.held[..end])?;
                self.held.clear();
                return Ok(Some((begun, end - before)));
            }
        }
        Ok(None)
    }
}

/// Behind the empty line.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &bytes[from..]).find_map(|at| match bytes[from + at + 1..] {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

/// A whole head; none if it only says that one is to come.
fn parse(head: &[u8]) -> io::Result<Option<Begun>> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_HEAD_FIELDS];
    let mut response = Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        head,
        &mut fields,
    );
    let parsed = parsed.map_err(|error| malformed(&format!("the head is none: {error}")))?;
    let (Some(code), Some(version)) = (response.code, response.version) else {
        return Err(malformed("the head is none"));
    };
    if parsed.is_partial() {
        return Err(malformed("the head is none"));
    }
    // 101 is none of them: nobody asked for another protocol.
    if (100..200).contains(&code) && code != 101 {
        return Ok(None);
    }
    let status = StatusCode::from_u16(code).map_err(|_| malformed("the status is none"))?;
    let (mut head, mut lines) = (Head::new(status), Lines::default());
    for field in response.headers.iter() {
        head.note(field.name, field.value);
        lines.note(field.name, field.value)?;
    }
    let is_1_0 = version == 0;
    Ok(Some(Begun {
        head,
        framing: lines.framing(is_1_0)?,
        is_kept: lines.is_kept(is_1_0),
    }))
}

/// What a head says of its connection.
#[derive(Default)]
struct Lines {
    length: Option<u64>,
    is_chunked: bool,
    says_close: bool,
    says_keep: bool,
}

impl Lines {
    fn note(&mut self, name: &str, value: &[u8]) -> io::Result<()> {
        if name.eq_ignore_ascii_case("content-length") {
            for member in members(value) {
                let length =
                    number(member).ok_or_else(|| malformed("content-length is no number"))?;
                if self
                    .length
                    .replace(length)
                    .is_some_and(|other| other != length)
                {
                    return Err(malformed("content-length says two things"));
                }
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            // Any other coding would have to be undone by us, and nobody asked for one.
            if self.is_chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(malformed("transfer-encoding is not chunked alone"));
            }
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for member in members(value) {
                self.says_close |= member.eq_ignore_ascii_case(b"close");
                self.says_keep |= member.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(())
    }

    fn framing(&self, is_1_0: bool) -> io::Result<Framing> {
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(malformed("both content-length and transfer-encoding")),
            (true, None) if is_1_0 => Err(malformed("transfer-encoding in HTTP/1.0")),
            (true, None) => Ok(Framing::chunked()),
            (false, Some(length)) => Ok(Framing::Length(length)),
            (false, None) => Ok(Framing::ToClose),
        }
    }

    fn is_kept(&self, is_1_0: bool) -> bool {
        !self.says_close && (!is_1_0 || self.says_keep)
    }
}

fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Digits alone: the standard library also takes a sign.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_number)?;
    digits.parse().ok()
}
