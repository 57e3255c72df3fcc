//! Tenants: names, limits and what they inherit.

use kvwarden_policy::TenantId;

use super::{access::KeyOwners, is_name};
use crate::config::{
    TenantConfig, TenantLimits,
    file::{File, Tenant, TenantDefaults},
    path::KeyPath,
    report::Report,
};

/// Longest tenant name; it becomes a label of metrics.
const LONGEST_NAME: usize = 64;

pub(super) fn defaults(table: &TenantDefaults, report: &mut Report) -> TenantLimits {
    let limits = TenantLimits {
        priority: table.priority.unwrap_or(0),
        weight: table.weight.unwrap_or(1),
        rate_limit_rpm: table.rate_limit_rpm,
        rate_limit_burst: table.rate_limit_burst,
        tokens_per_minute: table.tokens_per_minute,
        max_concurrent_requests: table.max_concurrent_requests,
    };
    let path = KeyPath::of("tenant_defaults");
    let own = limits.clone();
    check_limits(&path, &own, &limits, report);
    limits
}

pub(super) fn tenants(
    file: &File,
    defaults: &TenantLimits,
    report: &mut Report,
) -> Vec<TenantConfig> {
    let mut owners = KeyOwners::default();
    let mut resolved = Vec::with_capacity(file.tenants.len());
    for (name, tenant) in &file.tenants {
        let path = KeyPath::of("tenants").key(name);
        if !is_name(name, LONGEST_NAME) {
            let help = format!("use 1 to {LONGEST_NAME} of the characters A-Z a-z 0-9 . _ : @ / -");
            report.problem(&path, format!("{name:?} cannot name a tenant"), help);
        }
        let limits = inherit(tenant, defaults);
        check_limits(&path, &own_limits(tenant), &limits, report);
        let api_keys = owners.read(name, &path.key("api_keys"), &tenant.api_keys, report);
        resolved.push(TenantConfig {
            id: TenantId::from(name.as_str()),
            api_keys,
            limits,
        });
    }
    resolved
}

fn own_limits(tenant: &Tenant) -> TenantLimits {
    inherit(tenant, &TenantLimits::default())
}

fn inherit(tenant: &Tenant, defaults: &TenantLimits) -> TenantLimits {
    TenantLimits {
        priority: tenant.priority.unwrap_or(defaults.priority),
        weight: tenant.weight.unwrap_or(defaults.weight),
        rate_limit_rpm: tenant.rate_limit_rpm.or(defaults.rate_limit_rpm),
        rate_limit_burst: tenant.rate_limit_burst.or(defaults.rate_limit_burst),
        tokens_per_minute: tenant.tokens_per_minute.or(defaults.tokens_per_minute),
        max_concurrent_requests: tenant
            .max_concurrent_requests
            .or(defaults.max_concurrent_requests),
    }
}

/// `own` is what stands in this table, `resolved` what it comes to.
fn check_limits(path: &KeyPath, own: &TenantLimits, resolved: &TenantLimits, report: &mut Report) {
    let zeros = [
        ("weight", own.weight == 0),
        ("rate_limit_rpm", own.rate_limit_rpm == Some(0)),
        ("rate_limit_burst", own.rate_limit_burst == Some(0)),
        ("tokens_per_minute", own.tokens_per_minute == Some(0)),
        (
            "max_concurrent_requests",
            own.max_concurrent_requests == Some(0),
        ),
    ];
    for (key, is_zero) in zeros {
        if is_zero {
            let help = "leave the key out for no limit; to shut a tenant out, remove its API keys";
            let help = Some(help.to_owned());
            report.problem(&path.key(key), "zero would refuse every request", help);
        }
    }
    let rate = path.key("rate_limit_rpm");
    if own.rate_limit_burst.is_some()
        && resolved.rate_limit_rpm.is_none()
        && !report.is_broken(&rate)
    {
        let help = "add `rate_limit_rpm`, the sustained rate that the burst refills at".to_owned();
        report.problem(
            &path.key("rate_limit_burst"),
            "a burst without a rate limits nothing",
            help,
        );
    }
}
