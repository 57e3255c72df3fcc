//! Who asks: the API key decides; `X-Tenant-ID` counts only where it is trusted.

use std::collections::HashMap;

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderName},
};
use kvwarden_actors::router::OTHERS;
use kvwarden_policy::TenantId;

use super::origin::{is_from_here, is_own};
use crate::{
    config::{Config, KeyHash, TenantHeader},
    http::refusal::{BadRequest, Failure},
};

/// Headers that name the tenant where they are believed: ours, llm-d's, and the one that the Gateway
/// API's inference extension had before.
static TENANT_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-tenant-id"),
    HeaderName::from_static("x-llm-d-inference-fairness-id"),
    HeaderName::from_static("x-gateway-inference-fairness-id"),
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
            && let Some(key) = bearer(request)?
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

    /// Lets those through to what tells about every tenant who may know it: with a key of an operator, or,
    /// where no key is in use, from this machine. A server that is open to others without keys has an
    /// operator who lets a proxy authenticate, or scrapes it from elsewhere.
    ///
    /// # Errors
    /// When it is somebody else.
    pub fn reader(&self, request: &HttpRequest) -> Result<(), Failure> {
        if !self.has_keys() && !is_from_here(request) {
            return Ok(());
        }
        self.operator(request)
    }

    /// Lets operators through.
    ///
    /// # Errors
    /// When keys are in use and the request carries no operator's, or none are and it comes from elsewhere.
    pub fn operator(&self, request: &HttpRequest) -> Result<(), Failure> {
        if !self.has_keys() {
            return if is_own(request) {
                Ok(())
            } else {
                Err(Failure::Forbidden(
                    "without auth.admin_keys this is for requests from this machine to http://localhost or a loopback address, and not for those that a proxy passes on",
                ))
            };
        }
        match bearer(request)?.map(KeyHash::of) {
            Some(key) if self.admins.contains(&key) => Ok(()),
            Some(_) => Err(Failure::Forbidden("this key is not one of auth.admin_keys")),
            None => Err(Failure::Unauthorized(
                "send a key of auth.admin_keys as `Authorization: Bearer KEY`",
            )),
        }
    }

    /// Some key is known, so that who has none is a stranger.
    fn has_keys(&self) -> bool {
        !(self.tenants.is_empty() && self.admins.is_empty())
    }

    fn trusts_header(&self, request: &HttpRequest) -> bool {
        match self.header {
            TenantHeader::Never => false,
            TenantHeader::Always => true,
            TenantHeader::Loopback => self.tenants.is_empty() && is_own(request),
        }
    }
}

/// The key of a request. Of two nobody knows which one a proxy in front has checked.
fn bearer(request: &HttpRequest) -> Result<Option<&str>, Failure> {
    let mut values = request.headers().get_all(header::AUTHORIZATION);
    let first = values.next();
    if values.next().is_some() {
        let message = "send one `Authorization` header";
        return Err(BadRequest::new(message).param("authorization").into());
    }
    let value = first.and_then(|value| value.to_str().ok());
    let parts = value.and_then(|value| value.split_once(' '));
    let key = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Ok(key.map(|(_, key)| key.trim()))
}

/// The tenant that the headers name. If they differ, one was set by somebody who should not have.
fn named_tenant(request: &HttpRequest) -> Option<Result<TenantId, Failure>> {
    let mut headers = TENANT_HEADERS.iter().flat_map(|name| {
        let values = request.headers().get_all(name);
        values.map(|value| (name.as_str(), value.as_bytes()))
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
