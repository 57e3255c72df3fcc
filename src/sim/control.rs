//! vLLM's development endpoints: sleep, pause, caches. vLLM has them only with
//! `VLLM_SERVER_DEV_MODE=1`; here they are always on.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use super::{
    app::App,
    error::ApiError,
    handle::{Answer, Control, InFlight, Quiet},
    memory::SleepLevel,
    request,
};

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/sleep", web::post().to(sleep))
        .route("/wake_up", web::post().to(wake_up))
        .route("/is_sleeping", web::get().to(is_sleeping))
        .route("/pause", web::post().to(pause))
        .route("/resume", web::post().to(resume))
        .route("/release_kv_cache_memory", web::post().to(release_kv))
        .route("/reset_prefix_cache", web::post().to(reset_prefix_cache))
        .route("/collective_rpc", web::post().to(collective_rpc))
        .route("/openapi.json", web::get().to(openapi));
}

/// Of the description of the API what tells whether the engine can sleep.
async fn openapi() -> HttpResponse {
    const PATHS: [&str; 6] = [
        "/sleep",
        "/wake_up",
        "/pause",
        "/resume",
        "/release_kv_cache_memory",
        "/collective_rpc",
    ];
    let paths = PATHS.map(|path| (path.to_owned(), json!({ "post": {} })));
    let paths: serde_json::Map<_, _> = paths.into_iter().collect();
    HttpResponse::Ok().json(json!({ "paths": paths }))
}

/// Query parameters, read by hand because `tags` may come several times.
type Query = web::Query<Vec<(String, String)>>;

fn last<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    let found = query.iter().rev().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

fn mode(query: &Query) -> Result<InFlight, ApiError> {
    match last(query, "mode") {
        None | Some("abort") => Ok(InFlight::Abort),
        Some("wait") => Ok(InFlight::Wait),
        Some("keep") => Ok(InFlight::Keep),
        Some(other) => {
            let message = format!("mode must be abort, wait or keep, got {other:?}");
            Err(ApiError::value("mode", message))
        }
    }
}

async fn sleep(app: web::Data<App>, query: Query) -> Result<HttpResponse, ApiError> {
    let level = match last(&query, "level").unwrap_or("1") {
        "1" => SleepLevel::Offload,
        "2" => SleepLevel::Discard,
        other => {
            let message = format!("level must be 1 or 2, got {other:?}");
            return Err(ApiError::value("level", message));
        }
    };
    let quiesce = Control::Quiesce(Quiet::Sleep(level), mode(&query)?);
    app.engine.control(quiesce).await?;
    Ok(HttpResponse::Ok().finish())
}

async fn wake_up(app: web::Data<App>, query: Query) -> Result<HttpResponse, ApiError> {
    let mut tags = query
        .iter()
        .filter_map(|(key, value)| (key == "tags").then_some(value.as_str()))
        .peekable();
    let all = tags.peek().is_none();
    let (mut weights, mut kv) = (all, all);
    for tag in tags {
        match tag {
            "weights" => weights = true,
            "kv_cache" => kv = true,
            other => {
                let message = format!("tags must be weights or kv_cache, got {other:?}");
                return Err(ApiError::value("tags", message));
            }
        }
    }
    app.engine.control(Control::Wake { weights, kv }).await?;
    Ok(HttpResponse::Ok().finish())
}

async fn is_sleeping(app: web::Data<App>) -> HttpResponse {
    let is_sleeping = !app.board.lock().memory.is_complete();
    HttpResponse::Ok().json(json!({"is_sleeping": is_sleeping}))
}

async fn pause(app: web::Data<App>, query: Query) -> Result<HttpResponse, ApiError> {
    let quiesce = Control::Quiesce(Quiet::Pause, mode(&query)?);
    app.engine.control(quiesce).await?;
    Ok(HttpResponse::Ok().json(json!({"status": "paused"})))
}

async fn resume(app: web::Data<App>) -> Result<HttpResponse, ApiError> {
    app.engine.control(Control::Resume).await?;
    Ok(HttpResponse::Ok().json(json!({"status": "resumed"})))
}

async fn release_kv(app: web::Data<App>) -> Result<HttpResponse, ApiError> {
    match app.engine.control(Control::ReleaseKv).await? {
        Answer::Done => Ok(HttpResponse::Ok().finish()),
        // vLLM's, where an exception in its core becomes this.
        Answer::Busy => Ok(HttpResponse::InternalServerError().finish()),
    }
}

async fn reset_prefix_cache(app: web::Data<App>) -> Result<HttpResponse, ApiError> {
    // vLLM says 200 whether or not it worked: blocks in use stay cached.
    app.engine.control(Control::ResetPrefixCache).await?;
    Ok(HttpResponse::Ok().finish())
}

#[derive(Deserialize)]
struct Rpc {
    method: String,
}

/// Knows the one method that a deep sleep makes necessary.
async fn collective_rpc(app: web::Data<App>, body: web::Bytes) -> Result<HttpResponse, ApiError> {
    let body: Rpc = request::parse(&body)?;
    if body.method != "reload_weights" {
        let message = format!("the simulated engine has no method {:?}", body.method);
        return Err(ApiError::value("method", message));
    }
    match app.engine.control(Control::ReloadWeights).await? {
        Answer::Done => Ok(HttpResponse::Ok().json(json!({"results": [null]}))),
        Answer::Busy => {
            let message = "weights can't be reloaded while their memory is away";
            Err(ApiError::value("method", message))
        }
    }
}
