//! What requests are judged by: one configuration, whole. Another one takes its place at once, and
//! no request sees a part of each.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use actix_web::http::StatusCode;

use super::{
    request::{
        body::Bodies,
        identity::{self, Identity},
    },
    series::SeriesTable,
};
use crate::config::{Config, ModelSource, NodeLimits};

/// A configuration as far as requests need it.
pub struct View {
    /// Who is let in as whom.
    pub identity: Identity,
    /// What bounds the node.
    pub limits: NodeLimits,
    pub(super) bodies: Bodies,
    named_tenants: HashSet<String>,
    weights: HashMap<String, u32>,
    default_weight: u32,
    /// The metrics that requests count in.
    pub(super) series: SeriesTable,
    engine_keys: HashMap<String, EngineKey>,
}

/// The key that a model's engine is asked with.
#[derive(Default)]
struct EngineKey {
    /// The variable that holds it, of an attached server.
    variable: Option<String>,
    is_refused: AtomicBool,
}

// === impl View ===

impl View {
    /// Of this configuration. What the view before it counts is counted on.
    #[must_use]
    pub fn new(config: &Config, before: Option<&Self>) -> Self {
        let weights = config.tenants.iter();
        let weights = weights.map(|tenant| (tenant.id.to_string(), tenant.limits.weight));
        let named = config.tenants.iter().map(|tenant| tenant.id.to_string());
        let named: HashSet<_> = named.chain([identity::DEFAULT.to_owned()]).collect();
        let bodies = before.map(|view| &view.bodies);
        Self {
            identity: Identity::new(config),
            limits: config.limits.clone(),
            bodies: Bodies::new(&config.limits, named.iter().cloned(), bodies),
            weights: weights.collect(),
            default_weight: config.tenant_defaults.weight,
            series: series(config, &named),
            engine_keys: engine_keys(config),
            named_tenants: named,
        }
    }

    /// A tenant's part of every engine.
    pub(super) fn weight(&self, tenant: &str) -> u32 {
        let weight = self.weights.get(tenant).copied();
        weight.unwrap_or(self.default_weight)
    }

    /// The engine of a model refused our key. That is said once for each configuration: no request will
    /// fare better until its operator mends it.
    pub(super) fn key_refused(&self, model: &str, status: StatusCode) {
        let Some(key) = self.engine_keys.get(model) else {
            return;
        };
        if key.is_refused.swap(true, Ordering::Relaxed) {
            return;
        }
        let variable = key.variable.as_deref().unwrap_or("(not set)");
        tracing::error!(model, %status, api_key_env = variable, "the model's engine refuses our key; its requests fail until that is mended");
    }

    pub(super) fn is_named(&self, tenant: &str) -> bool {
        self.named_tenants.contains(tenant)
    }
}

fn series(config: &Config, tenants: &HashSet<String>) -> SeriesTable {
    let models = config.models.iter().filter(|model| !model.is_replica());
    let models = models.map(|model| {
        let names = [model.id.to_string()]
            .into_iter()
            .chain(model.aliases.clone());
        (names.collect(), model.id.as_str(), model.engine.family())
    });
    SeriesTable::new(models, tenants.iter().map(String::as_str))
}

fn engine_keys(config: &Config) -> HashMap<String, EngineKey> {
    let keys = config.models.iter().map(|model| {
        let variable = match &model.source {
            ModelSource::Url { api_key_env, .. } => api_key_env.clone(),
            ModelSource::Path(_)
            | ModelSource::Pypi(_)
            | ModelSource::Hub(_)
            | ModelSource::Preset(_) => None,
        };
        let key = EngineKey {
            variable,
            ..EngineKey::default()
        };
        (model.id.to_string(), key)
    });
    keys.collect()
}
