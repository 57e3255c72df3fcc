//! What requests are judged by: one configuration, whole. Another one takes its place at once, and
//! no request sees a part of each.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    OTHERS,
    request::{
        body::Bodies,
        identity::{self, Identity},
    },
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
    models: HashMap<String, Labels>,
}

/// Canonical name and engine of a model.
pub(super) type Labels = (Arc<str>, &'static str);

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
            named_tenants: named,
            models: model_labels(config),
        }
    }

    /// The tenant's name if the configuration knows it: labels must not grow with what clients send.
    pub(super) fn tenant_label<'a>(&self, tenant: &'a str) -> &'a str {
        if self.is_named(tenant) {
            tenant
        } else {
            OTHERS
        }
    }

    /// Canonical name and engine of a model, by any of its names.
    pub(super) fn model_labels(&self, name: &str) -> Option<&Labels> {
        self.models.get(name)
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

fn model_labels(config: &Config) -> HashMap<String, Labels> {
    let models = config.models.iter().filter(|model| !model.is_replica());
    let labels = models.flat_map(|model| {
        let labels = (Arc::from(model.id.as_str()), model.engine.family());
        let names = [model.id.to_string()]
            .into_iter()
            .chain(model.aliases.clone());
        names.map(move |name| (name, labels.clone()))
    });
    labels.collect()
}
