//! What operators do: load, unload, sleep and pin models, and have the configuration read again.
//! A verb sets the target of a model; `kvwarden status` shows what became of it.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::LocalBoxFuture;
use kvwarden_actors::{
    Refusal,
    protocol::{SetTarget, Target},
};
use kvwarden_policy::lifecycle::SleepLevel;
use serde_json::{Value, json};

use crate::{
    config::Changes,
    http::{self, refusal::Failure, request::body::require_json, shared::Shared},
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
        app.service(http::act(&path, act));
    }
    app.service(http::act("/kvwarden/reload", reload));
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
    shared.view().identity.operator(request)?;
    if !shared.leadership.is_held() {
        return Err(Refusal::Draining.into());
    }
    // Where no key is asked for, a page in a browser on this machine could send this; it can't set this
    // content type for another site without asking first.
    require_json(request)
}
