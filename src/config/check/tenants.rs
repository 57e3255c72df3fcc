//! Tenants: names, limits and what they inherit.

use kvwarden_actors::router::OTHERS;
use kvwarden_policy::{TenantId, tier::Tiers};

use super::{access::KeyOwners, is_name, positive};
use crate::config::{
    GroupConfig, TenantConfig, TenantLimits,
    file::{File, ServiceTier, Tenant, TenantDefaults},
    path::KeyPath,
    read::one_of,
    report::Report,
    unit_text::SizeText,
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
        tokens_per_day: table.tokens_per_day,
        max_concurrent_requests: table.max_concurrent_requests,
        max_queued_requests: table.max_queued_requests,
        max_queued_bytes: table.max_queued_bytes.map(|SizeText(bytes)| bytes),
        service_tiers: tiers(table.service_tiers.as_ref(), Tiers::default()),
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
    check_groups(file, report);
    let mut owners = KeyOwners::default();
    let mut resolved = Vec::with_capacity(file.tenants.len());
    for (name, tenant) in &file.tenants {
        let path = KeyPath::of("tenants").key(name);
        check_name(&path, name, "tenant", report);
        if name == OTHERS {
            let help = "choose another name: this one stands for all that the file does not name";
            report.problem(&path, format!("`{OTHERS}` is taken"), Some(help.to_owned()));
        }
        let limits = inherit(tenant, defaults);
        check_limits(&path, &own_limits(tenant), &limits, report);
        let api_keys = owners.read(name, &path.key("api_keys"), &tenant.api_keys, report);
        resolved.push(TenantConfig {
            id: TenantId::from(name.as_str()),
            api_keys,
            group: group(file, tenant, &path, report),
            limits,
        });
    }
    resolved
}

fn check_name(path: &KeyPath, name: &str, of: &str, report: &mut Report) {
    if !is_name(name, LONGEST_NAME) {
        let help = format!("use 1 to {LONGEST_NAME} of the characters A-Z a-z 0-9 . _ : @ / -");
        report.problem(path, format!("{name:?} cannot name a {of}"), help);
    }
}

fn check_groups(file: &File, report: &mut Report) {
    for (name, group) in &file.groups {
        let path = KeyPath::of("groups").key(name);
        check_name(&path, name, "group", report);
        positive(&path.key("weight"), group.weight != Some(0), report);
        let is_used = |tenant: &Tenant| tenant.group.as_ref() == Some(name);
        if !file.tenants.values().any(is_used) {
            let help = format!("write `group = {name:?}` under a [tenants.NAME], or leave it out");
            report.warn(&path, "no tenant belongs to this group", Some(help));
        }
    }
}

/// The group that a tenant names, which has to be there: a misspelt one would give it a whole
/// group's part.
fn group(file: &File, tenant: &Tenant, path: &KeyPath, report: &mut Report) -> Option<GroupConfig> {
    let name = tenant.group.as_ref()?;
    if report.is_broken(&KeyPath::of("groups").key(name)) {
        return None;
    }
    let Some(group) = file.groups.get(name) else {
        let known: Vec<&str> = file.groups.keys().map(String::as_str).collect();
        let help = match known.as_slice() {
            [] => format!("add a table [groups.{name}]"),
            known => one_of(name, "the groups", known),
        };
        let message = format!("there is no group {name:?}");
        report.problem(&path.key("group"), message, Some(help));
        return None;
    };
    Some(GroupConfig {
        name: name.clone(),
        weight: group.weight.unwrap_or(1),
    })
}

fn tiers(listed: Option<&Vec<ServiceTier>>, otherwise: Tiers) -> Tiers {
    listed.map_or(otherwise, |listed| Tiers {
        flex: listed.contains(&ServiceTier::Flex),
        priority: listed.contains(&ServiceTier::Priority),
    })
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
        tokens_per_day: tenant.tokens_per_day.or(defaults.tokens_per_day),
        max_concurrent_requests: tenant
            .max_concurrent_requests
            .or(defaults.max_concurrent_requests),
        max_queued_requests: tenant.max_queued_requests.or(defaults.max_queued_requests),
        max_queued_bytes: tenant
            .max_queued_bytes
            .map(|SizeText(bytes)| bytes)
            .or(defaults.max_queued_bytes),
        service_tiers: tiers(tenant.service_tiers.as_ref(), defaults.service_tiers),
    }
}

/// `own` is what stands in this table, `resolved` what it comes to.
fn check_limits(path: &KeyPath, own: &TenantLimits, resolved: &TenantLimits, report: &mut Report) {
    let zeros = [
        ("weight", own.weight == 0),
        ("rate_limit_rpm", own.rate_limit_rpm == Some(0)),
        ("rate_limit_burst", own.rate_limit_burst == Some(0)),
        ("tokens_per_minute", own.tokens_per_minute == Some(0)),
        ("tokens_per_day", own.tokens_per_day == Some(0)),
        ("max_queued_requests", own.max_queued_requests == Some(0)),
        ("max_queued_bytes", own.max_queued_bytes == Some(0)),
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
