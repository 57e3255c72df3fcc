//! Sets the metrics to what the actors say, when somebody asks for them.

use std::{collections::HashMap, fmt, sync::PoisonError, time::Duration};

use kvwarden_actors::{
    Overview, Vitals,
    model::{EngineState, ModelState, Record},
    overview::ActorName,
};
use kvwarden_policy::{
    lifecycle::{SleepLevel, State},
    residency::{Device, Resident},
};

use crate::{
    http::shared::{Counted, Shared},
    metrics::{self, Metrics},
};

/// The metrics as text, with what the actors said if they did.
pub(super) fn observe(overview: Option<&Overview>, shared: &Shared) -> Result<String, fmt::Error> {
    // Held to the end: two who ask at once must not count the same start twice, nor see each other's
    // gauges half set.
    let mut seen = shared
        .counted
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(overview) = overview {
        shared.metrics.clear_gauges();
        let is_here = |engine: &String| {
            let mut engines = overview.models.iter().flat_map(|model| &model.engines);
            engines.any(|here| here.engine.as_str() == engine)
        };
        // Of a model that does not answer nothing is counted twice when it does again.
        let all_answered = overview.unresponsive_models().next().is_none();
        seen.retain(|engine, _| !all_answered || is_here(engine));
        set(overview, shared, &mut seen);
    }
    shared.metrics.open_metrics()
}

fn set(overview: &Overview, shared: &Shared, seen: &mut HashMap<String, Counted>) {
    let metrics = &shared.metrics;
    if overview.unresponsive_models().next().is_none() {
        observe_sums(&overview.models, metrics);
    }
    for model in &overview.models {
        observe_model(model, metrics);
        for engine in &model.engines {
            let counted = seen.entry(engine.engine.to_string()).or_default();
            observe_engine(model, engine, counted, metrics);
            let mut residents = overview.gpu.residents.iter();
            if let Some(resident) = residents.find(|resident| resident.engine == engine.engine) {
                observe_resident(&labels(model, engine), resident, metrics);
            }
        }
    }
    for device in &overview.gpu.memory {
        observe_device(device, metrics);
    }
    observe_tenants(overview, shared);
    observe_actor(metrics, "router".to_owned(), overview.router.vitals);
    if !overview.unresponsive.contains(&ActorName::Gpu) {
        observe_actor(metrics, "gpu".to_owned(), overview.gpu.vitals);
    }
}

fn observe_sums(models: &[ModelState], metrics: &Metrics) {
    let serving = models
        .iter()
        .filter(|model| model.engines.iter().any(is_up));
    metrics.models_loaded.set(count(serving.count()));
    metrics
        .admission_queue_depth
        .set(models.iter().map(|model| count(model.waiting)).sum());
    metrics
        .admission_in_flight
        .set(models.iter().map(|model| count(model.running)).sum());
}

fn observe_tenants(overview: &Overview, shared: &Shared) {
    let (tenants, view) = (overview.tenants.iter(), shared.view());
    for tenant in tenants.filter(|tenant| view.is_named(tenant.id.as_str())) {
        let labels = metrics::Tenant {
            tenant: tenant.id.to_string(),
        };
        shared
            .metrics
            .tenant_in_flight
            .get_or_create(&labels)
            .set(tenant.in_flight.into());
        let actor = format!("tenant:{}", tenant.id);
        observe_actor(&shared.metrics, actor, tenant.vitals);
    }
}

fn observe_model(model: &ModelState, metrics: &Metrics) {
    let labels = metrics::Model {
        model: model.id.to_string(),
    };
    metrics
        .model_queue_depth
        .get_or_create(&labels)
        .set(count(model.waiting));
    metrics
        .model_in_flight
        .get_or_create(&labels)
        .set(count(model.running));
    let waiting = model.engine_waiting;
    if let Some(waiting) = waiting.and_then(|count| i64::try_from(count).ok()) {
        metrics.engine_waiting.get_or_create(&labels).set(waiting);
    }
    observe_actor(metrics, format!("model:{}", model.id), model.vitals);
}

