//! The socket that clients connect to, and what is set on their connections.

use std::{
    any::Any,
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use actix_web::rt::net::TcpStream;
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};

/// What the kernel may hold of an answer that its client does not read; left alone that is 4 MiB.
/// The kernel doubles the figure for its own use. It is 2.5 MB/s at a round trip of 50 ms, which is
/// plenty for text.
const SEND_BUFFER: usize = 64 << 10;

/// Connections that wait to be accepted; the standard library's 128 are few for a burst.
const BACKLOG: i32 = 1024;

/// Listens for clients.
///
/// # Errors
/// When the address is taken, or not of this machine.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Bounds what a client can hold by not reading. Whatever the answer, a connection that takes
/// nothing for twice as long as an event may wait, or whose other end is gone without a word, is
/// closed by the kernel: the server itself never looks at a full socket. Twice, so that a stream is
/// cut by its pipe, which knows why.
pub fn tame(connection: &dyn Any, patience: Duration) {
    let Some(tcp) = connection.downcast_ref::<TcpStream>() else {
        return;
    };
    let millis = u32::try_from(2 * patience.as_millis()).unwrap_or(u32::MAX);
    let set = setsockopt(tcp, sockopt::SndBuf, &SEND_BUFFER)
        .and_then(|()| setsockopt(tcp, sockopt::TcpUserTimeout, &millis));
    if let Err(error) = set {
        tracing::debug!(%error, "a client's connection keeps the kernel's limits");
    }
}
