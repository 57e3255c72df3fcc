//! What requests are judged by: one configuration, whole. Another one takes its place at once, and
//! no request sees a part of each.

use std::collections::{HashMap, HashSet};

use super::{
    request::{
        body::Bodies,
        identity::{self, Identity},
    },
    series::SeriesTable,
};
use crate::config::{Config, NodeLimits};

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
            named_tenants: named,
        }
    }

    /// A tenant's part of every engine.
    pub(super) fn weight(&self, tenant: &str) -> u32 {
        let weight = self.weights.get(tenant).copied();
        weight.unwrap_or(self.default_weight)
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
