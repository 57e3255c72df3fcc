//! A configuration that changes: what a model does about it while it goes on serving.
//!
//! What the queue goes by changes at once. An engine that is to be another one serves until the next
//! is prepared, gives way when nobody runs on it, and requests wait meanwhile.

use actix::{ActorContext as _, Context, Handler};
use kvwarden_policy::lifecycle::Event;
use tokio::time::Instant;

use super::{Model, Params, replica::Replica};
use crate::protocol::{Reconfigure, Remove, Removed, Target, Unregister, UpdateShare};

impl Model {
    /// Takes on engines that are new, and marks those that are gone.
    fn sync_replicas(&mut self) {
        for replica in &mut self.replicas {
            replica.is_leaving = true;
        }
        let pause = self.params.broken_pause;
        for engine in &self.params.engines {
            let is_it = |replica: &&mut Replica| replica.engine == engine.name;
            match self.replicas.iter_mut().find(is_it) {
                Some(replica) => replica.reconfigure(engine, pause),
                None => self.replicas.push(Replica::new(engine, pause)),
            }
        }
    }

    /// Lets an engine give way to the next. One after the other, so that the others serve meanwhile;
    /// if the next one does not come to serve, they stay.
    pub(super) fn roll(&mut self, at: usize, now: Instant, ctx: &Context<Self>) {
        let others = self.replicas.iter().enumerate();
        let mut others = others.filter(|(other, _)| *other != at);
        let replica = &self.replicas[at];
        if self.is_leaving || !replica.is_outdated() || others.any(|(_, other)| other.is_rolling) {
            return;
        }
        let state = replica.life.state();
        if state.serves_soon() || state.has_failed() {
            let replica = &mut self.replicas[at];
            replica.is_rolling = true;
            replica.target.get_or_insert((Target::Load, now));
        }
        self.apply(at, Event::Dismissed, ctx);
    }

    /// Engines that the configuration does not have any more go once nobody runs on them.
    pub(super) fn dismiss(&mut self, ctx: &Context<Self>) {
        for at in (0..self.replicas.len()).rev() {
            let replica = &mut self.replicas[at];
            if !replica.is_leaving {
                continue;
            }
            replica.target = None;
            if replica.life.state().has_engine() || replica.occupancy.running > 0 {
                self.apply(at, Event::Dismissed, ctx);
            } else {
                self.forget(at);
            }
        }
    }

    fn forget(&mut self, at: usize) {
        let gone = self.replicas.remove(at);
        for running in self.running.values_mut() {
            running.moved_up(at);
        }
        self.peers.unregister.do_send(Unregister(gone.engine));
    }

    /// Nothing is left of a model that leaves. Said until the router agrees.
    pub(super) fn report_removed(&self) {
        let mut states = self.replicas.iter().map(|replica| replica.life.state());
        let counts = self.queue.total();
        let is_empty = counts.waiting + counts.running == 0;
        if self.is_leaving
            && is_empty
            && !states.any(|state| state.has_engine())
            && let Some(router) = self.peers.removed.upgrade()
        {
            router.do_send(Removed(self.params.id.clone()));
        }
    }

    /// Those that are still being fetched hear of it when they are there.
    pub(super) fn pin(&mut self, is_pinned: bool, ctx: &Context<Self>) {
        self.is_pinned = is_pinned;
        for at in 0..self.replicas.len() {
            self.apply(at, Event::Pin(is_pinned), ctx);
        }
    }
}

impl Handler<Reconfigure> for Model {
    type Result = ();

    fn handle(&mut self, Reconfigure(params): Reconfigure, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let Params {
            is_pinned,
            autostart,
            ..
        } = std::mem::replace(&mut self.params, params);
        self.is_leaving = false;
        self.queue.adjust(&self.params.scheduling);
        self.sync_replicas();
        self.resize_queue();
        // What an operator said since is not taken back by a file that says the same as before.
        if is_pinned != self.params.is_pinned {
            self.pin(self.params.is_pinned, ctx);
        }
        if self.params.autostart && !autostart {
            for at in 0..self.replicas.len() {
                self.apply(at, Event::Wanted, ctx);
            }
        }
    }
}

impl Handler<UpdateShare> for Model {
    type Result = ();

    fn handle(&mut self, update: UpdateShare, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let UpdateShare { tenant, params } = update;
        self.queue.reshare(&tenant, |ticket| {
            ticket.share = params.share(&ticket.tenant, ticket.hints.tier);
            ticket.share.clone()
        });
        self.dispatch(ctx);
    }
}

impl Handler<Remove> for Model {
    type Result = ();

    fn handle(&mut self, _: Remove, _: &mut Context<Self>) {
        self.vitals.handled();
        self.is_leaving = true;
        for replica in &mut self.replicas {
            replica.target = None;
            replica.is_rolling = false;
        }
    }
}

impl Handler<Removed> for Model {
    type Result = ();

    fn handle(&mut self, _: Removed, ctx: &mut Context<Self>) {
        for replica in &self.replicas {
            let gone = Unregister(replica.engine.clone());
            self.peers.unregister.do_send(gone);
        }
        ctx.stop();
    }
}
