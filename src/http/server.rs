//! Connections of clients: one task accepts them, and they go to the workers in turn.
//!
//! A worker is a thread with connections and engines' connections of its own. The first one runs on
//! the thread of the actors, so that a request of a small node crosses no thread: a message to an
//! actor and its answer cost under a microsecond there, and ten to seventy between two threads, which
//! is more than all else that kvwarden does for a request. actix-web's own server starts threads for
//! all of its workers; this one is otherwise as that one is.

use std::{
    io,
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use actix_http::HttpService;
use actix_rt::{Arbiter, ArbiterHandle};
use actix_service::{Service as _, ServiceFactory as _, map_config};
use actix_web::{
    App, dev::AppConfig, http::KeepAlive, middleware::from_fn, rt::net::TcpStream as Connection,
    web,
};
use futures_util::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::sleep,
};

use super::{Shared, admin::control::Reload, identify, routes, socket, upstream::Engines};

/// Connections at once, for each worker. Beyond that the next ones wait to be accepted.
const MAX_CONNECTIONS: usize = 25_600;

/// Longer than the idle time of common clients and proxies, so that they close first.
const KEEP_ALIVE: Duration = Duration::from_secs(90);

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection that ends is still read from. Closed at once it would be reset, and the client
/// could lose the answer that says why: to a body that is too large, for one.
const LINGER: Duration = Duration::from_secs(1);

/// How long accepting rests when the system has no descriptors left.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);

/// What each worker answers with.
#[derive(Clone)]
pub struct Site {
    /// What all requests share.
    pub shared: Arc<Shared>,
    /// Who reads the configuration again.
    pub reload: Arc<dyn Reload>,
}

/// The server, until it is dropped.
pub struct Server {
    phase: watch::Sender<Phase>,
    connections: Arc<Semaphore>,
    most: u32,
    /// The workers beside the first.
    _threads: Vec<Arbiter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Accepting,
    /// Nothing new is accepted; connections go on.
    Paused,
    /// A connection ends with the answer that it waits for.
    Stopping,
}

/// A connection that was accepted, and its part of the most there may be.
type Accepted = (TcpStream, OwnedSemaphorePermit);

// === impl Server ===

impl Server {
    /// Serves what comes to `listener`, on the thread of `first` and as many more as it takes.
    ///
    /// # Errors
    /// When the system refuses to watch the listener.
    pub fn start(
        listener: TcpListener,
        first: &ArbiterHandle,
        workers: usize,
        site: &Site,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (phase, seen) = watch::channel(Phase::Accepting);
        let most = MAX_CONNECTIONS * workers;
        let connections = Arc::new(Semaphore::new(most));
        let threads: Vec<_> = (1..workers).map(|_| Arbiter::new()).collect();
        let arbiters = [first.clone()].into_iter();
        let arbiters = arbiters.chain(threads.iter().map(Arbiter::handle));
        let workers: Vec<_> = arbiters
            .map(|arbiter| {
                let (to, connections) = mpsc::unbounded_channel();
                let (site, seen) = (site.clone(), seen.clone());
                arbiter.spawn_fn(move || {
                    actix_rt::spawn(work(site, connections, seen));
                });
                to
            })
            .collect();
        let places = connections.clone();
        first.spawn_fn(move || {
            actix_rt::spawn(async move {
                if let Err(error) = accept(listener, places, workers, seen).await {
                    tracing::error!(%error, "no more connections are accepted");
                }
            });
        });
        Ok(Self {
            phase,
            connections,
            most: u32::try_from(most).unwrap_or(u32::MAX),
            _threads: threads,
        })
    }

    /// Accepts nothing more.
    pub fn pause(&self) {
        self.phase.send_replace(Phase::Paused);
    }

    /// Lets running answers end, closes what is idle, and comes back when no connection is left.
    pub async fn stop(&self) {
        self.phase.send_replace(Phase::Stopping);
        // An error would say that the semaphore was closed, which nobody does.
        drop(self.connections.acquire_many(self.most).await);
    }
}

/// Comes back when the server is in that phase, or gone.
async fn until(phase: Phase, mut seen: watch::Receiver<Phase>) {
    drop(seen.wait_for(|now| *now >= phase).await);
}

async fn accept(
    listener: TcpListener,
    places: Arc<Semaphore>,
    workers: Vec<mpsc::UnboundedSender<Accepted>>,
    seen: watch::Receiver<Phase>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut paused = std::pin::pin!(until(Phase::Paused, seen));
    let mut turns = workers.iter().cycle();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = &mut paused => return Ok(()),
        };
        match (place, accepted, turns.next()) {
            (Ok(place), Ok((connection, _)), Some(worker)) => {
                if let Ok(connection) = connection.into_std() {
                    // A worker ends with the process.
                    let _ = worker.send((connection, place));
                }
            }
            (_, Err(error), _) if is_of_one_connection(&error) => {}
            (_, Err(error), _) => {
                tracing::warn!(%error, "a connection is not accepted");
                sleep(NO_DESCRIPTORS).await;
            }
            (Err(_), ..) | (.., None) => return Ok(()),
        }
    }
}

/// The client was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// Serves connections on this thread.
async fn work(
    site: Site,
    mut connections: mpsc::UnboundedReceiver<Accepted>,
    seen: watch::Receiver<Phase>,
) {
    let Site { shared, reload } = site;
    let accepting = shared.clone();
    let app = App::new()
        .app_data(web::Data::new(shared))
        .app_data(web::Data::from(reload))
        .app_data(web::Data::new(Engines::new()))
        .wrap(from_fn(identify))
        .configure(routes);
    let app = map_config(app, |()| AppConfig::default());
    let http = HttpService::build()
        .graceful_shutdown_signal(move || until(Phase::Stopping, seen.clone()))
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(LINGER)
        // Otherwise a client that hangs up while its request is queued goes unnoticed.
        .h1_allow_half_closed(false)
        // Streams are many small writes: with Nagle's algorithm each could wait 40 ms.
        .tcp_nodelay(true)
        .on_connect_ext(move |connection: &Connection, _| {
            socket::tame(connection, accepting.view().limits.client_stall_timeout);
        })
        .finish(app)
        .tcp();
    let Ok(http) = http.new_service(()).await else {
        return tracing::error!("a worker did not start");
    };
    while let Some((connection, place)) = connections.recv().await {
        match Connection::from_std(connection) {
            Ok(connection) => {
                // An async block would hold what it was given and what it waits for: the same twice.
                actix_rt::spawn(http.call(connection).map(|ended| {
                    if let Err(error) = ended {
                        tracing::debug!(?error, "a connection ended");
                    }
                    drop(place);
                }));
            }
            Err(error) => tracing::warn!(%error, "a connection is lost"),
        }
    }
}
