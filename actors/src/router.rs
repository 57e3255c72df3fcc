//! The router: knows who is there and forwards. It decides nothing about a request but whether
//! its model exists. Who is there at all is said by the configuration ([`configure`]).

mod configure;

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, MessageResult};
use kvwarden_policy::{ModelId, TenantId};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    Gpu, Ledger, Model, PULSE, Refusal, Tenant, Vitals,
    protocol::{
        Addresses, Admit, Demand, Drain, Expire, Grant, ListActors, Locate, Pulse, Reclaim,
        Removed, Reserve, Resign, SetTarget, Snapshot,
    },
    tenant,
};

/// A model as the router knows it.
struct ModelEntry {
    id: ModelId,
    /// Every name that routes to it, the canonical one included; none once it leaves.
    names: Vec<String>,
    addr: Addr<Model>,
}

/// How tenants that the configuration does not name are treated.
#[derive(Clone, Debug, Default)]
pub struct Unnamed {
    /// What each may use.
    pub limits: tenant::Limits,
    /// How many may exist at once; what comes on top shares the tenant [`OTHERS`].
    pub at_most: usize,
}

/// The tenant of all unnamed tenants beyond [`Unnamed::at_most`].
pub const OTHERS: &str = "_other";

/// The same, for who needs it with every request.
pub(crate) static SHARED_OTHERS: LazyLock<Arc<str>> = LazyLock::new(|| OTHERS.into());

/// The directory of tenants and models.
pub struct Router {
    tenants: HashMap<TenantId, Addr<Tenant>>,
    named: HashMap<TenantId, tenant::Limits>,
    unnamed: Unnamed,
    names: HashMap<String, usize>,
    models: Vec<ModelEntry>,
    gpu: Addr<Gpu>,
    /// Who keeps what tenants use.
    ledger: Arc<dyn Ledger>,
    is_draining: bool,
    vitals: Vitals,
}

/// The router's observable state.
#[derive(Clone, Debug, Serialize)]
pub struct RouterState {
    /// Tenants that exist.
    pub tenants: usize,
    /// Models that exist.
    pub models: usize,
    /// Nobody new is let in.
    pub is_draining: bool,
    /// How busy it is.
    pub vitals: Vitals,
}

// === impl Router ===

impl Router {
    /// A router in front of `gpu` that knows nobody yet.
    #[must_use]
    pub fn new(gpu: Addr<Gpu>, ledger: Arc<dyn Ledger>) -> Self {
        Self {
            tenants: HashMap::new(),
            named: HashMap::new(),
            unnamed: Unnamed::default(),
            names: HashMap::new(),
            models: Vec::new(),
            gpu,
            ledger,
            is_draining: false,
            vitals: Vitals::default(),
        }
    }

    fn tenant(&mut self, id: &TenantId, ctx: &Context<Self>) -> Addr<Tenant> {
        if let Some(known) = self.tenants.get(id) {
            return known.clone();
        }
        let unnamed = self.tenants.len().saturating_sub(self.named.len());
        let has_place = self.named.contains_key(id) || unnamed < self.unnamed.at_most;
        let id = if has_place {
            id.clone()
        } else {
            TenantId::from(OTHERS)
        };
        let params = self.tenant_params(&id);
        let router = ctx.address().downgrade();
        let ledger = self.ledger.clone();
        let tenant = self
            .tenants
            .entry(id)
            .or_insert_with_key(|id| Tenant::new(id.clone(), params, router, ledger).start());
        tenant.clone()
    }

    /// An engine's name begins with its model's, in which no `#` can be.
    fn owner(&self, engine: &ModelId) -> Option<&Addr<Model>> {
        let engine = engine.as_str();
        let owner = engine.split_once('#').map_or(engine, |(owner, _)| owner);
        Some(&self.entry(owner)?.addr)
    }

    /// The model of this name, if it takes requests.
    fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.names
            .get(name)
            .and_then(|index| self.models.get(*index))
    }

    /// The model of this canonical name, even if it is leaving.
    fn entry(&self, id: &str) -> Option<&ModelEntry> {
        self.models.iter().find(|model| model.id.as_str() == id)
    }
}

impl Actor for Router {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(PULSE, |_, ctx| ctx.address().do_send(Pulse(Instant::now())));
    }
}

impl Handler<Admit> for Router {
    type Result = ();

