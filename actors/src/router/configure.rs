//! Who is there, as the configuration says: at the start, and whenever it is read again.
//!
//! Both are the same message, and what is there already goes on with what it has: a tenant with what
//! it used, a model with who waits for it and with its engines.

use std::{collections::HashMap, mem};

use actix::{Actor as _, AsyncContext as _, Context, Handler};
use kvwarden_policy::TenantId;

use super::{ModelEntry, Router, Unnamed};
use crate::{
    Model,
    model::{self, Peers},
    protocol::{Configure, Reconfigure, Remove, SetLimits, UpdateShare},
    tenant::{Limits, Params},
};

impl Router {
    /// What a tenant may use.
    pub(super) fn tenant_params(&self, id: &TenantId) -> Params {
        let named = self.named.get(id);
        Params {
            limits: named.unwrap_or(&self.unnamed.limits).clone(),
            is_named: named.is_some(),
        }
    }

    /// One that is not named any more is a stranger from now on, and forgotten like one.
    fn configure_tenants(
        &mut self,
        named: Vec<(TenantId, Limits)>,
        unnamed: Unnamed,
        ctx: &Context<Self>,
    ) {
        let here = self.tenants.keys();
        let before: Vec<_> = here
            .map(|id| (id.clone(), self.tenant_params(id)))
            .collect();
        let ids: Vec<TenantId> = named.iter().map(|(id, _)| id.clone()).collect();
        self.named = named.into_iter().collect();
        self.unnamed = unnamed;
        for (id, before) in before {
            let params = self.tenant_params(&id);
            if params != before {
                self.set_limits(id, params);
            }
        }
        for id in ids {
            self.tenant(&id, ctx);
        }
    }

    fn set_limits(&self, tenant: TenantId, params: Params) {
        if let Some(actor) = self.tenants.get(&tenant) {
            actor.do_send(SetLimits(params.clone()));
        }
        let update = UpdateShare { tenant, params };
        for model in &self.models {
            model.addr.do_send(update.clone());
        }
    }

    /// One that is gone from the configuration gets nobody new, and is removed when it is done.
    fn configure_models(&mut self, wanted: Vec<model::Params>, ctx: &Context<Self>) {
        let before = mem::take(&mut self.models).into_iter();
        let mut before: HashMap<_, _> = before.map(|model| (model.id.clone(), model)).collect();
        for params in wanted {
            let (id, names) = (params.id.clone(), params.names.clone());
            let addr = match before.remove(&id) {
                Some(known) => {
                    known.addr.do_send(Reconfigure(params));
                    known.addr
                }
                None => {
                    let peers = Peers::new(&ctx.address().downgrade(), &self.gpu);
                    Model::new(params, peers).start()
                }
            };
            self.models.push(ModelEntry { id, names, addr });
        }
        for mut leaving in before.into_values() {
            leaving.names.clear();
            leaving.addr.do_send(Remove);
            self.models.push(leaving);
        }
        self.index();
    }

    /// Names lead to those who have them now.
    pub(super) fn index(&mut self) {
        let models = self.models.iter().enumerate();
        let names = models.flat_map(|(at, model)| {
            let names = model.names.iter();
            names.map(move |name| (name.clone(), at))
        });
        self.names = names.collect();
    }
}

impl Handler<Configure> for Router {
    type Result = ();

    fn handle(&mut self, configuration: Configure, ctx: &mut Context<Self>) {
        self.vitals.handled();
        // A router that drains starts no tenant and no model.
        if self.is_draining {
            return;
        }
        self.configure_tenants(configuration.tenants, configuration.unnamed, ctx);
        self.configure_models(configuration.models, ctx);
    }
}
