//! A request's body on its way in: within its size and its time, and within what its tenant and
//! the node may hold at once.
//!
//! Bodies are counted as they arrive, so that a length that is only announced takes nothing from
//! others. Tenants that the configuration does not name count as one: made-up names add nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix_web::{HttpRequest, http::header, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use kvwarden_actors::router::OTHERS;

use crate::{
    config::NodeLimits,
    http::refusal::{BadRequest, Failure},
};

/// Bytes that are set aside for a body before any of it came; a longer one makes its room as it comes.
const ROOM: usize = 16 << 10;

/// How many bytes of bodies are held, and how many may be.
struct Meter {
    held: AtomicUsize,
    limit: AtomicUsize,
}

/// The bytes of bodies that each tenant and the node hold.
pub(crate) struct Bodies {
    node: Arc<Meter>,
    tenants: HashMap<String, Arc<Meter>>,
}

/// A body that was received. What it holds is given back when it is dropped.
pub(crate) struct Body {
    /// All of it.
    pub bytes: Bytes,
    _held: Held,
}

/// Bytes held against both meters.
struct Held {
    node: Arc<Meter>,
    tenant: Option<Arc<Meter>>,
    bytes: usize,
}

// === impl Meter ===

impl Meter {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
        })
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.held.load(Ordering::Relaxed).saturating_add(bytes) <= self.limit()
    }

    fn take(&self, bytes: usize) -> bool {
        let limit = self.limit();
        let more = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= limit);
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// === impl Bodies ===

impl Bodies {
    /// `tenants` are those with a bound of their own. What was held `before` still is.
    pub(crate) fn new(
        limits: &NodeLimits,
        tenants: impl IntoIterator<Item = String>,
        before: Option<&Self>,
    ) -> Self {
        let limited = |meter: Option<Arc<Meter>>, limit: usize| {
            let meter = meter.unwrap_or_else(|| Meter::new(limit));
            meter.limit.store(limit, Ordering::Relaxed);
            meter
        };
        let tenants = tenants.into_iter().chain([OTHERS.to_owned()]);
        let tenants = tenants.map(|tenant| {
            let known = before.and_then(|before| before.tenants.get(&tenant).cloned());
            (tenant, limited(known, limits.max_bodies_per_tenant))
        });
        Self {
            node: limited(before.map(|before| before.node.clone()), limits.max_bodies),
            tenants: tenants.collect(),
        }
    }

    fn hold(&self, tenant: &str) -> Held {
        Held {
            node: self.node.clone(),
            tenant: self.tenants.get(tenant).cloned(),
            bytes: 0,
        }
    }
}

// === impl Held ===

impl Held {
    fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        if let Some(tenant) = &self.tenant
            && !tenant.take(bytes)
        {
            return Err(Failure::BodiesFull {
                limit: tenant.limit(),
            });
        }
        if !self.node.take(bytes) {
            if let Some(tenant) = &self.tenant {
                tenant.give_back(bytes);
            }
            return Err(Failure::NodeFull);
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Refuses what can't fit now, before any of it is read.
    fn check(&self, announced: usize) -> Result<(), Failure> {
        match &self.tenant {
            Some(tenant) if !tenant.has_room(announced) => Err(Failure::BodiesFull {
                limit: tenant.limit(),
            }),
            _ if !self.node.has_room(announced) => Err(Failure::NodeFull),
            _ => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.node.give_back(self.bytes);
        if let Some(tenant) = &self.tenant {
            tenant.give_back(self.bytes);
        }
    }
}

// === impl Body ===

impl Body {
    /// Receives the body of a request of this tenant, by its label.
    ///
    /// # Errors
    /// When it is no JSON, too large, too slow, or more than may be held.
    pub(crate) async fn receive(
        request: &HttpRequest,
        payload: web::Payload,
        (bodies, limits): (&Bodies, &NodeLimits),
        tenant: &str,
    ) -> Result<Self, Failure> {
        require_json(request)?;
        let mut held = bodies.hold(tenant);
        let announced = header(request, header::CONTENT_LENGTH);
        let announced = announced
            .and_then(|length| length.parse().ok())
            .unwrap_or(0);
        let limit = limits.max_body;
        if announced > limit {
            return Err(Failure::TooLarge { limit });
        }
        held.check(announced)?;
        let room = announced.min(ROOM);
        let read = read(payload, (room, limit), &mut held);
        let bytes = tokio::time::timeout(limits.body_timeout, read)
            .await
            .unwrap_or(Err(Failure::SlowBody))?;
        Ok(Self { bytes, _held: held })
    }
}

async fn read(
    mut payload: web::Payload,
    (room, limit): (usize, usize),
    held: &mut Held,
) -> Result<Bytes, Failure> {
    let mut body = BytesMut::with_capacity(room);
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| BadRequest::new("the request body broke off"))?;
        if body.len() + chunk.len() > limit {
            return Err(Failure::TooLarge { limit });
        }
        held.grow(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn header(request: &HttpRequest, name: header::HeaderName) -> Option<&str> {
    request.headers().get(name)?.to_str().ok()
}

/// A browser page of another site can send anything but this content type without asking first,
/// so requiring it keeps such pages out. Compressed bodies are not unpacked.
pub(crate) fn require_json(request: &HttpRequest) -> Result<(), Failure> {
    let media = header(request, header::CONTENT_TYPE).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    let is_json = media.eq_ignore_ascii_case("application/json");
    let coding = header(request, header::CONTENT_ENCODING);
    if is_json && coding.is_none_or(|coding| coding.trim().eq_ignore_ascii_case("identity")) {
        Ok(())
    } else {
        Err(Failure::NotJson)
    }
}
