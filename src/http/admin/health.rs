//! `GET /health`: whether this node does what it should.
//!
//! That a model is not in memory is no failure: models take turns. It is one that a model could not
//! be started, or that the engine it had is gone and no new one is there yet.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use kvwarden_actors::{
    Overview,
    model::{EngineState, ModelState},
};
use kvwarden_policy::{
    lifecycle::State,
    residency::{Resident, Until},
};
use serde_json::{Map, Value, json};

use crate::http::{refusal::Failure, shared::Shared};

/// How a model does. Of several engines the best counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Readiness {
    /// It serves, or rests, or waits for its turn.
    Well,
    /// It should serve and does not yet.
    Starting,
    /// Trying again will not mend it, or nothing is known of it.
    Broken,
}

/// Models that somebody expects: from the start on, or since they were first wanted.
fn expected(overview: &Overview) -> impl Iterator<Item = &ModelState> {
    let is_expected =
        |model: &&ModelState| !model.is_leaving && (model.autostart || model.generation.0 > 0);
    overview.models.iter().filter(is_expected)
}

/// The one that does worst. Of an actor that does not answer nothing good can be said.
fn worst(overview: &Overview) -> Readiness {
    if !overview.unresponsive.is_empty() {
        return Readiness::Broken;
    }
    let all = expected(overview).map(|model| {
        let engines = model.engines.iter();
        let of_engines = engines.map(|engine| readiness(model, engine, until(overview, engine)));
        of_engines.min().unwrap_or(Readiness::Starting)
    });
    all.max().unwrap_or(Readiness::Well)
}

/// Every model serves, has served and rests, or waits because others are worth more.
#[must_use]
pub fn is_ready(overview: &Overview) -> bool {
    worst(overview) == Readiness::Well
}

/// What an engine waits for, if it waits for a place.
fn until(overview: &Overview, engine: &EngineState) -> Option<Until> {
    let is_its = |resident: &&Resident| resident.engine == engine.engine;
    overview.gpu.residents.iter().find(is_its)?.until
}

fn readiness(model: &ModelState, engine: &EngineState, until: Option<Until>) -> Readiness {
    let record = &engine.record;
    // Its first start, or the one that has to make up for a failure.
    let is_missed = record.is_failing || (model.autostart && record.starts + record.adoptions == 0);
    match engine.state {
        State::Ready
        | State::Cold
        | State::Asleep { .. }
        | State::Draining { .. }
        | State::Demoting { .. }
        | State::Stopping => Readiness::Well,
        State::Waiting { .. } if matches!(until, Some(Until::Room | Until::Worth)) => {
            Readiness::Well
        }
        State::Waiting { .. } if until == Some(Until::Device) => Readiness::Broken,
        State::Waiting { .. }
        | State::Adopting
        | State::Starting { .. }
        | State::Waking { .. }
        | State::Verifying { .. } => {
            if is_missed {
                Readiness::Starting
            } else {
                Readiness::Well
            }
        }
        State::Fetching | State::Backoff { .. } => Readiness::Starting,
        State::Broken { .. } => Readiness::Broken,
    }
}

/// `GET /health`: 200 once every model that should serve can; 503 and what is missing until then.
pub async fn health(shared: web::Data<Arc<Shared>>) -> HttpResponse {
    let overview = match Overview::partial(&shared.router).await {
        Ok(overview) => overview,
        Err(error) => return Failure::from(error).response(),
    };
    let late = overview.unresponsive_models();
    let late = late.map(|id| (id.to_string(), json!({ "state": "unresponsive" })));
    let told = expected(&overview).map(|model| told(model, &overview));
    let models: Map<_, _> = told.chain(late).collect();
    let status = match worst(&overview) {
        _ if overview.router.is_draining => "draining",
        Readiness::Well => "ok",
        Readiness::Starting => "starting",
        Readiness::Broken => "degraded",
    };
    let mut response = match status {
        "ok" => HttpResponse::Ok(),
        _ => HttpResponse::ServiceUnavailable(),
    };
    response.json(json!({ "status": status, "models": models }))
}

/// What anybody may know. Of a failure that is its class: an engine's last words may hold prompts.
fn told(model: &ModelState, overview: &Overview) -> (String, Value) {
    let mut told = json!(model.state);
    if model.state == State::Fetching {
        told["note"] = json!(model.record.note);
    }
    if let Some(until) = model
        .engines
        .iter()
        .find_map(|engine| until(overview, engine))
    {
        told["until"] = json!(until);
    }
    (model.id.to_string(), told)
}
