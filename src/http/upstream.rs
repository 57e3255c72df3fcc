//! The HTTP client to engines. Only this file and the command line's client name `awc`, so that it
//! can be replaced.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    pin::Pin,
    rc::{Rc, Weak},
    time::Duration,
};

use actix_service::ServiceExt as _;
use actix_tls::connect::{Connection, Connector as TcpConnector};
use actix_web::http::{StatusCode, Uri, header};
use actix_web::rt::net::TcpStream;
use awc::error::{ConnectError, SendRequestError};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use kvwarden_actors::engine::Endpoint;
use tokio::time::{Instant, interval};

/// Engines are on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// llama.cpp closes connections after 5 s of silence and uvicorn by default as well; closing ours
/// first means that a request hardly ever goes out on a dying one.
const IDLE: Duration = Duration::from_secs(3);

/// A pooled client for each engine. One of these per worker thread.
///
/// awc closes idle connections only when it looks for one to the same engine, so those to an engine
/// that nobody asks any more, or that is gone, would stay for ever. Here its whole client goes.
#[derive(Clone)]
pub struct Engines(Rc<RefCell<Clients>>);

/// By the engine's base URL.
type Clients = HashMap<String, Rc<Pooled>>;

/// Whoever uses it, to the last byte of an answer, holds it.
struct Pooled {
    http: awc::Client,
    asked: Cell<Instant>,
}

/// No answer came.
#[derive(Debug)]
pub struct Unanswered {
    /// There was not even a connection.
    pub is_unreachable: bool,
    /// What went wrong, for the log.
    pub why: String,
}

/// The body of an engine's response, as it comes. Dropping it closes the connection, which aborts the
/// request.
pub type Body = Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>;

/// An engine's response, its body still to come.
pub struct UpstreamResponse {
    /// Status.
    pub status: StatusCode,
    /// Content type.
    pub content_type: Option<String>,
    /// The engine says that it is simulated.
    pub is_simulated: bool,
    /// Its body.
    pub body: Body,
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

impl UpstreamResponse {
    /// It comes as events.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.content_type
            .as_ref()
            .is_some_and(|media| media.starts_with("text/event-stream"))
    }
}

impl Engines {
    /// A client without connections. It belongs to the thread that makes it.
    #[must_use]
    pub fn new() -> Self {
        let clients = Rc::default();
        actix_web::rt::spawn(close_unused(Rc::downgrade(&clients)));
        Self(clients)
    }

    fn client(&self, base: &str) -> Rc<Pooled> {
        let mut clients = self.0.borrow_mut();
        if let Some(client) = clients.get(base) {
            client.asked.set(Instant::now());
            return client.clone();
        }
        let client = Rc::new(Pooled {
            http: streaming_client(CONNECT_TIMEOUT),
            asked: Cell::new(Instant::now()),
        });
        clients.insert(base.to_owned(), client.clone());
        client
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
    ) -> Result<UpstreamResponse, Unanswered> {
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
    ) -> Result<UpstreamResponse, SendRequestError> {
        let client = self.client(&to.base);
        let mut request = client
            .http
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
        Ok(UpstreamResponse {
            status: response.status(),
            content_type: text("content-type"),
            is_simulated: text("x-kvwarden-simulated").is_some(),
            body: Box::pin(response.map_err(io::Error::other).inspect(move |_| {
                let _held = &client;
            })),
        })
    }
}

/// Lets go of clients that nobody uses, for as long as there are any to come.
async fn close_unused(clients: Weak<RefCell<Clients>>) {
    let mut looks = interval(IDLE);
    loop {
        looks.tick().await;
        let Some(clients) = clients.upgrade() else {
            return;
        };
        let is_used = |client: &Rc<Pooled>| {
            Rc::strong_count(client) > 1 || client.asked.get().elapsed() < IDLE
        };
        clients.borrow_mut().retain(|_, client| is_used(client));
    }
}

impl Default for Engines {
    fn default() -> Self {
        Self::new()
    }
}
