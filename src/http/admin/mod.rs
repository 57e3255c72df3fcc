//! Metrics, status and the list of models: what the actors say about themselves.

pub mod control;
pub mod health;
mod observe;

use std::{sync::Arc, time::SystemTime};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use kvwarden_actors::{
    Overview, Refusal,
    model::ModelState,
    overview::{ActorName, OverviewError},
};
use serde_json::{Map, Value, json};

use self::{control::Reload, observe::observe};
use super::{refusal::Failure, shared::Shared};
use crate::metrics;

/// `GET /v1/models`.
pub async fn models(request: HttpRequest, shared: web::Data<Arc<Shared>>) -> HttpResponse {
    match visible(&request, &shared).await {
        Ok(overview) => {
            let models = overview.models.iter().filter(|model| !model.is_leaving);
            let data: Vec<_> = models.map(|model| entry(model, &shared)).collect();
            HttpResponse::Ok().json(json!({ "object": "list", "data": data }))
        }
        Err(failure) => failure.response(),
    }
}

/// `GET /v1/models/{id}`, by any of the model's names.
pub async fn model(
    request: HttpRequest,
    name: web::Path<String>,
    shared: web::Data<Arc<Shared>>,
) -> HttpResponse {
    let overview = match visible(&request, &shared).await {
        Ok(overview) => overview,
        Err(failure) => return failure.response(),
    };
    match overview
        .models
        .iter()
        .find(|model| !model.is_leaving && model.names.contains(&name))
    {
        Some(model) => HttpResponse::Ok().json(entry(model, &shared)),
        None => Failure::Refused(Refusal::UnknownModel(name.into_inner())).response(),
    }
}

/// All models: a list from which one that does not answer is missing would say that it is gone.
async fn visible(request: &HttpRequest, shared: &Shared) -> Result<Overview, Failure> {
    shared.view().identity.tenant(request)?;
    let overview = Overview::partial(&shared.router).await?;
    if let Some(id) = overview.unresponsive_models().next() {
        return Err(OverviewError::late(ActorName::Model(id.clone())).into());
    }
    Ok(overview)
}

fn entry(model: &ModelState, shared: &Shared) -> Value {
    json!({
        "id": model.id,
        "object": "model",
        "created": unix_seconds(shared.since),
        "owned_by": format!("kvwarden-{}", model.engine.family()),
        "aliases": model.names,
        "state": model.state,
    })
}

fn names(actors: &[ActorName]) -> Vec<String> {
    actors.iter().map(ToString::to_string).collect()
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `GET /kvwarden/status`: the keys of the Python KVWarden, and the actors' states beside them.
pub async fn status(
    request: HttpRequest,
    shared: web::Data<Arc<Shared>>,
    reload: web::Data<dyn Reload>,
) -> HttpResponse {
    if let Err(failure) = shared.view().identity.reader(&request) {
        return failure.response();
    }
    let overview = match Overview::partial(&shared.router).await {
        Ok(overview) => overview,
        Err(error) => return Failure::from(error).response(),
    };
    let by_model = |value: fn(&ModelState) -> Value| -> Map<String, Value> {
        overview
            .models
            .iter()
            .map(|model| (model.id.to_string(), value(model)))
            .collect()
    };
    let loaded = by_model(|model| json!(model));
    let tenants: Map<_, _> = overview
        .tenants
        .iter()
        .map(|tenant| (tenant.id.to_string(), json!(tenant)))
        .collect();
    let sum = |count: fn(&ModelState) -> usize| overview.models.iter().map(count).sum::<usize>();
    let uptime = shared.since.elapsed().unwrap_or_default().as_secs_f64();
    HttpResponse::Ok().json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "loaded_models": loaded,
        "queue_depths": by_model(|model| json!(model.waiting)),
        "admission": {
            "in_flight": sum(|model| model.running),
            "queue_depth": sum(|model| model.waiting),
            "max_in_flight": shared.view().limits.max_in_flight,
            "is_draining": overview.router.is_draining,
        },
        "tenants": tenants,
        "gpu": overview.gpu,
        "router": overview.router,
        "unresponsive_actors": names(&overview.unresponsive),
        "last_reload": reload.last(),
        "metrics": {
            "uptime_s": uptime,
            "total_requests": overview.tenants.iter().map(|t| t.admitted + t.refused).sum::<u64>(),
        },
    }))
}

/// `GET /metrics`: OpenMetrics for who asks for it (Prometheus does), else the classic text.
pub async fn metrics(request: HttpRequest, shared: web::Data<Arc<Shared>>) -> HttpResponse {
    if let Err(failure) = shared.view().identity.reader(&request) {
        return failure.response();
    }
    // With all actors stuck the counters still tell something, and gauges keep their last value.
    let overview = Overview::partial(&shared.router).await.ok();
    let Ok(text) = observe(overview.as_ref(), &shared) else {
        return HttpResponse::InternalServerError().finish();
    };
    let accept = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return HttpResponse::Ok().content_type(open).body(text);
    }
    let classic = "text/plain; version=0.0.4; charset=utf-8";
    HttpResponse::Ok()
        .content_type(classic)
        .body(metrics::classic(&text))
}

#[cfg(test)]
mod tests;
