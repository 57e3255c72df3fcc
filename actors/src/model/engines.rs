//! The lives of a model's engines: what happened to them, and what is done about that.

use std::sync::Arc;

use actix::{AsyncContext, Context, Handler};
use kvwarden_policy::{
    Generation, ModelId,
    backoff::DOWNLOAD_AGAIN,
    failure::FailureClass,
    lifecycle::{Effect, Event, SleepLevel, State},
    residency::Needs,
    stall::Stall,
};
use tokio::time::Instant;

use super::{Model, metrics::MetricsPoller, replica::Replica};
use crate::{
    Refusal,
    engine::{Endpoint, EngineEnd, News, Order, Transition},
    protocol::{
        EngineNews, Grant, Preparation, Prepared, Reclaim, Register, SetTarget, Signal, Spawn,
        Target,
    },
};

impl Model {
    /// Tells an engine's lifecycle what happened and does what it says.
    pub(super) fn apply(&mut self, at: usize, event: Event, ctx: &Context<Self>) {
        let replica = &mut self.replicas[at];
        let before = replica.life.state();
        let now = Instant::now().into_std();
        let effect = replica.life.on(event, now, rand::random());
        let after = replica.life.state();
        replica.is_early &= after.serves_soon();
        if before != after {
            tracing::info!(engine = %replica.engine, "{after}");
            self.params.observer.became(&replica.engine, after);
            self.resize_queue();
        }
        match effect {
            Effect::None | Effect::Demand => {}
            Effect::Spawn(generation) => {
                self.replicas[at].record.spawned();
                self.spawn(at, generation, ctx);
            }
            Effect::Adopt(generation) => self.spawn(at, generation, ctx),
            Effect::Drain => self.drained(at, ctx),
            Effect::Demote(to) => {
                let from = before.level().unwrap_or(SleepLevel::Ready);
                self.signal(at, Order::Change(Transition::Demote { from, to }));
            }
            Effect::Wake(from) => self.signal(at, Order::Change(Transition::Wake { from })),
            Effect::Verify => self.signal(at, Order::Change(Transition::Verify)),
            Effect::Stop => self.signal(at, Order::Stop),
            Effect::RefuseWaiting => self.refuse_waiting(),
        }
        if before != after {
            self.demand(at);
        }
    }

    /// Every engine that is ready takes part in what the queue hands out.
    pub(super) fn resize_queue(&mut self) {
        let serving = self.replicas.iter();
        let serving = serving.filter(|replica| replica.life.state().admits());
        self.queue
            .serve_with(serving.count(), &self.params.scheduling);
    }

    fn spawn(&mut self, at: usize, generation: Generation, ctx: &Context<Self>) {
        let replica = &mut self.replicas[at];
        let Some((revision, spec)) = replica.spec.clone() else {
            return;
        };
        replica.started = Some(revision);
        self.peers.spawn.do_send(Spawn {
            engine: replica.engine.clone(),
            generation,
            spec,
            devices: replica.devices.clone(),
            news: ctx.address().downgrade().recipient(),
        });
    }

    pub(super) fn signal(&self, at: usize, what: Order) {
        let replica = &self.replicas[at];
        self.peers.signal.do_send(Signal {
            engine: replica.engine.clone(),
            generation: replica.generation(),
            what,
        });
    }

    /// A draining engine on which nothing runs is drained.
    pub(super) fn drained(&mut self, at: usize, ctx: &Context<Self>) {
        let replica = &self.replicas[at];
        if matches!(replica.life.state(), State::Draining { .. }) && replica.occupancy.running == 0
        {
            self.apply(at, Event::Drained, ctx);
        }
    }

    /// Somebody wants the model: its first engine that can be had shall serve. Further ones start
    /// with the server, and again with an operator.
    pub(super) fn want(&mut self, ctx: &Context<Self>) {
        let serves_soon = |replica: &Replica| replica.life.state().serves_soon();
        if self.replicas.iter().any(serves_soon) {
            return;
        }
        let can_rise = |state: State| matches!(state, State::Cold | State::Asleep { .. });
        let shallow = |at: &usize| self.replicas[*at].life.state().level();
        let first = (0..self.replicas.len())
            .filter(|at| !self.replicas[*at].is_leaving)
            .filter(|at| can_rise(self.replicas[*at].life.state()))
            .min_by_key(shallow);
        if let Some(at) = first {
            self.apply(at, Event::Wanted, ctx);
        }
    }