fn observe_engine(
    model: &ModelState,
    engine: &EngineState,
    counted: &mut Counted,
    metrics: &Metrics,
) {
    let (labels, record) = (labels(model, engine), &engine.record);
    metrics
        .engine_up
        .get_or_create(&labels)
        .set(is_up(engine).into());
    let histogram = metrics.engine_cold_start.get_or_create(&labels);
    for took in unseen_starts(record, counted.starts) {
        histogram.observe(took.as_secs_f64());
    }
    let by_model = metrics::Model {
        model: model.id.to_string(),
    };
    for (counter, now, before) in [
        (
            &metrics.model_evictions,
            record.reclaimed,
            counted.reclaimed,
        ),
        (
            &metrics.model_prefetches,
            record.prefetches,
            counted.prefetches,
        ),
        (
            &metrics.model_prefetch_hits,
            record.prefetch_hits,
            counted.prefetch_hits,
        ),
    ] {
        let more = now.saturating_sub(before);
        counter.get_or_create(&by_model).inc_by(more);
    }
    metrics
        .model_saved_kv
        .get_or_create(&labels)
        .set(bytes(record.saved.bytes));
    *counted = Counted {
        starts: record.starts,
        reclaimed: record.reclaimed,
        prefetches: record.prefetches,
        prefetch_hits: record.prefetch_hits,
    };
}

fn observe_resident(labels: &metrics::Engine, resident: &Resident, metrics: &Metrics) {
    let taken = resident.bytes.saturating_mul(resident.devices.len() as u64);
    metrics.model_memory.get_or_create(labels).set(bytes(taken));
    for level in SleepLevel::ALL {
        let at = metrics::AtSleepLevel {
            model: labels.model.clone(),
            engine: labels.engine.clone(),
            rung: metrics::level(level).to_owned(),
        };
        let is_there = level == resident.level;
        metrics.model_level.get_or_create(&at).set(is_there.into());
    }
}

fn observe_device(device: &Device, metrics: &Metrics) {
    // Where nobody set a limit there is no capacity to tell.
    let capacity = i64::try_from(device.capacity).ok();
    let kinds = [("capacity", capacity), ("taken", Some(bytes(device.taken)))];
    for (kind, value) in kinds {
        let labels = metrics::DeviceMemory {
            device: device.id.to_string(),
            kind: kind.to_owned(),
        };
        if let Some(value) = value {
            metrics.device_memory.get_or_create(&labels).set(value);
        }
    }
}

/// A model's only engine is called by its kind, as the Python KVWarden did; further ones have their
/// number behind it.
fn labels(model: &ModelState, engine: &EngineState) -> metrics::Engine {
    let name = engine.engine.as_str();
    let number = name.strip_prefix(model.id.as_str()).unwrap_or_default();
    metrics::Engine {
        model: model.id.to_string(),
        engine: format!("{}{number}", engine.kind.family()),
    }
}

fn is_up(engine: &EngineState) -> bool {
    engine.state == State::Ready
}

fn unseen_starts(record: &Record, seen: u64) -> impl Iterator<Item = Duration> {
    let unseen = record.starts.saturating_sub(seen);
    let unseen = usize::try_from(unseen).unwrap_or(usize::MAX);
    record.recent_starts.iter().rev().take(unseen).copied()
}

fn observe_actor(metrics: &Metrics, actor: String, vitals: Vitals) {
    let labels = metrics::Actor { actor };
    metrics
        .actor_mailbox_wait
        .get_or_create(&labels)
        .set(vitals.mailbox_wait.as_secs_f64());
    let handled = i64::try_from(vitals.handled).unwrap_or(i64::MAX);
    metrics
        .actor_messages_handled
        .get_or_create(&labels)
        .set(handled);
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn bytes(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
