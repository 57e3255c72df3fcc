//! The life of a model's engine: what happened to it, and what is done about that.

use std::sync::Arc;

use actix::{AsyncContext, Context, Handler};
use kvwarden_policy::{
    Generation,
    failure::FailureClass,
    lifecycle::{Effect, Event, State},
};
use tokio::time::Instant;

use super::{Model, audit::Audit};
use crate::{
    Refusal,
    gpu::engine::Endpoint,
    protocol::{Demand, EngineNews, Grant, News, Prepared, Spawn, StartOver, Stop},
};

impl Model {
    /// Tells the lifecycle what happened and does what it says.
    pub(super) fn happen(&mut self, event: Event, ctx: &Context<Self>) {
        let before = self.life.state();
        let effect = self
            .life
            .on(event, Instant::now().into_std(), rand::random());
        if before != self.life.state() {
            tracing::info!(model = %self.params.id, "{}", self.life.state());
        }
        match effect {
            // Nobody sends yet what the last four follow.
            Effect::None | Effect::Drain | Effect::Demote(_) | Effect::Wake(_) | Effect::Verify => {
            }
            Effect::Demand => self.demand(),
            Effect::Spawn(generation) => self.spawn(generation, ctx),
            Effect::Stop => {
                self.endpoint = None;
                self.gpu.do_send(Stop {
                    model: self.params.id.clone(),
                    generation: self.life.generation(),
                });
            }
            Effect::RefuseWaiting => self.refuse_waiting(),
        }
    }

    fn demand(&self) {
        let takes_memory = self.spec.as_ref().is_some_and(|spec| spec.takes_memory());
        if let Some(router) = self.router.upgrade() {
            router.do_send(Demand {
                model: self.params.id.clone(),
                takes_memory,
            });
        }
    }

    fn spawn(&mut self, generation: Generation, ctx: &Context<Self>) {
        let Some(spec) = self.spec.clone() else {
            return;
        };
        self.record.spawned();
        self.gpu.do_send(Spawn {
            model: self.params.id.clone(),
            generation,
            spec,
            news: ctx.address().downgrade().recipient(),
        });
    }

    pub(super) fn broken(&self) -> Refusal {
        let class = match self.life.state() {
            State::Broken { class } | State::Backoff { class, .. } => class,
            State::Fetching
            | State::Cold
            | State::Waiting { .. }
            | State::Starting { .. }
            | State::Ready
            | State::Draining { .. }
            | State::Demoting { .. }
            | State::Asleep { .. }
            | State::Waking { .. }
            | State::Verifying { .. }
            | State::Stopping => FailureClass::Stopped,
        };
        let now = Instant::now().into_std();
        let retry_after = self
            .life
            .retry_at()
            .map(|at| at.saturating_duration_since(now));
        Refusal::Broken { class, retry_after }
    }

    fn ended(&mut self, class: FailureClass, reason: String, log_tail: Vec<String>) {
        self.endpoint = None;
        self.audit = None;
        self.engine_waiting = None;
        self.record.gone();
        if !matches!(self.life.state(), State::Stopping) {
            tracing::warn!(model = %self.params.id, ?class, reason, "engine ended");
            self.record.failed(reason, log_tail);
        }
    }

    fn ready(&mut self, endpoint: Arc<Endpoint>, ctx: &Context<Self>) {
        self.record.started();
        self.audit = Some(Audit::of(endpoint.clone(), ctx.address().downgrade()));
        self.endpoint = Some(endpoint);
    }
}

impl Handler<Prepared> for Model {
    type Result = ();

    fn handle(&mut self, prepared: Prepared, ctx: &mut Context<Self>) {
        self.vitals.handled();
        match prepared {
            Prepared::Step(step) => self.record.note = Some(step),
            Prepared::Failed(reason) => {
                self.record.note = Some(reason);
                self.happen(Event::FetchFailed(FailureClass::NotInstalled), ctx);
            }
            Prepared::Done(spec) => {
                self.record.note = None;
                self.spec = Some(spec);
                self.happen(Event::Fetched, ctx);
                let is_wanted = self.params.autostart || self.queue.total().waiting > 0;
                if is_wanted && self.drain.is_none() {
                    self.happen(Event::Wanted, ctx);
                }
            }
        }
    }
}

impl Handler<Grant> for Model {
    type Result = ();

    fn handle(&mut self, Grant { model }: Grant, ctx: &mut Context<Self>) {
        self.vitals.handled();
        if !matches!(self.life.state(), State::Waiting { .. }) {
            // It changed its mind while it waited for the place.
            return self.gpu.do_send(StartOver { model });
        }
        self.happen(Event::Granted, ctx);
    }
}

impl Handler<EngineNews> for Model {
    type Result = ();

    fn handle(&mut self, news: EngineNews, ctx: &mut Context<Self>) {
        self.vitals.handled();
        if news.generation != self.life.generation() {
            self.record.stale += 1;
            return;
        }
        match news.what {
            News::Progressed { phase, pid } => {
                self.record.progressed(pid);
                self.happen(Event::Progressed(phase), ctx);
            }
            News::Ready(endpoint) => {
                self.ready(endpoint, ctx);
                self.happen(Event::Verified, ctx);
                self.dispatch(ctx);
            }
            News::Exited {
                class,
                reason,
                log_tail,
            } => {
                self.ended(class, reason, log_tail);
                self.happen(Event::Exited(class), ctx);
            }
        }
    }
}
