//! Where an answer's body begins and ends on its connection (RFC 9112, sections 6 and 7).
//!
//! Pure: bytes in, bytes out. Any cut of the same bytes into pieces gives the same body.

use std::{io, ops::Range};

use crate::http::limits::MAX_HEAD;

/// How the end of a body is known, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are missing.
    Length(u64),
    /// Each piece says how long it is.
    Chunked(Chunked),
    /// It ends with its connection.
    ToClose,
}

/// How far a body in chunks is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    /// Bytes of the chunk that are missing.
    left: u64,
    /// Bytes since the last one that belonged to the body.
    between: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A chunk's size begins.
    Begin,
    Size,
    /// Blanks behind a size.
    Blank,
    /// What a chunk says beside its size, which means nothing to us.
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// A line begins behind the last chunk.
    Trailer,
    TrailerField,
    TrailerEnd,
    LastEnd,
    Over,
}

/// What a piece held.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Where in the piece its part of the body is now.
    pub(super) body: Range<usize>,
    /// The body ends in it, so many bytes before the piece does.
    pub(super) end: Option<usize>,
}

// === impl Framing ===

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked {
            state: State::Begin,
            left: 0,
            between: 0,
        })
    }

    /// Nothing is missing.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.state == State::Over,
            Self::ToClose => false,
        }
    }

    /// Finds the body's part in the next piece and moves it together.
    ///
    /// # Errors
    /// When the piece breaks the rules.
    pub(super) fn decode(&mut self, piece: &mut [u8]) -> io::Result<Decoded> {
        let body = match self {
            Self::ToClose => 0..piece.len(),
            Self::Length(left) => {
                // What is behind the end would be missing from an answer that is longer than its
                // head says, and what it lacks nobody can tell.
                let rest = left.checked_sub(piece.len() as u64);
                *left =
                    rest.ok_or_else(|| malformed("the body is longer than its content-length"))?;
                0..piece.len()
            }
            Self::Chunked(chunked) => return chunked.decode(piece),
        };
        let end = self.is_over().then_some(0);
        Ok(Decoded { body, end })
    }

    /// The connection ended.
    ///
    /// # Errors
    /// When something is missing.
    pub(super) fn end(&self) -> io::Result<()> {
        if self.is_over() || *self == Self::ToClose {
            return Ok(());
        }
        let why = "the connection ended before the body did";
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
    }
}

// === impl Chunked ===

impl Chunked {
    fn decode(&mut self, piece: &mut [u8]) -> io::Result<Decoded> {
        let (mut at, mut body) = (0, 0..0);
        while at < piece.len() && self.state != State::Over {
            if self.state != State::Data {
                self.step(piece[at])?;
                at += 1;
                continue;
            }
            let ahead = piece.len() - at;
            let data = usize::try_from(self.left).map_or(ahead, |left| left.min(ahead));
            if body.is_empty() {
                body = at..at;
            }
            piece.copy_within(at..at + data, body.end);
            body.end += data;
            at += data;
            self.left -= data as u64;
            if self.left == 0 {
                (self.state, self.between) = (State::DataReturn, 0);
            }
        }
        let end = (self.state == State::Over).then_some(piece.len() - at);
        Ok(Decoded { body, end })
    }

    /// One byte that is not of the body. Lines end with both CR and LF: who takes one for the other
    /// disagrees with its neighbours about where a message ends.
    fn step(&mut self, byte: u8) -> io::Result<()> {
        self.between += 1;
        if self.between > MAX_HEAD {
            return Err(malformed("too much between two chunks"));
        }
        self.state = match (self.state, byte) {
            (State::Begin | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.grow(byte)?;
                State::Size
            }
            (State::Size | State::Blank, b' ' | b'\t') => State::Blank,
            (State::Size | State::Blank, b';') => State::Extension,
            (State::Size | State::Blank | State::Extension, b'\r') => State::SizeEnd,
            (State::Extension, byte) if byte != b'\n' => State::Extension,
            (State::SizeEnd, b'\n') if self.left == 0 => State::Trailer,
            (State::SizeEnd, b'\n') => State::Data,
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Begin,
            (State::Trailer, b'\r') => State::LastEnd,
            (State::TrailerField, b'\r') => State::TrailerEnd,
            (State::Trailer | State::TrailerField, byte) if byte != b'\n' => State::TrailerField,
            (State::TrailerEnd, b'\n') => State::Trailer,
            (State::LastEnd, b'\n') => State::Over,
            (state, _) => return Err(state.malformed()),
        };
        Ok(())
    }

    fn grow(&mut self, digit: u8) -> io::Result<()> {
        let digit = char::from(digit).to_digit(16).map_or(0, u64::from);
        let grown = self.left.checked_mul(16).map(|size| size + digit);
        self.left = grown.ok_or_else(|| malformed("a chunk's size is too large"))?;
        Ok(())
    }
}

impl State {
    fn malformed(self) -> io::Error {
        malformed(match self {
            Self::Begin | Self::Size | Self::Blank | Self::Extension | Self::SizeEnd => {
                "a chunk's size is none"
            }
            Self::Data | Self::DataReturn | Self::DataEnd => "a chunk is longer than its size",
            Self::Trailer | Self::TrailerField | Self::TrailerEnd | Self::LastEnd | Self::Over => {
                "the lines behind the last chunk are none"
            }
        })
    }
}

/// The engine breaks the rules of HTTP.
pub(super) fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
