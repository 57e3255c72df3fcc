//! The HTTP client to engines: asks, and hands the answer on as it comes.
//!
//! What is no answer never leaves this folder as one: a redirect, an answer without content, a coding
//! that nobody asked for. It knows nothing of events, of who asks, or of how long an answer may take:
//! whoever waits drops what it waits for, and that closes the connection, which aborts the request.

mod awc;
mod head;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::http::{StatusCode, header::HeaderValue};
use bytes::Bytes;
use futures_util::Stream;
use kvwarden_actors::engine::Endpoint;

use self::awc::AwcBody;
pub(crate) use self::awc::streaming_client;

/// Engines are on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// llama.cpp closes connections after 5 s of silence and uvicorn by default as well; closing ours
/// first means that a request hardly ever goes out on a dying one.
const IDLE: Duration = Duration::from_secs(3);

/// A pooled client for each engine. One of these per worker thread.
#[derive(Clone)]
pub struct Engines {
    awc: awc::Clients,
}

/// A request to an engine.
struct Post<'a> {
    to: &'a Endpoint,
    path: &'static str,
    request_id: &'a str,
    body: Bytes,
}

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

/// The body of an engine's response, as it comes. Dropping it before its end closes the connection,
/// which aborts the request.
///
/// A body that ends before the end its head promised is an error of kind `UnexpectedEof`, one that
/// breaks the rules of HTTP is `InvalidData`.
pub struct Body(Source);

enum Source {
    Awc(AwcBody),
}

// === impl Engines ===

impl Engines {
    /// A client without connections. It belongs to the thread that makes it.
    #[must_use]
    pub fn new() -> Self {
        let awc = awc::Clients::new();
        Self { awc }
    }

    /// Posts `body` and waits for the head of the answer.
    ///
    /// # Errors
    /// When none came that is one.
    pub async fn post(
        &self,
        to: &Endpoint,
        path: &'static str,
        request_id: &str,
        body: Bytes,
    ) -> Result<UpstreamResponse, Unanswered> {
        let post = Post {
            to,
            path,
            request_id,
            body,
        };
        let (head, body) = self.awc.post(&post).await?;
        head.response(Body(Source::Awc(body)))
    }
}

impl Default for Engines {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Body ===

impl Stream for Body {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.0 {
            Source::Awc(body) => body.poll(context),
        }
    }
}
