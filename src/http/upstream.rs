//! The HTTP client to engines. Only this file and the command line's client name `awc`, so that it
//! can be replaced.

use std::{io, pin::Pin, time::Duration};

use actix_service::ServiceExt as _;
use actix_tls::connect::{Connection, Connector as TcpConnector};
use actix_web::http::{StatusCode, Uri, header};
use actix_web::rt::net::TcpStream;
use awc::error::{ConnectError, SendRequestError};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use kvwarden_actors::gpu::engine::Endpoint;

/// Engines are on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// llama.cpp closes connections after 5 s of silence and uvicorn by default as well; closing ours
/// first means that a request hardly ever goes out on a dying one.
const IDLE: Duration = Duration::from_secs(3);

/// A pooled client. One per worker thread.
#[derive(Clone)]
pub struct Engines(awc::Client);

/// No answer came.
#[derive(Debug)]
pub struct Unanswered {
    /// There was not even a connection.
    pub is_unreachable: bool,
    /// What went wrong, for the log.
    pub why: String,
}

/// An engine's answer, its body still to come.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Content type.
    pub content_type: Option<String>,
    /// The engine says that it is simulated.
    pub is_simulated: bool,
    /// The body, as it comes. Dropping it closes the connection, which aborts the request.
    pub body: Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>,
}

/// A client for many long streams at once, without connections yet.
pub(crate) fn streaming_client(connect_timeout: Duration) -> awc::Client {
    // awc has no switch for TCP_NODELAY, and without it small writes wait for 40 ms.
    let tcp = TcpConnector::default().service();
    let tcp = tcp.map(|connection: Connection<Uri, TcpStream>| {
        if let Err(error) = connection.io_ref().set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        connection
    });
    let connector = awc::Connector::new()
        .connector(tcp)
        .timeout(connect_timeout)
        .conn_keep_alive(IDLE)
        // The default of 100 silently queues the 101st stream; queueing is our own.
        .limit(0);
    let client = awc::Client::builder()
        .connector(connector)
        .disable_timeout()
        .disable_redirects()
        .no_default_headers();
    client.finish()
}

impl Answer {
    /// It comes as events.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.content_type
            .as_ref()
            .is_some_and(|media| media.starts_with("text/event-stream"))
    }
}

impl Engines {
    /// A client without connections.
    #[must_use]
    pub fn new() -> Self {
        Self(streaming_client(CONNECT_TIMEOUT))
    }

    /// Posts `body` and waits for the head of the answer.
    ///
    /// # Errors
    /// When none came.
    pub async fn post(
        &self,
        to: &Endpoint,
        path: &str,
        request_id: &str,
        body: Bytes,
    ) -> Result<Answer, Unanswered> {
        match self.try_post(to, path, request_id, body.clone()).await {
            // The engine closed a pooled connection as we picked it: nothing was answered, so
            // nothing is lost by asking once more.
            Err(
                SendRequestError::Send(_) | SendRequestError::Connect(ConnectError::Disconnected),
            ) => self.try_post(to, path, request_id, body).await,
            other => other,
        }
        .map_err(|error| Unanswered {
            is_unreachable: matches!(error, SendRequestError::Connect(_)),
            why: error.to_string(),
        })
    }

    async fn try_post(
        &self,
        to: &Endpoint,
        path: &str,
        request_id: &str,
        body: Bytes,
    ) -> Result<Answer, SendRequestError> {
        let mut request = self
            .0
            .post(format!("{}{path}", to.base))
            .no_decompress()
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .insert_header(("x-request-id", request_id));
        if let Some(key) = &to.api_key {
            request = request.bearer_auth(key);
        }
        let response = request.send_body(body).await?;
        let text = |name| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        Ok(Answer {
            status: response.status(),
            content_type: text("content-type"),
            is_simulated: text("x-kvwarden-simulated").is_some(),
            body: Box::pin(response.map_err(io::Error::other)),
        })
    }
}

impl Default for Engines {
    fn default() -> Self {
        Self::new()
    }
}
