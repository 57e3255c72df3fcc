//! Tenants: names, limits and what they inherit.

use kvwarden_actors::router::OTHERS;
use kvwarden_policy::{TenantId, tier::Tiers};
use serde_json::{Map, Value};

use super::{access::KeyOwners, check_name};
use crate::config::{
    GroupConfig, TenantConfig, TenantLimits,
    file::{File, ServiceTier, Tenant, TenantDefaults, given},
    path::KeyPath,
    read::one_of,
    report::{Report, Section},
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
    let mut section = report.section(KeyPath::of("tenant_defaults"));
    check_limits(&mut section, &given(table), &limits);
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
        check_name(&path, name, "tenant", LONGEST_NAME, report);
        if name == OTHERS {
            report
                .problem(&path, format!("`{OTHERS}` is taken"))
                .help("choose another name: this one stands for all that the file does not name");
        }
        let mut section = report.section(path);
        let limits = inherit(tenant, defaults);
        check_limits(&mut section, &given(tenant), &limits);
        resolved.push(TenantConfig {
            id: TenantId::from(name.as_str()),
            api_keys: owners.read(&mut section, name, &tenant.api_keys),
            group: group(&mut section, file, tenant),
            limits,
        });
    }
    resolved
}

fn check_groups(file: &File, report: &mut Report) {
    for (name, group) in &file.groups {
        let path = KeyPath::of("groups").key(name);
        check_name(&path, name, "group", LONGEST_NAME, report);
        let is_used = |tenant: &Tenant| tenant.group.as_ref() == Some(name);
        if !file.tenants.values().any(is_used) {
            report
                .warning(&path, "no tenant belongs to this group")
                .help(format!(
                    "write `group = {name:?}` under a [tenants.NAME], or leave it out"
                ));
        }
        report
            .section(path)
            .positive("weight", group.weight != Some(0));
    }
}

/// The group that a tenant names, which has to be there: a misspelt one would give it a whole
/// group's part.
fn group(section: &mut Section<'_>, file: &File, tenant: &Tenant) -> Option<GroupConfig> {
    let name = tenant.group.as_ref()?;
    if section.report.is_broken(&KeyPath::of("groups").key(name)) {
        return None;
    }
    let Some(group) = file.groups.get(name) else {
        let known: Vec<&str> = file.groups.keys().map(String::as_str).collect();
        let help = match known.as_slice() {
            [] => format!("add a table [groups.{name}]"),
            known => one_of(name, "the groups", known),
        };
        section
            .problem("group", format!("there is no group {name:?}"))
            .help(help);
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
fn check_limits(section: &mut Section<'_>, own: &Map<String, Value>, resolved: &TenantLimits) {
    for (key, _) in own
        .iter()
        .filter(|(key, value)| **value == 0 && *key != "priority")
    {
        section
            .problem(key, "zero would refuse every request")
            .help("leave the key out for no limit; to shut a tenant out, remove its API keys");
    }
    if own.contains_key("rate_limit_burst")
        && resolved.rate_limit_rpm.is_none()
        && !section.is_broken("rate_limit_rpm")
    {
        section
            .problem("rate_limit_burst", "a burst without a rate limits nothing")
            .help("add `rate_limit_rpm`, the sustained rate that the burst refills at");
    }
}
