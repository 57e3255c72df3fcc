//! Who asks: the API key decides; `X-Tenant-ID` counts only where it is trusted.

use std::{collections::HashMap, net::IpAddr};

use actix_web::{HttpRequest, http::header};
use kvwarden_actors::router::OTHERS;
use kvwarden_policy::TenantId;

use crate::{
    config::{Config, KeyHash, TenantHeader},
    http::refusal::{BadRequest, Failure},
};

/// Headers that name the tenant where they are believed: ours, llm-d's, and the one that the Gateway
/// API's inference extension had before.
const TENANT_HEADERS: [&str; 3] = [
    "x-tenant-id",
    "x-llm-d-inference-fairness-id",
    "x-gateway-inference-fairness-id",
];

/// The tenant of requests that name none.
pub(crate) const DEFAULT: &str = "default";

/// Longest tenant id.
const MAX_TENANT_ID: usize = 64;

/// Who is let in as whom.
pub struct Identity {
    tenants: HashMap<KeyHash, TenantId>,
    admins: Vec<KeyHash>,
    header: TenantHeader,
    default: TenantId,
}

impl Identity {
    /// What the configuration says.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let keys = config
            .tenants
            .iter()
            .flat_map(|tenant| tenant.api_keys.iter().map(|key| (*key, tenant.id.clone())));
        Self {
            tenants: keys.collect(),
            admins: config.auth.admin_keys.clone(),
            header: config.auth.tenant_header,
            default: TenantId::from(DEFAULT),
        }
    }

    /// The tenant of a request.
    ///
    /// # Errors
    /// An unknown key, no key where one is needed, or a malformed tenant id.
    pub fn tenant(&self, request: &HttpRequest) -> Result<TenantId, Failure> {
        if !self.tenants.is_empty()
            && let Some(key) = bearer(request)
        {
            let known = self.tenants.get(&KeyHash::of(key)).cloned();
            return known.ok_or(Failure::Unauthorized("this API key is not known here"));
        }
        if !self.trusts_header(request) {
            // Where no tenant has a key, everybody is the default tenant.
            return if self.tenants.is_empty() {
                Ok(self.default.clone())
            } else {
                Err(Failure::Unauthorized(
                    "send an API key as `Authorization: Bearer KEY`",
                ))
            };
        }
        named_tenant(request).unwrap_or_else(|| Ok(self.default.clone()))
    }

    /// Some key is known, so that who has none is a stranger.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        !(self.tenants.is_empty() && self.admins.is_empty())
    }

    /// Lets operators through to what tells about every tenant.
    ///
    /// # Errors
    /// When keys are in use and the request carries no operator's.
    pub fn operator(&self, request: &HttpRequest) -> Result<(), Failure> {
        if !self.has_keys() {
            return Ok(());
        }
        match bearer(request).map(KeyHash::of) {
            Some(key) if self.admins.contains(&key) => Ok(()),
            Some(_) => Err(Failure::Forbidden("this key is not one of auth.admin_keys")),
            None => Err(Failure::Unauthorized(
                "send a key of auth.admin_keys as `Authorization: Bearer KEY`",
            )),
        }
    }

    fn trusts_header(&self, request: &HttpRequest) -> bool {
        match self.header {
            TenantHeader::Never => false,
            TenantHeader::Always => true,
            TenantHeader::Loopback => self.tenants.is_empty() && is_loopback(request),
        }
    }
}

/// From this machine, and not on behalf of another one.
fn is_loopback(request: &HttpRequest) -> bool {
    let is_forwarded = ["forwarded", "x-forwarded-for"]
        .iter()
        .any(|name| request.headers().contains_key(*name));
    let peer = request.peer_addr().map(|peer| peer.ip().to_canonical());
    !is_forwarded && peer.as_ref().is_some_and(IpAddr::is_loopback)
}

fn bearer(request: &HttpRequest) -> Option<&str> {
    let value = request
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// The tenant that the headers name. If they differ, one was set by somebody who should not have.
fn named_tenant(request: &HttpRequest) -> Option<Result<TenantId, Failure>> {
    let mut headers = TENANT_HEADERS.iter().flat_map(|name| {
        let values = request.headers().get_all(*name);
        values.map(|value| (*name, value.as_bytes()))
    });
    let (first, id) = headers.next()?;
    Some(match headers.find(|(_, other)| *other != id) {
        Some((second, _)) => {
            let message = format!("`{first}` and `{second}` name different tenants; send one");
            Err(BadRequest::new(message).param(second).into())
        }
        None => tenant_id(id),
    })
}

fn tenant_id(value: &[u8]) -> Result<TenantId, Failure> {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:@/-".contains(byte);
    let is_id = (1..=MAX_TENANT_ID).contains(&value.len()) && value.iter().all(is_allowed);
    match std::str::from_utf8(value) {
        Ok(id) if is_id && id != OTHERS => Ok(TenantId::from(id)),
        _ => Err(BadRequest::new(
            "X-Tenant-ID must be 1 to 64 of the characters A-Z a-z 0-9 . _ : @ / -",
        )
        .param("X-Tenant-ID")
        .into()),
    }
}
