//! What operators do: load, unload, sleep and pin models, and have the configuration read again.
//! A verb sets the target of a model; `kvwarden status` shows what became of it.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use futures_util::future::LocalBoxFuture;
use kvwarden_actors::{
    Refusal,
    protocol::{SetTarget, Target},
};
use kvwarden_policy::lifecycle::SleepLevel;
use serde_json::{Value, json};

use crate::{
    config::Changes,
    http::{refusal::Failure, request::body::require_json, shared::Shared},
};

/// Who reads the configuration again when an operator asks for it.
pub trait Reload: Send + Sync {
    /// Reads it and does what it says. An error says why everything stays as it is.
    fn reload(&self) -> LocalBoxFuture<'_, Result<Changes, Failure>>;

    /// How it went the last time, for operators; `null` if it was never read again.
    fn last(&self) -> Value;
}

/// The routes. `sleep` is as deep as leaves the engine alive and frees most.
pub fn routes(app: &mut web::ServiceConfig) {
    let targets = [
        ("load", Target::Load),
        ("unload", Target::Sleep(SleepLevel::Cold)),
        ("park", Target::Sleep(SleepLevel::Parked)),
        ("sleep", Target::Sleep(SleepLevel::L1)),
        ("deep-sleep", Target::Sleep(SleepLevel::L2)),
        ("pin", Target::Pin(true)),
        ("unpin", Target::Pin(false)),
    ];
    for (verb, target) in targets {
        let path = format!("/kvwarden/models/{{id:.+}}/{verb}");
        let act = move |request, id, shared| set_target(target, request, id, shared);
        app.route(&path, web::post().to(act));
    }
    app.route("/kvwarden/reload", web::post().to(reload));
}

/// `POST /kvwarden/models/{id}/{verb}`, by any of the model's names: 202, since it takes its time.
async fn set_target(
    target: Target,
    request: HttpRequest,
    name: web::Path<String>,
    shared: web::Data<Arc<Shared>>,
) -> HttpResponse {
    match admit(&request, &shared, name.into_inner()) {
        Ok(model) => {
            tracing::info!(model, ?target, "an operator's target");
            shared.router.do_send(SetTarget {
                model: model.as_str().into(),
                target,
            });
            HttpResponse::Accepted().json(json!({ "id": model }))
        }
        Err(failure) => failure.response(),
    }
}

/// `POST /kvwarden/reload`: 200 and what changed, or 422 and why nothing did.
async fn reload(
    request: HttpRequest,
    shared: web::Data<Arc<Shared>>,
    reloader: web::Data<dyn Reload>,
) -> HttpResponse {
    if let Err(failure) = is_operator(&request, &shared) {
        return failure.response();
    }
    match reloader.reload().await {
        Ok(changes) => HttpResponse::Ok().json(changes),
        Err(failure) => failure.response(),
    }
}

/// The canonical name of the model, if the request may do this to it.
fn admit(request: &HttpRequest, shared: &Shared, name: String) -> Result<String, Failure> {
    is_operator(request, shared)?;
    match shared.view().series.canonical(&name) {
        Some(model) => Ok(model.to_owned()),
        None => Err(Failure::Refused(Refusal::UnknownModel(name))),
    }
}

fn is_operator(request: &HttpRequest, shared: &Shared) -> Result<(), Failure> {
    let view = shared.view();
    view.identity.operator(request)?;
    if !shared.leadership.is_held() {
        return Err(Refusal::Draining.into());
    }
    // Where no key is asked for, a page in a browser on this machine could send this; it can't set
    // this content type for another site without asking first, and after rebinding its own name to
    // this address it still sends that name.
    require_json(request)?;
    if !view.identity.has_keys() && !is_addressed_as_local(request) {
        return Err(Failure::Forbidden(
            "without auth.admin_keys this is for requests to http://localhost or a loopback address",
        ));
    }
    Ok(())
}

fn is_addressed_as_local(request: &HttpRequest) -> bool {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
        if is_port { name } else { host }
    });
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = address
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    let is_from_here = request
        .peer_addr()
        .is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    is_from_here && (is_loopback || name.eq_ignore_ascii_case("localhost"))
}
