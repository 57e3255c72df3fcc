//! Where an engine listens, and a socket to it.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::http::Uri;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// An engine's base URL, taken apart.
pub(super) struct Base {
    address: Address,
    /// What `host` says.
    pub(super) authority: String,
    /// What stands before every path.
    pub(super) prefix: String,
}

enum Address {
    Ip(SocketAddr),
    Named(String, u16),
    Unix(PathBuf),
}

/// A connection. Reading and writing cost no call to the kernel unless it said that there is
/// something to read, or room to write.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

// === impl Base ===

impl Base {
    /// Of `http://HOST[:PORT][/PREFIX]` or `unix:/PATH`; nothing else is spoken to.
    pub(super) fn parse(base: &str) -> Option<Self> {
        if let Some(path) = base.strip_prefix("unix:") {
            return Some(Self {
                address: Address::Unix(path.into()),
                authority: "localhost".to_owned(),
                prefix: String::new(),
            });
        }
        let uri: Uri = base.parse().ok()?;
        if uri.scheme_str() != Some("http") {
            return None;
        }
        let (host, port) = (uri.host()?, uri.port_u16().unwrap_or(80));
        let address = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => Address::Ip(SocketAddr::new(ip, port)),
            Err(_) => Address::Named(host.to_owned(), port),
        };
        let authority = match uri.port_u16() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Some(Self {
            address,
            authority,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> io::Result<Socket> {
        let tcp = match &self.address {
            Address::Ip(address) => TcpStream::connect(address).await?,
            Address::Named(host, port) => TcpStream::connect((host.as_str(), *port)).await?,
            Address::Unix(path) => return UnixStream::connect(path).await.map(Socket::Unix),
        };
        // What is written of a request that is too long for one write would wait for 40 ms.
        tcp.set_nodelay(true)?;
        Ok(Socket::Tcp(tcp))
    }
}

// === impl Socket ===

impl Socket {
    /// Reads what is there; nothing at the end of the connection. What does not fill `buffer` was
    /// everything, and the kernel is not asked again before it says so.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = match self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(context, &mut buffer),
            Self::Unix(unix) => Pin::new(unix).poll_read(context, &mut buffer),
        };
        ready!(read)?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes what fits.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(context, slices),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(context, slices),
        }
    }

    /// Neither closed nor sent a word unasked, as far as the kernel has told.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(tcp) => tcp.try_read(&mut byte),
            Self::Unix(unix) => unix.try_read(&mut byte),
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_says_host_and_prefix() {
        let taken_apart = |base: &str| {
            let base = Base::parse(base)?;
            Some((base.authority, base.prefix))
        };
        let is = |authority: &str, prefix: &str| Some((authority.into(), prefix.into()));
        assert_eq!(taken_apart("http://127.0.0.1:81"), is("127.0.0.1:81", ""));
        assert_eq!(taken_apart("http://[::1]:81/"), is("[::1]:81", ""));
        assert_eq!(taken_apart("http://h/a/b/"), is("h", "/a/b"));
        assert_eq!(taken_apart("unix:/run/a"), is("localhost", ""));
        for other in ["https://h", "ftp://h", "h:80", "", "http://"] {
            assert_eq!(taken_apart(other), None, "{other}");
        }
    }
}
