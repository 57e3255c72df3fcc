//! The router: knows who is there and forwards. It decides nothing about a request but whether
//! its model exists.

use std::{collections::HashMap, sync::Arc};

use actix::{Actor, Addr, AsyncContext, Context, Handler, MessageResult};
use kvwarden_policy::{ModelId, TenantId};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    Gpu, Ledger, Model, PULSE, Refusal, Tenant, Vitals,
    protocol::{
        Addresses, Admit, Demand, Drain, Enqueue, Grant, Locate, Operate, Pulse, Reclaim, Reserve,
        Reserved, Resign, Retire, Roster, Snapshot,
    },
    tenant,
};

/// A model as the router knows it.
pub struct ModelEntry {
    /// Canonical name.
    pub id: ModelId,
    /// Every name that routes to it, the canonical one included.
    pub names: Vec<String>,
    /// Names of its engines.
    pub engines: Vec<ModelId>,
    /// Its actor.
    pub addr: Addr<Model>,
}

/// How tenants that the configuration does not name are treated.
#[derive(Clone, Debug)]
pub struct Unnamed {
    /// What each may use.
    pub limits: tenant::Limits,
    /// How many may exist at once; what comes on top shares the tenant [`OTHERS`].
    pub at_most: usize,
    /// Who keeps what they use.
    pub ledger: Arc<dyn Ledger>,
}

/// The tenant of all unnamed tenants beyond [`Unnamed::at_most`].
pub const OTHERS: &str = "_other";

/// The directory of tenants and models.
pub struct Router {
    tenants: HashMap<TenantId, Addr<Tenant>>,
    named: usize,
    unnamed: Unnamed,
    names: HashMap<String, usize>,
    models: Vec<ModelEntry>,
    gpu: Addr<Gpu>,
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
    pub fn new(gpu: Addr<Gpu>, unnamed: Unnamed) -> Self {
        Self {
            tenants: HashMap::new(),
            named: 0,
            unnamed,
            names: HashMap::new(),
            models: Vec::new(),
            gpu,
            is_draining: false,
            vitals: Vitals::default(),
        }
    }

    /// Makes a model known under all its names.
    pub fn add_model(&mut self, entry: ModelEntry) {
        let index = self.models.len();
        self.names
            .extend(entry.names.iter().map(|name| (name.clone(), index)));
        self.models.push(entry);
    }

    /// Makes a tenant known that the configuration names.
    pub fn add_tenant(&mut self, id: TenantId, tenant: Addr<Tenant>) {
        self.tenants.insert(id, tenant);
        self.named += 1;
    }

    fn tenant(&mut self, id: &TenantId, ctx: &Context<Self>) -> Addr<Tenant> {
        if let Some(known) = self.tenants.get(id) {
            return known.clone();
        }
        let is_crowded = self.tenants.len() - self.named >= self.unnamed.at_most;
        let id = if is_crowded {
            TenantId::from(OTHERS)
        } else {
            id.clone()
        };
        let router = ctx.address().downgrade();
        let Unnamed { limits, ledger, .. } = &self.unnamed;
        let tenant = self.tenants.entry(id).or_insert_with_key(|id| {
            Tenant::unnamed(id.clone(), limits.clone(), router, ledger.clone()).start()
        });
        tenant.clone()
    }

    fn owner(&self, engine: &ModelId) -> Option<&Addr<Model>> {
        let mut models = self.models.iter();
        let owner = models.find(|model| model.engines.contains(engine))?;
        Some(&owner.addr)
    }

    fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.names
            .get(name)
            .and_then(|index| self.models.get(*index))
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
        ticket.model = model.id.to_string();
        self.tenant(&ticket.tenant, ctx).do_send(Reserve(ticket));
    }
}

impl Handler<Reserved> for Router {
    type Result = ();

    fn handle(&mut self, Reserved(ticket): Reserved, _: &mut Context<Self>) {
        self.vitals.handled();
        match self.model(&ticket.model) {
            Some(model) => model.addr.do_send(Enqueue(ticket)),
            None => {
                let name = ticket.model.clone();
                ticket.refuse(Refusal::UnknownModel(name));
            }
        }
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

impl Handler<Operate> for Router {
    type Result = ();

    fn handle(&mut self, operate: Operate, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(model) = self.model(operate.model.as_str()) {
            model.addr.do_send(operate);
        }
    }
}

impl Handler<Retire> for Router {
    type Result = ();

    fn handle(&mut self, Retire(id): Retire, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(tenant) = self.tenants.remove(&id) {
            // Behind every ticket already sent there, so that none is lost.
            tenant.do_send(Retire(id));
        }
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

impl Handler<Roster> for Router {
    type Result = MessageResult<Roster>;

    fn handle(&mut self, _: Roster, _: &mut Context<Self>) -> Self::Result {
        self.vitals.handled();
        MessageResult(Addresses {
            tenants: self.tenants.values().cloned().collect(),
            models: self.models.iter().map(|model| model.addr.clone()).collect(),
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
