//! What a message of HTTP/1.1 looks like on the wire, as far as both sides of a proxy need it: how
//! long its body is. Bodies are not copied, and chunks are not decoded.

use std::io;

use memchr::memmem;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// One read takes at most this much.
pub(crate) const READ: usize = 64 << 10;
/// The end of a chunked body, with the line end before it.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// How the end of a body is found.
#[derive(Debug, Clone)]
pub(crate) enum Framing {
    /// This much is still to come.
    Length(usize),
    /// The last bytes that came, never more than those of the last chunk.
    Chunked(Vec<u8>),
    UntilClose,
}

impl Framing {
    /// What a head says, given without its first line.
    pub(crate) fn of(headers: &[httparse::Header<'_>], without: Self) -> Self {
        let value = |name: &str| {
            let of_name = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
            headers.iter().find(of_name).map(|header| header.value)
        };
        if let Some(length) = value("content-length") {
            let length = str::from_utf8(length)
                .ok()
                .and_then(|text| text.parse().ok());
            return Self::Length(length.unwrap_or(0));
        }
        match value("transfer-encoding") {
            Some(_) => Self::Chunked(b"\r\n".to_vec()),
            None => without,
        }
    }

    /// Takes a piece of the body and tells whether that was its last.
    pub(crate) fn ends_with(&mut self, piece: &[u8]) -> bool {
        match self {
            Self::Length(left) => {
                *left = left.saturating_sub(piece.len());
                *left == 0
            }
            Self::Chunked(tail) => {
                let keep = piece.len().saturating_sub(LAST_CHUNK.len());
                tail.extend_from_slice(&piece[keep..]);
                tail.drain(..tail.len().saturating_sub(LAST_CHUNK.len()));
                tail == LAST_CHUNK
            }
            Self::UntilClose => false,
        }
    }
}

/// The content of a chunked body.
pub(crate) fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    while let httparse::Status::Complete((begin, length)) = httparse::parse_chunk_size(body).ok()? {
        let length = usize::try_from(length).ok()?;
        content.extend_from_slice(body.get(begin..begin + length)?);
        body = body.get(begin + length + 2..)?;
        if length == 0 {
            break;
        }
    }
    Some(content)
}

/// Reads until a head is whole; gives its length.
pub(crate) async fn read_head(stream: &mut TcpStream, read: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        if let Some(end) = memmem::find(read, b"\r\n\r\n") {
            return Ok(end + 4);
        }
        if stream.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_chunk_is_found_in_pieces_and_in_an_empty_body() {
        let mut framing = Framing::Chunked(b"\r\n".to_vec());
        assert!(framing.clone().ends_with(b"0\r\n\r\n"));
        assert!(!framing.ends_with(b"5\r\nhello\r\n"));
        assert!(!framing.ends_with(b"0\r\n"));
        assert!(framing.ends_with(b"\r\n"));
    }

    #[test]
    fn chunks_are_put_together() {
        let body = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
        assert_eq!(unchunked(body), Some(b"hello".to_vec()));
        assert_eq!(unchunked(b"{\"a\":1}"), None);
    }

    #[test]
    fn body_with_a_length_ends_there() {
        let mut framing = Framing::Length(5);
        assert!(!framing.ends_with(b"hel"));
        assert!(framing.ends_with(b"lo"));
    }
}
