//! Engines asked through `awc`, one client for each.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use actix_service::ServiceExt as _;
use actix_tls::connect::{Connection, Connector as TcpConnector};
use actix_web::{
    http::{Uri, header},
    rt::net::TcpStream,
};
use awc::{
    ClientResponse,
    error::{ConnectError, SendRequestError},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::{Instant, interval};

use super::{CONNECT_TIMEOUT, Fault, IDLE, Post, Unanswered, head::Head};

/// A client for each engine.
///
/// awc closes idle connections only when it looks for one to the same engine, so those to an engine
/// that nobody asks any more, or that is gone, would stay for ever. Here its whole client goes.
#[derive(Clone)]
pub(super) struct Clients(Rc<RefCell<ByBase>>);

/// By the engine's base URL.
type ByBase = HashMap<String, Rc<Pooled>>;

/// Whoever uses it, to the last byte of an answer, holds it.
struct Pooled {
    http: awc::Client,
    asked: Cell<Instant>,
}

/// The body of an answer.
pub(super) struct AwcBody {
    response: ClientResponse,
    _client: Rc<Pooled>,
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

// === impl Clients ===

impl Clients {
    pub(super) fn new() -> Self {
        let clients = Rc::default();
        actix_web::rt::spawn(close_unused(Rc::downgrade(&clients)));
        Self(clients)
    }

    /// Asks, and waits for the head of the answer.
    pub(super) async fn post(&self, post: &Post<'_>) -> Result<(Head, AwcBody), Unanswered> {
        match self.try_post(post).await {
            // The engine closed a pooled connection as we picked it: nothing was answered, so
            // nothing is lost by asking once more.
            Err(
                SendRequestError::Send(_) | SendRequestError::Connect(ConnectError::Disconnected),
            ) => self.try_post(post).await,
            other => other,
        }
        .map_err(|error| Unanswered {
            fault: if matches!(error, SendRequestError::Connect(_)) {
                Fault::Unreachable
            } else {
                Fault::Lost
            },
            why: error.to_string(),
        })
    }

    async fn try_post(&self, post: &Post<'_>) -> Result<(Head, AwcBody), SendRequestError> {
        let client = self.client(&post.to.base);
        let mut request = client
            .http
            .post(format!("{}{}", post.to.base, post.path))
            .no_decompress()
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .insert_header(("x-request-id", post.request_id));
        if let Some(key) = &post.to.api_key {
            request = request.bearer_auth(key);
        }
        let response = request.send_body(post.body.clone()).await?;
        // The payload's type depends on decompression, which is off; box it back to the usual one.
        let response = response.map_body(|_, payload| payload);
        let mut head = Head::new(response.status());
        for (name, value) in response.headers() {
            head.note(name.as_str(), value.as_bytes());
        }
        let body = AwcBody {
            response,
            _client: client,
        };
        Ok((head, body))
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
}

/// Lets go of clients that nobody uses, for as long as there are any to come.
async fn close_unused(clients: Weak<RefCell<ByBase>>) {
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

// === impl AwcBody ===

impl AwcBody {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let polled = self.response.poll_next_unpin(context);
        polled.map_err(io::Error::other)
    }
}