    /// No engine of the model can be brought to life.
    pub(super) fn is_broken(&self) -> bool {
        let mut states = self.replicas.iter().map(|replica| replica.life.state());
        states.all(|state| matches!(state, State::Broken { .. }))
    }

    pub(super) fn broken(&self) -> Refusal {
        let now = Instant::now().into_std();
        let lives = || self.replicas.iter().map(|replica| &replica.life);
        let class = lives().find_map(|life| life.state().failure());
        let class = class.unwrap_or(FailureClass::Stopped);
        let retry_at = lives().filter_map(|life| life.retry_at()).min();
        let is_fetched_again = class == FailureClass::Download;
        Refusal::Broken {
            class,
            retry_after: retry_at
                .map(|at| at.saturating_duration_since(now))
                .or(is_fetched_again.then_some(DOWNLOAD_AGAIN)),
        }
    }

    /// The engine that news is about, unless it is about an earlier start of it.
    pub(super) fn current(&mut self, engine: &ModelId, generation: Generation) -> Option<usize> {
        let at = self.replica(engine)?;
        let replica = &mut self.replicas[at];
        let is_current = generation == replica.generation();
        replica.record.stale += u64::from(!is_current);
        is_current.then_some(at)
    }

    fn replica(&self, engine: &ModelId) -> Option<usize> {
        self.replicas
            .iter()
            .position(|replica| replica.engine == *engine)
    }

    fn on_exited(&mut self, at: usize, end: EngineEnd) {
        let replica = &mut self.replicas[at];
        replica.endpoint = None;
        replica.poller = None;
        replica.waiting = None;
        replica.signs.work = None;
        replica.stall = Stall::default();
        replica.record.gone();
        let EngineEnd { class, reason, .. } = &end;
        if replica.life.state() == State::Adopting {
            tracing::info!(engine = %replica.engine, reason, "not adopted");
        } else if replica.life.state() != State::Stopping {
            tracing::warn!(engine = %replica.engine, ?class, reason, "engine ended");
            replica.record.failed(end);
        }
    }

    /// What an engine could not do. It is stopped, and started when it is wanted.
    fn transition_failed(&mut self, at: usize, event: Event, reason: String, ctx: &Context<Self>) {
        let replica = &mut self.replicas[at];
        tracing::warn!(engine = %replica.engine, reason, "{}", replica.life.state());
        replica.record.note = Some(reason);
        self.apply(at, event, ctx);
    }
}

impl Handler<Prepared> for Model {
    type Result = ();

    fn handle(&mut self, prepared: Prepared, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let Some(at) = self.replica(&prepared.engine) else {
            return;
        };
        let replica = &mut self.replicas[at];
        if replica.revision != prepared.revision {
            replica.record.stale += 1;
            return;
        }
        match prepared.how {
            Preparation::Step(step) => replica.record.note = Some(step),
            Preparation::Failed { class, reason } => {
                replica.record.note = Some(reason);
                self.apply(at, Event::FetchFailed(class), ctx);
            }
            Preparation::Done(spec) => {
                replica.record.note = None;
                let needs = Needs {
                    costs: replica.costs,
                    ..spec.needs()
                };
                let before = replica.life.state();
                let is_new = matches!(before, State::Fetching | State::Broken { .. });
                replica.set_spec(spec);
                let engine = replica.engine.clone();
                self.peers.register.do_send(Register { engine, needs });
                self.apply(at, Event::Pin(self.is_pinned), ctx);
                self.apply(at, Event::Fetched, ctx);
                let has_target = self.replicas[at].target.is_some();
                let is_ending = self.drain.is_some() || self.is_leaving;
                let may_start = is_new && !has_target && !is_ending;
                if self.params.autostart && may_start {
                    self.apply(at, Event::Wanted, ctx);
                }
            }
        }
    }
}

impl Handler<Grant> for Model {
    type Result = ();

    fn handle(&mut self, grant: Grant, ctx: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(at) = self.replica(&grant.engine) {
            self.replicas[at].devices = grant.devices;
            // The order is followed only once it starts: that it waits, said under this order, would
            // read as that it did not take the place.
            if grant.is_prefetch && self.may_prefetch(at) {
                self.apply(at, Event::Wanted, ctx);
                self.replicas[at].record.prefetches += 1;
                self.replicas[at].is_early = true;
            }
            self.replicas[at].order = grant.order;
            let event = grant.inherited.map_or(Event::Granted, Event::Inherited);
            self.apply(at, event, ctx);
            self.demand(at);
        }
    }
}

