//! Who keeps what tenants used, for longer than their actors live.

use std::fmt;

use kvwarden_policy::{TenantId, quota::Day};

use crate::Spent;

/// The books. They are called on the actors' thread, so they must not wait.
pub trait Ledger: fmt::Debug + Send + Sync {
    /// A request of this tenant ended, and used this.
    fn spent(&self, tenant: &TenantId, spent: &Spent);

    /// Tokens of that day that this tenant had used when the node started.
    fn spent_on(&self, tenant: &TenantId, day: Day) -> u64;
}

/// Nothing is kept.
impl Ledger for () {
    fn spent(&self, _: &TenantId, _: &Spent) {}

    fn spent_on(&self, _: &TenantId, _: Day) -> u64 {
        0
    }
}
