//! The API: an exact list of routes, and nothing else reaches an engine.
//!
//! Imports run one way, from the top of this table down:
//!
//! | file or folder | does |
//! |---|---|
//! | [`server`] | connections of clients, and the workers that serve them |
//! | [`admin`] | metrics, status, health, the list of models; what operators do |
//! | [`exchange`], [`attempt`], [`relay`], [`waiting`] | the way of one request: received, tried, answered, told to wait |
//! | [`answer`] | the head of every answer |
//! | [`record`] | what is counted about a request |
//! | [`shared`], [`view`], [`series`] | what all requests share, the configuration as they see it, the metrics they count in |
//! | [`tokenize`] | `/tokenize` in vLLM's form, whatever the engine |
//! | [`request`] | who asks, what is read off a request, and the fields we set |
//! | [`refusal`], [`reason`] | every error, as HTTP |
//! | [`format`] | answers as events, or put together |
//! | [`limits`] | every bound of the data path, with its reason |
//! | [`upstream`], [`pipe`], [`socket`], [`salt`] | engines' connections and clients', what those can hold that don't read, cache partitions |

pub mod admin;
mod answer;
mod attempt;
mod exchange;
pub mod format;
mod limits;
mod pipe;
mod reason;
mod record;
pub mod refusal;
mod relay;
mod request;
mod salt;
mod series;
pub mod server;
mod shared;
pub mod socket;
mod tokenize;
pub mod upstream;
mod view;
mod waiting;

use std::sync::Arc;

use actix_web::{
    Error, FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder,
    body::{BodySize, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        ConnectionType, Version,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

pub use self::shared::Shared;
use self::{attempt::Task, exchange::forward, limits::MAX_HEADERS, refusal::Failure};

/// The routes. Whatever is not here is 404 and never reaches an engine: vLLM alone has 38 control
/// routes that would stop it, read its weights or load others.
pub fn routes(app: &mut web::ServiceConfig) {
    const GENERATE: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];
    for path in GENERATE {
        app.service(engines(Task::Generate, path));
    }
    app.service(engines(Task::Compute, "/v1/embeddings"))
        .service(engines(Task::Tokenize, "/tokenize"))
        .service(read("/v1/models", admin::models))
        .service(read("/v1/models/{id:.+}", admin::model))
        .service(read("/health", admin::health::health))
        .service(read("/metrics", admin::metrics))
        .service(read("/kvwarden/status", admin::status))
        .configure(admin::control::routes)
        .default_service(web::to(no_route));
}

/// The engine is asked for `path`, never for the path as the client spelt it.
fn engines(task: Task, path: &'static str) -> Resource {
    act(path, move |request, payload, shared, engines| {
        forward(task, path, request, payload, shared, engines)
    })
}

/// What is asked for, by `GET`; whoever has that has `HEAD` (RFC 9110, 9.1), which probes use.
fn read<H, A>(path: &str, handler: H) -> Resource
where
    H: Handler<A>,
    A: FromRequest + 'static,
    H::Output: Responder + 'static,
{
    let resource = web::resource(path);
    let resource = resource.route(web::get().to(handler.clone()));
    let resource = resource.route(web::head().to(handler));
    resource.default_service(web::to(|request| wrong_method(request, "GET, HEAD")))
}

/// What is done, by `POST`.
fn act<H, A>(path: &str, handler: H) -> Resource
where
    H: Handler<A>,
    A: FromRequest + 'static,
    H::Output: Responder + 'static,
{
    let resource = web::resource(path).route(web::post().to(handler));
    resource.default_service(web::to(|request| wrong_method(request, "POST")))
}

async fn no_route(request: HttpRequest) -> HttpResponse {
    Failure::NoRoute {
        path: format!("{} {}", request.method(), request.path()),
    }
    .response()
}

async fn wrong_method(request: HttpRequest, allowed: &'static str) -> HttpResponse {
    Failure::WrongMethod {
        method: request.method().to_string(),
        allowed,
    }
    .response()
}

/// Middleware: what holds of every request and every answer, whatever the route.
///
/// # Errors
/// None of its own.
pub async fn identify(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let id = id(request.headers());
    request
        .headers_mut()
        .insert(X_REQUEST_ID.clone(), id.clone());
    let shared = request.app_data::<web::Data<Arc<Shared>>>().cloned();
    let is_old = request.version() < Version::HTTP_11;
    let mut response = if head_bytes(request.headers()) > MAX_HEADERS {
        let refused = Failure::HeadersTooLarge.response();
        request.into_response(refused).map_into_right_body()
    } else {
        next.call(request).await?.map_into_left_body()
    };
    let is_stream = response.response().body().size() == BodySize::Stream;
    let head = response.response_mut().head_mut();
    // Chunks came with HTTP/1.1: before it an answer of unknown length ends with its connection.
    if is_old && is_stream {
        head.no_chunking(true);
        head.set_connection_type(ConnectionType::Close);
    }
    if shared.is_some_and(|shared| !shared.leadership.is_held()) {
        // The client's next connection reaches the process that serves now.
        head.set_connection_type(ConnectionType::Close);
    }
    head.headers_mut().insert(X_REQUEST_ID.clone(), id.clone());
    head.headers_mut().insert(REQUEST_ID, id);
    Ok(response)
}

/// The name that OpenAI's SDKs read, and Anthropic's.
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The client's id of a request if it is printable, else a fresh one.
fn id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(&X_REQUEST_ID).filter(|id| {
        (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        let fresh = format!("req-{:032x}", rand::random::<u128>());
        HeaderValue::try_from(fresh).unwrap_or(HeaderValue::from_static("req"))
    })
}

/// What the header lines take.
fn head_bytes(headers: &HeaderMap) -> usize {
    const AROUND: usize = ": \r\n".len();
    let lines = headers.iter();
    lines
        .map(|(name, value)| name.as_str().len() + value.len() + AROUND)
        .sum()
}