impl Handler<Reclaim> for Model {
    type Result = ();

    fn handle(&mut self, Reclaim { engine, order, to }: Reclaim, ctx: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(at) = self.replica(&engine) {
            let is_at_rest = |replica: &Replica| replica.life.state().level().is_some();
            let rested = is_at_rest(&self.replicas[at]);
            self.replicas[at].order = order;
            self.apply(at, Event::Reclaim { to }, ctx);
            if rested && !is_at_rest(&self.replicas[at]) {
                self.replicas[at].record.reclaimed += 1;
            }
            self.demand(at);
        }
    }
}

impl Handler<SetTarget> for Model {
    type Result = ();

    fn handle(&mut self, SetTarget { target, .. }: SetTarget, ctx: &mut Context<Self>) {
        self.vitals.handled();
        if let Target::Pin(is_pinned) = target {
            return self.pin(is_pinned, ctx);
        }
        let now = Instant::now();
        self.is_put_away = matches!(target, Target::Sleep(_));
        for at in 0..self.replicas.len() {
            self.replicas[at].target = Some((target, now));
            self.replicas[at].is_rolling &= target == Target::Load;
            self.reconcile(at, ctx);
        }
    }
}

impl Handler<EngineNews> for Model {
    type Result = ();

    fn handle(&mut self, news: EngineNews, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let Some(at) = self.current(&news.engine, news.generation) else {
            return;
        };
        let replica = &mut self.replicas[at];
        match news.what {
            News::Progressed { phase, pid } => {
                replica.record.progressed(pid);
                self.apply(at, Event::Progressed(phase), ctx);
            }
            News::Restored(kept) => replica.record.restored = kept,
            News::Saved(kept) => replica.record.saved = kept,
            News::Ready(endpoint) => {
                self.on_endpoint(at, endpoint, ctx);
                self.on_verified(at, ctx);
            }
            News::FoundAsleep { level, endpoint } => {
                self.on_endpoint(at, endpoint, ctx);
                self.apply(at, Event::FoundAsleep(level), ctx);
            }
            News::Demoted => self.apply(at, Event::Demoted, ctx),
            News::Proved => replica.signs.progress += 1,
            News::Woken => self.apply(at, Event::Woken, ctx),
            News::Verified => self.on_verified(at, ctx),
            News::DemoteFailed { reason } => {
                self.transition_failed(at, Event::DemoteFailed, reason, ctx);
            }
            News::WakeFailed { reason } => {
                self.transition_failed(at, Event::WakeFailed, reason, ctx);
            }
            News::VerifyFailed { reason } => {
                self.transition_failed(at, Event::VerifyFailed, reason, ctx);
            }
            News::Exited(end) => {
                let class = end.class;
                self.on_exited(at, end);
                self.apply(at, Event::Exited(class), ctx);
            }
        }
        // A target that is reached must not be repeated once somebody wants something else.
        self.reconcile(at, ctx);
    }
}

impl Model {
    /// Repeats an operator's newest target until it is reached: an engine that starts or wakes can't
    /// sleep, and one that is on its way down can't serve. A model that drains has none.
    pub(super) fn reconcile(&mut self, at: usize, ctx: &Context<Self>) {
        let target = self.replicas[at].target;
        let Some((target, _)) = target.filter(|_| self.drain.is_none()) else {
            return;
        };
        match target {
            Target::Load => self.apply(at, Event::Wanted, ctx),
            Target::Sleep(to) => self.apply(at, Event::Sleep { to }, ctx),
            Target::Pin(is_pinned) => self.apply(at, Event::Pin(is_pinned), ctx),
        }
        let replica = &mut self.replicas[at];
        if target.is_reached_by(replica.life.state()) {
            replica.target = None;
        }
    }

    /// An engine is there, asleep or not.
    fn on_endpoint(&mut self, at: usize, endpoint: Arc<Endpoint>, ctx: &Context<Self>) {
        let replica = &mut self.replicas[at];
        replica.record.started();
        replica.life.supports(endpoint.levels);
        replica.poller = Some(MetricsPoller::start(
            endpoint.clone(),
            ctx.address().downgrade(),
        ));
        replica.endpoint = Some(endpoint);
    }

    /// An engine has proved that it serves.
    fn on_verified(&mut self, at: usize, ctx: &Context<Self>) {
        self.replicas[at].is_rolling = false;
        self.apply(at, Event::Verified, ctx);
        self.dispatch(ctx);
    }
}
