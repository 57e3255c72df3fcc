//! Who is let in: keys, and from whom the tenant header is believed.

use std::{collections::HashMap, net::SocketAddr};

use crate::config::{
    Auth, KeyHash, TenantConfig, TenantHeader,
    file::File,
    path::KeyPath,
    report::{Report, Section},
};

const KEY_HELP: &str =
    "`kvwarden key` makes a key and prints its hash; the hash goes here, the key to the client";

/// Which tenant has which key, so that no key means two tenants.
#[derive(Default)]
pub(super) struct KeyOwners(HashMap<KeyHash, String>);

impl KeyOwners {
    /// Reads one tenant's keys.
    pub(super) fn read(
        &mut self,
        section: &mut Section<'_>,
        tenant: &str,
        keys: &[String],
    ) -> Vec<KeyHash> {
        let mut hashes = Vec::with_capacity(keys.len());
        for (index, text) in keys.iter().enumerate() {
            let Some(hash) = read_hash(section, "api_keys", index, text) else {
                continue;
            };
            match self.0.insert(hash, tenant.to_owned()) {
                Some(other) if other == tenant => {
                    section.problem_in("api_keys", index, "the same key stands here twice");
                }
                Some(other) => section
                    .problem_in(
                        "api_keys",
                        index,
                        format!("tenant `{other}` has the same key"),
                    )
                    .help("a key decides who the tenant is; make one for each with `kvwarden key`"),
                None => hashes.push(hash),
            }
        }
        hashes
    }
}

/// The text is never repeated: it may be the key itself.
fn read_hash(section: &mut Section<'_>, list: &str, index: usize, text: &str) -> Option<KeyHash> {
    let hash = KeyHash::parse(text);
    if hash.is_none() {
        let message = match text.strip_prefix("sha256:") {
            Some(digits) => format!(
                "not a key's hash: 64 hexadecimal digits have to follow `sha256:`, not {} characters",
                digits.chars().count()
            ),
            None => "not a key's hash: it has to start with `sha256:`".to_owned(),
        };
        section.problem_in(list, index, message).help(KEY_HELP);
    }
    hash
}

pub(super) fn auth(
    file: &File,
    listen: SocketAddr,
    tenants: &[TenantConfig],
    report: &mut Report,
) -> Auth {
    let mut section = report.section(KeyPath::of("auth"));
    let tenant_header = file.auth.tenant_header;
    let admin = file.auth.admin_keys.iter().enumerate();
    let admin =
        admin.filter_map(|(index, text)| read_hash(&mut section, "admin_keys", index, text));
    let auth = Auth {
        tenant_header,
        admin_keys: admin.collect(),
    };
    if !listen.ip().is_loopback() && !section.is_broken("tenant_header") {
        check_open(file, listen, tenants, tenant_header, report);
    }
    auth
}

/// The API is reachable from other machines: somebody has to tell tenants apart.
fn check_open(
    file: &File,
    listen: SocketAddr,
    tenants: &[TenantConfig],
    tenant_header: TenantHeader,
    report: &mut Report,
) {
    // A key that could not be read is a problem already, and was meant to be one.
    let any_key = tenants.iter().any(|tenant| !tenant.api_keys.is_empty())
        || file.tenants.iter().any(|(name, tenant)| {
            let keys = KeyPath::of("tenants").key(name).key("api_keys");
            !tenant.api_keys.is_empty() || report.is_broken(&keys)
        });
    match tenant_header {
        TenantHeader::Always => {
            let message = format!(
                "whoever reaches {listen} may claim to be any tenant with the header X-Tenant-ID"
            );
            report
                .warning(&KeyPath::of("auth").key("tenant_header"), message)
                .help(r#"keep this only behind a proxy that authenticates and sets the header; otherwise give the tenants `api_keys` and set `tenant_header = "never"` (TOML form)"#);
        }
        TenantHeader::Never | TenantHeader::Loopback if !any_key => {
            let message =
                format!("{listen} is open to other machines, but no tenant has an API key");
            report
                .problem(&KeyPath::of("listen"), message)
                .help(r#"give the tenants `api_keys` (`kvwarden key` makes them), listen on 127.0.0.1, or, behind a proxy that authenticates, set `auth.tenant_header = "always"`"#);
        }
        TenantHeader::Never | TenantHeader::Loopback => {}
    }
}
