//! The API: an exact list of routes, and nothing else reaches an engine.
//!
//! | file or folder | does |
//! |---|---|
//! | [`request`] | who asks, what is read off a request, and the fields we set |
//! | [`completions`], [`attempt`], [`relay`] | the way of one request: received, tried, answered |
//! | [`format`] | answers as events, or put together |
//! | [`loading`] | what a stream gets while its model is being loaded |
//! | [`pipe`], [`socket`] | what clients that don't read can hold |
//! | [`upstream`] | the client to engines |
//! | [`refusal`], [`reason`] | every error, as HTTP |
//! | [`admin`] | metrics, status, health, the list of models; what operators do |
//! | [`view`] | the configuration as requests see it |
//! | [`record`] | what is counted |

pub mod admin;
pub mod attempt;
pub mod completions;
pub mod format;
pub mod loading;
pub mod pipe;
pub mod reason;
pub mod record;
pub mod refusal;
pub mod relay;
pub mod request;
pub mod salt;
pub mod socket;
pub mod tokenize;
pub mod upstream;
pub mod view;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use actix::Addr;
use actix_web::{
    Error, HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        ConnectionType,
        header::{HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use arc_swap::ArcSwap;
use kvwarden_actors::{Router, process::leadership::Leadership};
use tokio::sync::watch;

use crate::{config::Config, journal::events::EventLog, metrics::Metrics, serve::reload::Reloaded};
use completions::{Task, forward};
use refusal::Failure;
use salt::Salts;
use view::View;

/// The label of every tenant that the configuration does not name.
const OTHERS: &str = kvwarden_actors::router::OTHERS;

/// What all requests share.
pub struct Shared {
    /// The directory of actors.
    pub router: Addr<Router>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where it is written down, if it is.
    pub events: Option<Arc<EventLog>>,
    /// Cache partitions of tenants.
    pub salts: Salts,
    /// Whether this process still decides about engines.
    pub leadership: Leadership,
    /// When this process began to serve.
    pub since: SystemTime,
    /// How the configuration was last read again, if it was.
    pub reloaded: Mutex<Option<Reloaded>>,
    view: ArcSwap<View>,
    held: AtomicUsize,
    is_cut: watch::Sender<bool>,
    seen: admin::Seen,
}

impl Shared {
    /// What requests share under this configuration.
    #[must_use]
    pub fn new(
        config: &Config,
        router: Addr<Router>,
        metrics: Arc<Metrics>,
        events: Option<Arc<EventLog>>,
        leadership: Leadership,
    ) -> Self {
        Self {
            router,
            metrics,
            events,
            salts: Salts::new(),
            leadership,
            since: SystemTime::now(),
            reloaded: Mutex::default(),
            view: ArcSwap::from_pointee(View::new(config, None)),
            held: AtomicUsize::new(0),
            is_cut: watch::Sender::new(false),
            seen: admin::Seen::default(),
        }
    }

    /// Ends every stream, as if its engine had.
    pub fn cut_streams(&self) {
        self.is_cut.send_replace(true);
    }

    /// Comes back when streams are to end.
    fn until_cut(&self) -> impl Future<Output = ()> + use<> {
        let mut is_cut = self.is_cut.subscribe();
        // An error says that nobody is left who could cut anything.
        async move { drop(is_cut.wait_for(|is_cut| *is_cut).await) }
    }

    /// The configuration as it is now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Another configuration from now on.
    pub fn show(&self, config: &Config) {
        let before = self.view();
        self.view.store(Arc::new(View::new(config, Some(&before))));
    }
}

/// One of `limits.max_in_flight` places on this node, given back when dropped.
pub struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let limit = shared.view().limits.max_in_flight;
        let one_more = |held| (held < limit).then_some(held + 1);
        let taken = shared
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Self(shared.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The routes. Whatever is not here is 404 and never reaches an engine: vLLM alone has 38 control
/// routes that would stop it, read its weights or load others.
pub fn routes(app: &mut web::ServiceConfig) {
    const GENERATE: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];
    for path in GENERATE {
        app.route(path, post(Task::Generate, path));
    }
    app.route("/v1/embeddings", post(Task::Compute, "/v1/embeddings"))
        .route("/tokenize", post(Task::Tokenize, "/tokenize"))
        .route("/v1/models", web::get().to(admin::models))
        .route("/v1/models/{id:.+}", web::get().to(admin::model))
        .route("/health", web::get().to(admin::health::health))
        .route("/metrics", web::get().to(admin::metrics))
        .route("/kvwarden/status", web::get().to(admin::status))
        .configure(admin::control::routes)
        .default_service(web::to(no_route));
}

/// The engine is asked for `path`, never for the path as the client spelt it.
fn post(task: Task, path: &'static str) -> actix_web::Route {
    web::post().to(move |request, payload, shared, engines| {
        forward(task, path, request, payload, shared, engines)
    })
}

async fn no_route(request: HttpRequest) -> HttpResponse {
    Failure::NoRoute {
        path: format!("{} {}", request.method(), request.path()),
    }
    .response()
}

/// The id that [`identify`] gave to a request.
fn request_id(request: &HttpRequest) -> &str {
    request
        .headers()
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default()
}

/// Middleware: gives every request an id (the client's, if it is printable) and echoes it, under the names that OpenAI's and
/// Anthropic's SDKs read.
pub async fn identify(
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    let given = request.headers().get(X_REQUEST_ID).filter(|id| {
        (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    let id = match given {
        Some(id) => id.clone(),
        None => {
            let fresh = format!("req-{:032x}", rand::random::<u128>());
            HeaderValue::from_str(&fresh).unwrap_or(HeaderValue::from_static("req"))
        }
    };
    request.headers_mut().insert(X_REQUEST_ID, id.clone());
    let shared = request.app_data::<web::Data<Arc<Shared>>>().cloned();
    let mut response = next.call(request).await?;
    if shared.is_some_and(|shared| !shared.leadership.is_held()) {
        // The client's next connection reaches the process that serves now.
        let head = response.response_mut().head_mut();
        head.set_connection_type(ConnectionType::Close);
    }
    response.headers_mut().insert(X_REQUEST_ID, id.clone());
    response
        .headers_mut()
        .insert(HeaderName::from_static("request-id"), id);
    Ok(response)
}
