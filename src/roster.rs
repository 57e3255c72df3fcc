//! The actors that a configuration asks for, leaf first, and what each of them is told of it.

use std::sync::Arc;

use actix::{Actor as _, Addr};
use actix_rt::Arbiter;
use kvwarden_actors::{
    Gpu, Model, Router, Tenant, Witness,
    gpu::{self, orphans::Orphan},
    model,
    router::{ModelEntry, Unnamed},
    tenant,
};
use kvwarden_policy::{
    ModelId, residency,
    scheduling::{Bounds, FairSettings, Group, Settings, TenantBounds},
};

use crate::{
    config::{Config, GroupConfig, ModelConfig, TenantLimits},
    layout::Layout,
    prepare,
    remember::Memory,
};

/// Requests that wait for one model, in bytes: a thousand of a megabyte.
const MAX_WAITING_BYTES: u64 = 1 << 30;

/// Actors leaf first: each is given the addresses of those below it.
#[must_use]
pub fn start(
    config: &Config,
    layout: &Layout,
    orphans: Vec<Orphan>,
    control: &Arbiter,
    witness: Arc<dyn Witness>,
) -> Addr<Router> {
    let params = gpu::Params {
        // The file may be replaced by an upgrade while this process runs.
        shim: "/proc/self/exe".into(),
        run_dir: layout.run(),
        log_dir: layout.logs(),
        memory: config.gpu_memory,
        residency: residency::Settings {
            max_wait: config.max_wait,
            ..residency::Settings::default()
        },
        orphan_grace: config.limits.orphan_grace,
        max_saved_kv: config.limits.max_saved_kv,
        witness: witness.clone(),
    };
    let gpu = Gpu::start_in_arbiter(&control.handle(), |_| Gpu::new(params).inheriting(orphans));
    let config = config.clone();
    let memory = Memory::load(layout);
    let below = gpu.clone();
    let router = Router::start_in_arbiter(&control.handle(), move |ctx| {
        let me = actix::AsyncContext::address(ctx).downgrade();
        let unnamed = Unnamed {
            limits: tenant_limits(&config.tenant_defaults, None),
            at_most: config.limits.max_unnamed_tenants,
        };
        let mut router = Router::new(below.clone(), unnamed);
        for tenant in &config.tenants {
            let limits = tenant_limits(&tenant.limits, tenant.group.as_ref());
            let actor = Tenant::named(tenant.id.clone(), limits, me.clone()).start();
            router.add_tenant(tenant.id.clone(), actor);
        }
        for model in config.models.iter().filter(|model| !model.is_replica()) {
            let params = model_params(model, &config, &memory, witness.clone());
            let names = params.names.clone();
            let engines = params.engines.iter();
            let engines = engines.map(|(engine, _)| engine.clone()).collect();
            let addr = Model::new(params, me.clone(), below.clone()).start();
            router.add_model(ModelEntry {
                id: model.id.clone(),
                names,
                engines,
                addr,
            });
        }
        router
    });
    gpu.do_send(gpu::Meet(router.downgrade()));
    router
}

fn tenant_limits(limits: &TenantLimits, group: Option<&GroupConfig>) -> tenant::Limits {
    // Names of tenants hold no spaces, so none is also the name of a group.
    let group = group.map(|group| Group {
        name: format!("group {}", group.name).into(),
        weight: group.weight,
    });
    let unbounded = TenantBounds::default();
    tenant::Limits {
        priority: limits.priority,
        weight: limits.weight,
        group,
        tiers: limits.service_tiers,
        requests: limits
            .rate_limit_rpm
            .map(|rpm| (rpm, limits.rate_limit_burst.unwrap_or(rpm))),
        tokens_per_minute: limits.tokens_per_minute,
        tokens_per_day: limits.tokens_per_day,
        concurrency: limits.max_concurrent_requests,
        queued: TenantBounds {
            requests: limits.max_queued_requests.unwrap_or(unbounded.requests),
            bytes: limits.max_queued_bytes.unwrap_or(unbounded.bytes),
        },
    }
}

/// Every engine, with the actor of its model: those are in the order of the configuration.
#[must_use]
pub fn to_prepare(
    config: &Config,
    models: &[Addr<Model>],
    running: &[ModelId],
) -> Vec<prepare::Wanted> {
    let first = config.models.iter().filter(|model| !model.is_replica());
    let engines = first.zip(models).flat_map(|(model, actor)| {
        let engines = config.models.iter().filter(|engine| engine.id == model.id);
        engines
            .enumerate()
            .map(|(replica, engine)| prepare::Wanted {
                is_running: running.contains(&engine.engine_name),
                config: engine.clone(),
                actor: actor.clone(),
                replica,
            })
    });
    engines.collect()
}

fn model_params(
    model: &ModelConfig,
    config: &Config,
    memory: &Memory,
    witness: Arc<dyn Witness>,
) -> model::Params {
    let engines: Vec<&ModelConfig> = config
        .models
        .iter()
        .filter(|engine| engine.id == model.id)
        .collect();
    let names = [model.id.to_string()]
        .into_iter()
        .chain(model.aliases.clone());
    model::Params {
        id: model.id.clone(),
        names: names.collect(),
        engines: engines
            .iter()
            .map(|engine| (engine.engine_name.clone(), engine.engine))
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
        autostart: model.autostart,
        is_pinned: model.residency.pinned,
        idle_ttl: model.residency.idle_ttl,
        rate: memory
            .rates
            .get(model.id.as_str())
            .cloned()
            .unwrap_or_default(),
        costs: engines
            .iter()
            .map(|engine| memory.costs.get(engine.engine_name.as_str()).copied())
            .collect(),
        witness,
    }
}
