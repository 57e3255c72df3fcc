//! What requests used, as the actors report it.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use kvwarden_actors::{Ledger, Spent};
use kvwarden_policy::{TenantId, quota::Day};
use prometheus_client::metrics::counter::Counter;

use super::{queue::Queue, store::Row};

/// Takes what requests used, and never waits. A row that finds the queue full is lost and counted.
#[derive(Debug)]
pub(super) struct UsageLog {
    pub(super) queue: Arc<Queue>,
    pub(super) dropped: Counter,
    /// What tenants had used of the day on which the node started.
    pub(super) spent: (Day, HashMap<String, u64>),
}

impl Ledger for UsageLog {
    fn spent(&self, tenant: &TenantId, spent: &Spent) {
        let row = Row {
            at: SystemTime::now(),
            tenant: tenant.to_string(),
            model: spent.model.to_string(),
            usage: spent.usage,
            is_exact: spent.is_exact,
        };
        if !self.queue.push_usage(row) {
            self.dropped.inc();
        }
    }

    fn spent_on(&self, tenant: &TenantId, day: Day) -> u64 {
        let (of, spent) = &self.spent;
        let spent = spent.get(tenant.as_str()).filter(|_| *of == day);
        spent.copied().unwrap_or_default()
    }
}
