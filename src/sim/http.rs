//! Routes, authentication, and the mark every answer carries.

use actix_web::{
    Error, HttpResponse, ResponseError,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{AUTHORIZATION, HeaderName, HeaderValue},
    middleware::Next,
    web,
};
use serde_json::json;

use super::{app::App, completions, control, embeddings, error::ApiError, tokenize};

/// Largest body that is read, enough for a prompt of several million tokens.
const MAX_BODY: usize = 64 << 20;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .app_data(web::PayloadConfig::new(MAX_BODY))
        .route("/v1/chat/completions", web::post().to(completions::chat))
        .route("/v1/completions", web::post().to(completions::complete))
        .route("/v1/embeddings", web::post().to(embeddings::embed))
        .route("/v1/models", web::get().to(models))
        .route("/tokenize", web::post().to(tokenize::tokenize))
        .route("/detokenize", web::post().to(tokenize::detokenize))
        .route("/health", web::get().to(HttpResponse::Ok))
        .route("/ping", web::get().to(HttpResponse::Ok))
        .route("/version", web::get().to(version))
        .route("/metrics", web::get().to(metrics))
        .route("/kvwarden-sim/memory", web::get().to(memory))
        .configure(control::routes)
        .default_service(web::to(|| async {
            Err::<HttpResponse, _>(ApiError::NoSuchRoute)
        }));
}

/// Refuses strangers and marks every answer as simulated. Unlike vLLM, which asks for the key under
/// `/v1` only, control routes and the tokenizer are closed too.
pub(super) async fn guard<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let open = matches!(
        request.path(),
        "/health" | "/ping" | "/version" | "/metrics" | "/kvwarden-sim/memory"
    );
    let mut response = if open || is_known(&request) {
        match next.call(request).await {
            Ok(response) => response.map_into_boxed_body(),
            Err(error) => return Err(error),
        }
    } else {
        request.into_response(ApiError::Unauthorized.error_response())
    };
    response.headers_mut().insert(
        HeaderName::from_static("x-kvwarden-simulated"),
        HeaderValue::from_static("true"),
    );
    Ok(response)
}

fn is_known(request: &ServiceRequest) -> bool {
    let key = request
        .app_data::<web::Data<App>>()
        .and_then(|app| app.api_key.clone());
    let Some(key) = key else {
        return true;
    };
    request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token == &*key)
}

async fn models(app: web::Data<App>) -> HttpResponse {
    let root = app.model();
    let list = app.names.iter().map(|name| {
        json!({
            "id": name,
            "object": "model",
            "created": app.created,
            "owned_by": "kvwarden-sim",
            "root": root,
            "parent": null,
            "max_model_len": app.max_model_len,
        })
    });
    let data: Vec<_> = list.collect();
    HttpResponse::Ok().json(json!({"object": "list", "data": data}))
}

async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({"version": concat!("kvwarden-sim ", env!("CARGO_PKG_VERSION"))}))
}

async fn metrics(app: web::Data<App>) -> HttpResponse {
    let page = app.board.lock().render(app.model());
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(page)
}

async fn memory(app: web::Data<App>) -> HttpResponse {
    HttpResponse::Ok().json(app.board.lock().memory.report())
}
