//! Who is let in: keys, and from whom the tenant header is believed.

use std::{collections::HashMap, net::SocketAddr};

use crate::config::{
    Auth, KeyHash, TenantConfig, TenantHeader, file::File, path::KeyPath, report::Report,
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
        tenant: &str,
        path: &KeyPath,
        keys: &[String],
        report: &mut Report,
    ) -> Vec<KeyHash> {
        let mut hashes = Vec::with_capacity(keys.len());
        for (index, text) in keys.iter().enumerate() {
            let here = path.index(index);
            let Some(hash) = read_hash(&here, text, report) else {
                continue;
            };
            match self.0.insert(hash, tenant.to_owned()) {
                Some(other) if other == tenant => {
                    report.problem(&here, "the same key stands here twice", None);
                }
                Some(other) => {
                    let message = format!("tenant `{other}` has the same key");
                    let help =
                        "a key decides who the tenant is; make one for each with `kvwarden key`";
                    report.problem(&here, message, Some(help.to_owned()));
                }
                None => hashes.push(hash),
            }
        }
        hashes
    }
}

/// The text is never repeated: it may be the key itself.
fn read_hash(path: &KeyPath, text: &str, report: &mut Report) -> Option<KeyHash> {
    let hash = KeyHash::parse(text);
    if hash.is_none() {
        let message = match text.strip_prefix("sha256:") {
            Some(digits) => format!(
                "not a key's hash: 64 hexadecimal digits have to follow `sha256:`, not {} characters",
                digits.chars().count()
            ),
            None => "not a key's hash: it has to start with `sha256:`".to_owned(),
        };
        report.problem(path, message, Some(KEY_HELP.to_owned()));
    }
    hash
}

pub(super) fn auth(
    file: &File,
    listen: SocketAddr,
    tenants: &[TenantConfig],
    report: &mut Report,
) -> Auth {
    let path = KeyPath::of("auth");
    let tenant_header = file.auth.tenant_header.unwrap_or(TenantHeader::Loopback);
    let admin_keys = path.key("admin_keys");
    let admin = file.auth.admin_keys.iter().enumerate();
    let admin = admin.filter_map(|(index, text)| read_hash(&admin_keys.index(index), text, report));
    let auth = Auth {
        tenant_header,
        admin_keys: admin.collect(),
    };
    if !listen.ip().is_loopback() && !report.is_broken(&path.key("tenant_header")) {
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
            let help = r#"keep this only behind a proxy that authenticates and sets the header; otherwise give the tenants `api_keys` and set `tenant_header = "never"` (TOML form)"#;
            report.warn(
                &KeyPath::of("auth").key("tenant_header"),
                message,
                Some(help.to_owned()),
            );
        }
        TenantHeader::Never | TenantHeader::Loopback if !any_key => {
            let message =
                format!("{listen} is open to other machines, but no tenant has an API key");
            let help = r#"give the tenants `api_keys` (`kvwarden key` makes them), listen on 127.0.0.1, or, behind a proxy that authenticates, set `auth.tenant_header = "always"`"#;
            report.problem(&KeyPath::of("listen"), message, Some(help.to_owned()));
        }
        TenantHeader::Never | TenantHeader::Loopback => {}
    }
}
