//! The HTTP client to engines: asks, and hands the answer on as it comes (RFC 9110, RFC 9112).
//!
//! A request is one write and its usual answer one read; nothing is spawned and no timer set for it.
//! A connection belongs to one request at a time: the pool has it, or the request that waits for a
//! head, or the body of an answer, and whoever drops that closes it, which aborts the request.
//!
//! What is no answer never leaves this folder as one: a redirect, an answer without content, a coding
//! that nobody asked for. It knows nothing of events, of who asks, or of how long an answer may take.
//! TLS would be one more kind of `socket::Socket`.

mod ask;
mod beginning;
mod body;
mod framing;
mod head;
mod pool;
mod socket;
#[cfg(test)]
mod tests;

use std::{io, rc::Rc, time::Duration};

use actix_web::http::{StatusCode, header::HeaderValue};
use bytes::Bytes;
use kvwarden_actors::engine::Endpoint;
use tokio::time::timeout;

pub use self::body::Body;
use self::{
    ask::{ask, request_head},
    pool::{Engine, Pool},
    socket::Socket,
};

/// Engines are on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// llama.cpp closes connections after 5 s of silence and uvicorn by default as well; closing ours
/// first means that a request hardly ever goes out on a dying one.
const IDLE: Duration = Duration::from_secs(3);

/// A pooled client for all engines. One of these per worker thread.
#[derive(Clone)]
pub struct Engines(Rc<Pool>);

/// No answer came.
#[derive(Debug)]
pub struct Unanswered {
    /// What kept it from coming.
    pub fault: Fault,
    /// What went wrong, for the log.
    pub why: String,
}

/// What keeps an answer from coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There was not even a connection.
    Unreachable,
    /// The connection broke off before the head of the answer was here.
    Lost,
    /// What came is no answer. Another try would get the same.
    Unusable,
}

/// An engine's response, its body still to come.
pub struct UpstreamResponse {
    /// 2xx with content, or an error of the engine.
    pub status: StatusCode,
    /// Content type.
    pub content_type: Option<String>,
    /// The engine says that it is simulated.
    pub is_simulated: bool,
    /// When to ask again, and whether to.
    pub retry: RetryHints,
    /// Its body.
    pub body: Body,
}

/// What an engine says about asking again, in the words that SDKs read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryHints {
    /// `retry-after`.
    pub retry_after: Option<HeaderValue>,
    /// `retry-after-ms`.
    pub retry_after_ms: Option<HeaderValue>,
    /// `x-should-retry`.
    pub should_retry: Option<HeaderValue>,
}

// === impl Engines ===

impl Engines {
    /// A client without connections. It belongs to the thread that makes it.
    #[must_use]
    pub fn new() -> Self {
        Self(Pool::new())
    }

    /// Posts `body` and waits for the head of the answer.
    ///
    /// # Errors
    /// When none came that is one.
    pub async fn post(
        &self,
        to: &Endpoint,
        path: &str,
        request_id: &str,
        body: Bytes,
    ) -> Result<UpstreamResponse, Unanswered> {
        let engine = self.0.engine(&to.base).ok_or_else(|| Unanswered {
            fault: Fault::Unusable,
            why: format!("no engine can be at `{}`", to.base),
        })?;
        let head = request_head(&engine.base, to, path, request_id, body.len())?;
        if let Some(socket) = engine.take() {
            match ask(&engine, socket, &head, &body).await {
                Ok((head, body)) => return head.response(body),
                // The engine closed it as we took it: nothing was answered, so nothing is lost by
                // asking once more.
                Err(broken) if !broken.is_answered => {}
                Err(broken) => return Err(broken.into()),
            }
        }
        // Most requests need none, so that they have no room for it.
        let socket = Box::pin(connect(&engine)).await?;
        let (head, body) = ask(&engine, socket, &head, &body).await?;
        head.response(body)
    }
}

impl Default for Engines {
    fn default() -> Self {
        Self::new()
    }
}

async fn connect(engine: &Engine) -> Result<Socket, Unanswered> {
    let connected = timeout(CONNECT_TIMEOUT, engine.base.connect()).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    connected.map_err(|error| Unanswered {
        fault: Fault::Unreachable,
        why: format!("no connection: {error}"),
    })
}
