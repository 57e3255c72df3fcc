//! Tenants: names, limits and what they inherit.

use kvwarden_actors::{router::OTHERS, tenant};
use kvwarden_policy::{
    TenantId,
    scheduling::{Group, TenantBounds},
    tier::Tiers,
};

use super::access::KeyOwners;
use crate::config::{
    TenantConfig,
    file::{File, ServiceTier, TenantTable, given},
    name::{LONGEST_TENANT_NAME, check_name},
    path::KeyPath,
    read::one_of,
    report::{Report, Section},
    unit_text::is_zero,
};

pub(super) fn defaults(file: &File, report: &mut Report) -> tenant::Limits {
    let mut section = report.section(KeyPath::of("tenant_defaults"));
    check_limits(&mut section, &file.tenant_defaults);
    limits(&file.tenant_defaults, None)
}

pub(super) fn tenants(file: &File, report: &mut Report) -> Vec<TenantConfig> {
    check_groups(file, report);
    let mut owners = KeyOwners::default();
    let mut resolved = Vec::with_capacity(file.tenants.len());
    for (name, tenant) in &file.tenants {
        let path = KeyPath::of("tenants").key(name);
        check_name(&path, name, "tenant", LONGEST_TENANT_NAME, report);
        if name == OTHERS {
            report
                .problem(&path, format!("`{OTHERS}` is taken"))
                .help("choose another name: this one stands for all that the file does not name");
        }
        let mut section = report.section(path);
        check_limits(&mut section, tenant);
        resolved.push(TenantConfig {
            id: TenantId::from(name.as_str()),
            api_keys: owners.read(&mut section, name, &tenant.api_keys),
            limits: limits(tenant, group(&mut section, file, tenant)),
        });
    }
    resolved
}

fn check_groups(file: &File, report: &mut Report) {
    for (name, group) in &file.groups {
        let path = KeyPath::of("groups").key(name);
        check_name(&path, name, "group", LONGEST_TENANT_NAME, report);
        let is_used = |tenant: &TenantTable| tenant.group.as_ref() == Some(name);
        if !file.tenants.values().any(is_used) {
            report
                .warning(&path, "no tenant belongs to this group")
                .help(format!(
                    "write `group = {name:?}` under a [tenants.NAME], or leave it out"
                ));
        }
        report.section(path).positive("weight", group.weight > 0);
    }
}

/// The group that a tenant names, which has to be there: a misspelt one would give it a whole
/// group's part.
fn group(section: &mut Section<'_>, file: &File, tenant: &TenantTable) -> Option<Group> {
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
    // Names of tenants hold no spaces, so none is also the name of a group.
    Some(Group {
        name: format!("group {name}").into(),
        weight: group.weight,
    })
}

/// What the keys of a table come to.
fn limits(table: &TenantTable, group: Option<Group>) -> tenant::Limits {
    let unbounded = TenantBounds::default();
    tenant::Limits {
        priority: table.priority,
        weight: table.weight,
        group,
        tiers: Tiers {
            flex: table.service_tiers.contains(&ServiceTier::Flex),
            priority: table.service_tiers.contains(&ServiceTier::Priority),
        },
        requests: table
            .rate_limit_rpm
            .map(|rpm| (rpm, table.rate_limit_burst.unwrap_or(rpm))),
        tokens_per_minute: table.tokens_per_minute,
        tokens_per_day: table.tokens_per_day,
        concurrency: table.max_concurrent_requests,
        queued: TenantBounds {
            requests: table.max_queued_requests.unwrap_or(unbounded.requests),
            bytes: table.max_queued_bytes.unwrap_or(unbounded.bytes),
        },
    }
}

/// Checks the keys that stand in this table; what it inherits is told where that stands.
fn check_limits(section: &mut Section<'_>, table: &TenantTable) {
    let zeros = given(table).into_iter().filter(|(_, value)| is_zero(value));
    for (key, _) in zeros {
        if key != "priority" && section.stands(&key) {
            section
                .problem(&key, "zero would refuse every request")
                .help("leave the key out for no limit; to shut a tenant out, remove its API keys");
        }
    }
    if section.stands("rate_limit_burst")
        && table.rate_limit_rpm.is_none()
        && !section.is_broken("rate_limit_rpm")
    {
        section
            .problem("rate_limit_burst", "a burst without a rate limits nothing")
            .help("add `rate_limit_rpm`, the sustained rate that the burst refills at");
    }
}