    fn handle(&mut self, Admit(mut ticket): Admit, ctx: &mut Context<Self>) {
        self.vitals.handled();
        if self.is_draining {
            return ticket.refuse(Refusal::Draining);
        }
        let Some(model) = self.model(&ticket.model) else {
            let name = std::mem::take(&mut ticket.model);
            return ticket.refuse(Refusal::UnknownModel(name));
        };
        if ticket.model != model.id.as_str() {
            ticket.model = model.id.to_string();
        }
        let model = model.addr.clone();
        let tenant = self.tenant(&ticket.tenant, ctx);
        tenant.do_send(Reserve { ticket, model });
    }
}

impl Handler<Demand> for Router {
    type Result = ();

    fn handle(&mut self, demand: Demand, _: &mut Context<Self>) {
        self.vitals.handled();
        self.gpu.do_send(demand);
    }
}

impl Handler<Grant> for Router {
    type Result = ();

    fn handle(&mut self, grant: Grant, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(model) = self.owner(&grant.engine) {
            model.do_send(grant);
        }
    }
}

impl Handler<Reclaim> for Router {
    type Result = ();

    fn handle(&mut self, reclaim: Reclaim, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(model) = self.owner(&reclaim.engine) {
            model.do_send(reclaim);
        }
    }
}

impl Handler<SetTarget> for Router {
    type Result = ();

    fn handle(&mut self, order: SetTarget, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(model) = self.model(order.model.as_str()) {
            model.addr.do_send(order);
        }
    }
}

impl Handler<Expire> for Router {
    type Result = ();

    fn handle(&mut self, Expire(id): Expire, _: &mut Context<Self>) {
        self.vitals.handled();
        // It may have got its name since it asked.
        if self.named.contains_key(&id) {
            return;
        }
        if let Some(tenant) = self.tenants.remove(&id) {
            // Behind every ticket already sent there, so that none is lost.
            tenant.do_send(Expire(id));
        }
    }
}

impl Handler<Removed> for Router {
    type Result = ();

    fn handle(&mut self, Removed(id): Removed, _: &mut Context<Self>) {
        self.vitals.handled();
        // It may have come back since it asked.
        let is_gone = |model: &ModelEntry| model.id == id && model.names.is_empty();
        let Some(at) = self.models.iter().position(is_gone) else {
            return;
        };
        self.models.remove(at).addr.do_send(Removed(id));
        self.index();
    }
}

impl Handler<Drain> for Router {
    type Result = ();

    fn handle(&mut self, drain: Drain, _: &mut Context<Self>) {
        self.vitals.handled();
        self.is_draining = true;
        for model in &self.models {
            model.addr.do_send(drain);
        }
    }
}

impl Handler<Resign> for Router {
    type Result = ();

    fn handle(&mut self, resign: Resign, _: &mut Context<Self>) {
        self.vitals.handled();
        for model in &self.models {
            model.addr.do_send(resign);
        }
    }
}

impl Handler<ListActors> for Router {
    type Result = MessageResult<ListActors>;

    fn handle(&mut self, _: ListActors, _: &mut Context<Self>) -> Self::Result {
        self.vitals.handled();
        let (tenants, models) = (self.tenants.iter(), self.models.iter());
        MessageResult(Addresses {
            tenants: tenants
                .map(|(id, addr)| (id.clone(), addr.clone()))
                .collect(),
            models: models
                .map(|model| (model.id.clone(), model.addr.clone()))
                .collect(),
            gpu: self.gpu.clone(),
        })
    }
}

impl Handler<Locate> for Router {
    type Result = Option<Addr<Model>>;

    fn handle(&mut self, Locate(name): Locate, _: &mut Context<Self>) -> Self::Result {
        self.vitals.handled();
        self.model(&name).map(|model| model.addr.clone())
    }
}

impl Handler<Pulse> for Router {
    type Result = ();

    fn handle(&mut self, Pulse(sent): Pulse, _: &mut Context<Self>) {
        self.vitals.pulse(sent);
    }
}

impl Handler<Snapshot<RouterState>> for Router {
    type Result = MessageResult<Snapshot<RouterState>>;

    fn handle(&mut self, _: Snapshot<RouterState>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(RouterState {
            tenants: self.tenants.len(),
            models: self.models.len(),
            is_draining: self.is_draining,
            vitals: self.vitals,
        })
    }
}
