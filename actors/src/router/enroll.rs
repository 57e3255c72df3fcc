//! Who is there, as the configuration says: at the start, and whenever it is read again.
//!
//! Both are the same message, and what is there already goes on with what it has: a tenant with what
//! it used, a model with who waits for it and with its engines.

use std::{collections::HashMap, mem};

use actix::{Actor as _, AsyncContext as _, Context, Handler};
use kvwarden_policy::TenantId;

use super::{ModelEntry, Router, Unnamed};
use crate::{
    Model, model,
    protocol::{Adjust, Enroll, Entitle, Leave, Reshare},
    tenant::{Entitlement, Limits},
};

impl Router {
    /// What a tenant may use.
    pub(super) fn entitlement(&self, id: &TenantId) -> Entitlement {
        let named = self.named.get(id);
        Entitlement {
            limits: named.unwrap_or(&self.unnamed.limits).clone(),
            is_named: named.is_some(),
        }
    }

    /// One that is not named any more is a stranger from now on, and forgotten like one.
    fn enroll_tenants(
        &mut self,
        named: Vec<(TenantId, Limits)>,
        unnamed: Unnamed,
        ctx: &Context<Self>,
    ) {
        let here = self.tenants.keys();
        let before: Vec<_> = here.map(|id| (id.clone(), self.entitlement(id))).collect();
        let ids: Vec<TenantId> = named.iter().map(|(id, _)| id.clone()).collect();
        self.named = named.into_iter().collect();
        self.unnamed = unnamed;
        for (id, before) in before {
            let entitlement = self.entitlement(&id);
            if entitlement != before {
                self.entitle(id, entitlement);
            }
        }
        for id in ids {
            self.tenant(&id, ctx);
        }
    }

    fn entitle(&self, tenant: TenantId, entitlement: Entitlement) {
        if let Some(actor) = self.tenants.get(&tenant) {
            actor.do_send(Entitle(entitlement.clone()));
        }
        let reshare = Reshare {
            tenant,
            entitlement,
        };
        for model in &self.models {
            model.addr.do_send(reshare.clone());
        }
    }

    /// One that is gone from the configuration gets nobody new, and departs when it is done.
    fn enroll_models(&mut self, wanted: Vec<model::Params>, ctx: &Context<Self>) {
        let before = mem::take(&mut self.models).into_iter();
        let mut before: HashMap<_, _> = before.map(|model| (model.id.clone(), model)).collect();
        for params in wanted {
            let (id, names) = (params.id.clone(), params.names.clone());
            let addr = match before.remove(&id) {
                Some(known) => {
                    known.addr.do_send(Adjust(params));
                    known.addr
                }
                None => Model::new(params, ctx.address().downgrade(), self.gpu.clone()).start(),
            };
            self.models.push(ModelEntry { id, names, addr });
        }
        for mut leaving in before.into_values() {
            leaving.names.clear();
            leaving.addr.do_send(Leave);
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

impl Handler<Enroll> for Router {
    type Result = ();

    fn handle(&mut self, enroll: Enroll, ctx: &mut Context<Self>) {
        self.vitals.handled();
        // Nobody is hired by who is about to close.
        if self.is_draining {
            return;
        }
        self.enroll_tenants(enroll.tenants, enroll.unnamed, ctx);
        self.enroll_models(enroll.models, ctx);
    }
}
