//! The actors that a configuration asks for, leaf first, and what each of them is told of it, at the
//! start and whenever it is read again.

use std::sync::Arc;

use actix::{Actor as _, Addr};
use actix_rt::Arbiter;
use kvwarden_actors::{
    EngineObserver, Gpu, Ledger, Router,
    gpu::{self, Tuning},
    model::{self, EngineParams},
    process::{leadership::Leadership, orphans::Orphan},
    protocol::Configure,
    router::Unnamed,
};
use kvwarden_policy::{
    residency,
    scheduling::{Bounds, FairSettings, Settings},
};

use crate::{
    config::{Config, ModelConfig, change},
    layout::Layout,
    serve::history::History,
};

/// Requests that wait for one model, in bytes: a thousand of a megabyte.
const MAX_WAITING_BYTES: u64 = 1 << 30;

/// The router, and the GPU set below it, which is given what an earlier kvwarden left.
#[must_use]
pub fn start(
    config: &Config,
    layout: &Layout,
    orphans: Vec<Orphan>,
    control: &Arbiter,
    leadership: Leadership,
    observer: &Arc<dyn EngineObserver>,
    ledger: Arc<dyn Ledger>,
) -> Addr<Router> {
    let params = gpu::Params {
        // The file may be replaced by an upgrade while this process runs.
        shim: "/proc/self/exe".into(),
        run_dir: layout.run(),
        log_dir: layout.logs(),
        memory: config.gpu.memory,
        tuning: tuning(config),
        leadership,
        observer: observer.clone(),
    };
    let mut history = History::load(layout);
    history.succession.retain(|engine| {
        config
            .models
            .iter()
            .any(|model| model.engine_name == *engine)
    });
    let gpu = Gpu::new(params).remembering(history.succession.clone());
    let gpu = Gpu::start_in_arbiter(&control.handle(), |_| gpu.inheriting(orphans));
    let below = gpu.clone();
    let router = Router::start_in_arbiter(&control.handle(), |_| Router::new(below, ledger));
    gpu.do_send(gpu::SetRouter(router.downgrade()));
    router.do_send(configure(config, &history, observer));
    router
}

/// Who is there. The history is for those who were not.
#[must_use]
pub fn configure(
    config: &Config,
    history: &History,
    observer: &Arc<dyn EngineObserver>,
) -> Configure {
    let tenants = config.tenants.iter();
    let tenants = tenants.map(|tenant| (tenant.id.clone(), tenant.limits.clone()));
    let models = config.models.iter().filter(|model| !model.is_replica());
    Configure {
        tenants: tenants.collect(),
        unnamed: Unnamed {
            limits: config.tenant_defaults.clone(),
            at_most: config.limits.max_unnamed_tenants,
        },
        models: models
            .map(|model| model_params(model, config, history, observer.clone()))
            .collect(),
    }
}

/// How engines are swapped and left.
#[must_use]
pub fn tuning(config: &Config) -> Tuning {
    Tuning {
        residency: residency::Settings {
            max_wait: config.gpu.max_wait,
            prefetch: config.gpu.prefetch,
            ..residency::Settings::default()
        },
        orphan_grace: config.limits.orphan_grace,
        start_stall_timeout: config.limits.start_stall_timeout,
        max_saved_kv: config.limits.max_saved_kv,
    }
}

fn model_params(
    model: &ModelConfig,
    config: &Config,
    history: &History,
    observer: Arc<dyn EngineObserver>,
) -> model::Params {
    let engines = config.models.iter();
    let engines = engines.filter(|engine| engine.id == model.id);
    let names = [model.id.to_string()]
        .into_iter()
        .chain(model.aliases.clone());
    model::Params {
        id: model.id.clone(),
        names: names.collect(),
        engines: engines
            .map(|engine| EngineParams {
                name: engine.engine_name.clone(),
                kind: engine.engine,
                revision: change::revision(engine),
                costs: history.costs.get(engine.engine_name.as_str()).copied(),
            })
            .collect(),
        scheduling: Settings {
            discipline: model.scheduling,
            bounds: Bounds {
                requests: model.queue_size,
                bytes: MAX_WAITING_BYTES,
            },
            max_in_flight: usize::try_from(model.flags.capacity.sequences).unwrap_or(usize::MAX),
            fair: FairSettings {
                long_prompt_tokens: model.long_prompt_tokens,
                ..FairSettings::new(model.flags.capacity)
            },
        },
        queue_timeout: config.limits.queue_timeout,
        stall_timeout: config.limits.stall_timeout,
        broken_pause: config.limits.broken_pause,
        autostart: model.autostart,
        is_pinned: model.residency.pinned,
        idle_ttl: model.residency.idle_ttl,
        rate: history
            .rates
            .get(model.id.as_str())
            .cloned()
            .unwrap_or_default(),
        observer,
    }
}
