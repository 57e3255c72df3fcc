//! One HTTP exchange on a bare socket: what arrives when is seen, and hanging up is a `drop`.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

/// Longest silence on a socket that is no failure.
const SILENCE: Duration = Duration::from_secs(60);

/// A request that was sent and whose answer has not been read. Dropping it hangs up.
#[derive(Debug)]
pub struct Exchange {
    socket: TcpStream,
}

impl Exchange {
    /// Sends bytes as they are.
    ///
    /// # Panics
    /// If nobody listens there.
    #[must_use]
    pub fn raw(port: u16, bytes: &[u8]) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
        let limited = socket.set_read_timeout(Some(SILENCE));
        limited.expect("a socket takes a timeout");
        (&socket).write_all(bytes).expect("the server reads");
        Self { socket }
    }

    /// Sends a POST with JSON, as a tenant.
    #[must_use]
    pub fn post(port: u16, path: &str, tenant: &str, body: &Value) -> Self {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-tenant-id: {tenant}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        Self::raw(port, (head + &body).as_bytes())
    }

    /// Sends a GET for a path that no URL library would let through as it is.
    #[must_use]
    pub fn request_line(port: u16, method: &str, target: &str) -> Self {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: 2\r\nconnection: close\r\n\r\n{{}}"
        );
        Self::raw(port, head.as_bytes())
    }

    /// All that comes until the server hangs up, as it comes.
    ///
    /// # Panics
    /// If the connection breaks.
    #[must_use]
    pub fn bytes(mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let read = self.socket.read_to_end(&mut all);
        read.expect("the server ends the connection in order");
        all
    }

    /// Whether the server has neither answered nor hung up so far.
    ///
    /// # Panics
    /// If the socket is broken.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        let set = self.socket.set_nonblocking(true);
        set.expect("a socket can be non-blocking");
        let peeked = self.socket.peek(&mut [0]);
        let set = self.socket.set_nonblocking(false);
        set.expect("a socket can be blocking");
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Reads status and headers of the answer.
    ///
    /// # Panics
    /// If what comes is no answer.
    #[must_use]
    pub fn answer(self) -> Answer {
        let mut reader = BufReader::new(self.socket);
        let status_line = line(&mut reader).expect("a status line");
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok());
        let mut answer = Answer {
            status: status.unwrap_or_else(|| panic!("no status line: {status_line:?}")),
            headers: Vec::new(),
            reader,
            body: Body::UntilClose,
        };
        answer.read_headers();
        answer
    }
}

/// An answer whose body is read as it comes. Dropping it hangs up.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Chunked,
    Length(usize),
    UntilClose,
    Ended,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.status, self.headers)
    }
}

impl Answer {
    fn read_headers(&mut self) {
        loop {
            let line = line(&mut self.reader).expect("a header");
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            self.headers
                .push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = self.header("content-length").and_then(|n| n.parse().ok());
        self.body = match (self.header("transfer-encoding"), length) {
            (Some("chunked"), _) => Body::Chunked,
            (_, Some(length)) => Body::Length(length),
            (_, None) => Body::UntilClose,
        };
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// The next piece of the body as the server cut it; none at its end.
    ///
    /// # Errors
    /// If the connection breaks before the body's end, as a cut stream does.
    pub fn next_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let piece = match self.body {
            Body::Ended => return Ok(None),
            Body::Chunked => {
                let head = line(&mut self.reader)?;
                let size = usize::from_str_radix(head.trim(), 16)
                    .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                let piece = exactly(&mut self.reader, size)?;
                line(&mut self.reader)?;
                piece
            }
            Body::Length(length) => {
                self.body = Body::Length(0);
                exactly(&mut self.reader, length)?
            }
            Body::UntilClose => {
                let piece = self.reader.fill_buf()?.to_vec();
                self.reader.consume(piece.len());
                piece
            }
        };
        if piece.is_empty() {
            self.body = Body::Ended;
            return Ok(None);
        }
        Ok(Some(piece))
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// If the connection breaks before the body's end.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.next_piece()? {
            all.extend(piece);
        }
        Ok(all)
    }

    /// Reads until the body so far holds `text`; what came is returned.
    ///
    /// # Panics
    /// If the body ends before.
    #[must_use]
    pub fn until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&all).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            match self.next_piece() {
                Ok(Some(piece)) => all.extend(piece),
                end => panic!("{end:?} before {text:?} came; only {so_far:?} did"),
            }
        }
    }
}

fn line(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn exactly(reader: &mut BufReader<TcpStream>, size: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}
