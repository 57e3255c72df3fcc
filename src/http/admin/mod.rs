//! Metrics, status and the list of models: what the actors say about themselves.

pub mod control;
pub mod health;
mod observe;

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use actix::{Addr, Handler, Message, dev::ToEnvelope};
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use futures_util::future::join_all;
use kvwarden_actors::{
    Gpu, Model, Refusal, Tenant,
    gpu::GpuState,
    model::ModelState,
    protocol::{ListActors, Snapshot},
    router::RouterState,
    tenant::TenantState,
};
use serde_json::{Map, Value, json};

pub(super) use self::observe::Seen;
use self::observe::observe;
use super::{Shared, refusal::Failure};
use crate::metrics;

/// Actors answer in microseconds; one that takes this long is stuck, and that is worth an error.
const PATIENCE: Duration = Duration::from_secs(2);

/// What every actor says of itself at one moment.
pub struct Overview {
    /// The router.
    pub router: RouterState,
    /// The GPU set.
    pub gpu: GpuState,
    /// The models, in the configuration's order.
    pub models: Vec<ModelState>,
    /// The tenants that exist, by name.
    pub tenants: Vec<TenantState>,
}

impl Overview {
    /// Asks all actors.
    ///
    /// # Errors
    /// When one does not answer in two seconds.
    pub async fn of(router: &Addr<kvwarden_actors::Router>) -> Result<Self, Failure> {
        let asked = async {
            let actors = router.send(ListActors).await.ok()?;
            Some(Self {
                router: router.send(Snapshot::default()).await.ok()?,
                gpu: ask::<Gpu, GpuState>(&actors.gpu).await?,
                models: ask_all::<Model, ModelState>(&actors.models).await,
                tenants: ask_all::<Tenant, TenantState>(&actors.tenants).await,
            })
        };
        let answered = tokio::time::timeout(PATIENCE, asked).await.ok().flatten();
        let mut overview = answered.ok_or(Failure::Refused(Refusal::Draining))?;
        overview.tenants.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(overview)
    }
}

async fn ask<A, S>(actor: &Addr<A>) -> Option<S>
where
    A: Handler<Snapshot<S>>,
    A::Context: ToEnvelope<A, Snapshot<S>>,
    S: Send + 'static,
    Snapshot<S>: Message<Result = S>,
{
    actor.send(Snapshot::default()).await.ok()
}

/// Actors that ended meanwhile (a tenant that was forgotten) are left out.
async fn ask_all<A, S>(actors: &[Addr<A>]) -> Vec<S>
where
    A: Handler<Snapshot<S>>,
    A::Context: ToEnvelope<A, Snapshot<S>>,
    S: Send + 'static,
    Snapshot<S>: Message<Result = S>,
{
    join_all(actors.iter().map(ask))
        .await
        .into_iter()
        .flatten()
        .collect()
}

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

async fn visible(request: &HttpRequest, shared: &Shared) -> Result<Overview, Failure> {
    shared.view().identity.tenant(request)?;
    Overview::of(&shared.router).await
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

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `GET /kvwarden/status`: the keys of the Python KVWarden, and the actors' states beside them.
pub async fn status(request: HttpRequest, shared: web::Data<Arc<Shared>>) -> HttpResponse {
    if let Err(failure) = shared.view().identity.operator(&request) {
        return failure.response();
    }
    let overview = match Overview::of(&shared.router).await {
        Ok(overview) => overview,
        Err(failure) => return failure.response(),
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
        "last_reload": *shared.reloaded.lock().unwrap_or_else(PoisonError::into_inner),
        "metrics": {
            "uptime_s": uptime,
            "total_requests": overview.tenants.iter().map(|t| t.admitted + t.refused).sum::<u64>(),
        },
    }))
}

/// `GET /metrics`: OpenMetrics for who asks for it (Prometheus does), else the classic text.
pub async fn metrics(request: HttpRequest, shared: web::Data<Arc<Shared>>) -> HttpResponse {
    if let Err(failure) = shared.view().identity.operator(&request) {
        return failure.response();
    }
    // With an actor stuck the counters still tell something; its gauges keep their last value.
    let overview = Overview::of(&shared.router).await.ok();
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
