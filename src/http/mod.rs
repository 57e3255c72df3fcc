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

pub use self::shared::Shared;
use self::{attempt::Task, exchange::forward, refusal::Failure};

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
