//! A client for thousands of connections on one thread; [`Exchange`](crate::Exchange) needs a thread
//! for each.

use std::{io, net::Ipv4Addr};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
};

/// One connection, which asks one request after another. Dropping it hangs up.
#[derive(Debug)]
pub struct Caller {
    socket: BufReader<TcpStream>,
    body: Body,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Chunked,
    Length(usize),
    Ended,
}

/// A POST of JSON, whole.
#[must_use]
pub fn post(path: &str, tenant: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-tenant-id: {tenant}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    (head + &body).into_bytes()
}

/// Runs a client on this thread to its end.
///
/// # Panics
/// If the system gives no event queue.
pub fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(client)
}

impl Caller {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens, or no port is left.
    pub async fn connect(port: u16) -> io::Result<Self> {
        Self::with(TcpSocket::new_v4()?, port).await
    }

    /// Connects as one for whom the kernel keeps hardly anything that it has not read.
    ///
    /// # Errors
    /// As [`Caller::connect`].
    pub async fn connect_narrowly(port: u16) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4 << 10)?;
        Self::with(socket, port).await
    }

    async fn with(socket: TcpSocket, port: u16) -> io::Result<Self> {
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            socket: BufReader::with_capacity(2 << 10, stream),
            body: Body::Ended,
        })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the server hung up.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await
    }

    /// Reads the head of an answer; tells its status.
    ///
    /// # Errors
    /// If the server hung up, or what came is no head.
    pub async fn status(&mut self) -> io::Result<u16> {
        let line = self.line().await?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        self.body = Body::Ended;
        loop {
            let line = self.line().await?.to_ascii_lowercase();
            if line.is_empty() {
                return status.ok_or(io::ErrorKind::InvalidData.into());
            }
            if line == "transfer-encoding: chunked" {
                self.body = Body::Chunked;
            } else if let Some(length) = line.strip_prefix("content-length: ") {
                self.body = Body::Length(length.parse().map_err(io::Error::other)?);
            }
        }
    }

    /// The next piece of the body; none at its end.
    ///
    /// # Errors
    /// If the server hung up before that.
    pub async fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = match self.body {
            Body::Ended => 0,
            Body::Length(length) => {
                self.body = Body::Ended;
                length
            }
            Body::Chunked => {
                let line = self.line().await?;
                usize::from_str_radix(&line, 16).map_err(io::Error::other)?
            }
        };
        let mut piece = vec![0; size];
        self.socket.read_exact(&mut piece).await?;
        if matches!(self.body, Body::Chunked) {
            self.line().await?;
        }
        if piece.is_empty() {
            self.body = Body::Ended;
            return Ok(None);
        }
        Ok(Some(piece))
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// As [`Caller::piece`].
    pub async fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece().await? {
            all.extend(piece);
        }
        Ok(all)
    }

    /// One byte of whatever comes.
    ///
    /// # Errors
    /// If the server hung up.
    pub async fn byte(&mut self) -> io::Result<u8> {
        self.socket.read_u8().await
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.socket.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}
