//! One model: who waits for it, who runs on it, and the life of its engine.
//!
//! It never spawns anything. Which request goes next is decided by `policy::scheduling`, what to do
//! about the engine by `policy::lifecycle`; this file only carries messages between the two.

mod state;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, MessageResult, WeakAddr};
use kvwarden_policy::{
    Generation, ModelId,
    cost::PromptEstimator,
    failure::FailureClass,
    lifecycle::{Effect, Event, Lifecycle, State},
    scheduling::{Arrival, Bound, Full, Key, Outcome, Scheduler, Settings},
};
use tokio::time::Instant;

use crate::{
    Gpu, Refusal, Router, TICK, Ticket, Vitals,
    gpu::engine::{Endpoint, EngineKind, EngineSpec},
    protocol::{
        Demand, Drain, EngineNews, Enqueue, FirstToken, Grant, News, Prepared, Pulse, SlotFreed,
        Snapshot, Spawn, StartOver, Stop,
    },
    ticket::Turn,
};

pub use state::{ModelState, Record};

/// How long nothing is sent to an engine that did not answer. News of its end is on the way, and
/// what waits should meet its successor instead of the same closed port.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// What a model is told at its birth.
#[derive(Clone, Debug)]
pub struct Params {
    /// Canonical name.
    pub id: ModelId,
    /// Every name that routes to it, the canonical one first.
    pub names: Vec<String>,
    /// Which engine serves it.
    pub engine: EngineKind,
    /// Who goes next, and how much may wait.
    pub scheduling: Settings,
    /// How long a request may wait.
    pub queue_timeout: Duration,
    /// Start at once instead of at the first request.
    pub autostart: bool,
}

/// One model.
pub struct Model {
    params: Params,
    router: WeakAddr<Router>,
    gpu: Addr<Gpu>,
    spec: Option<Arc<EngineSpec>>,
    life: Lifecycle,
    endpoint: Option<Arc<Endpoint>>,
    queue: Scheduler<Ticket>,
    running: HashMap<Key, Arc<AtomicU64>>,
    estimator: PromptEstimator,
    drain: Option<Instant>,
    paused_until: Option<Instant>,
    record: Record,
    vitals: Vitals,
}

// === impl Model ===

impl Model {
    /// A model whose engine and weights are being prepared.
    #[must_use]
    pub fn new(params: Params, router: WeakAddr<Router>, gpu: Addr<Gpu>) -> Self {
        Self {
            queue: Scheduler::new(&params.scheduling),
            running: HashMap::new(),
            params,
            router,
            gpu,
            spec: None,
            life: Lifecycle::new(),
            endpoint: None,
            estimator: PromptEstimator::default(),
            drain: None,
            paused_until: None,
            record: Record::default(),
            vitals: Vitals::default(),
        }
    }

    /// Tells the lifecycle what happened and does what it says.
    fn happen(&mut self, event: Event, ctx: &Context<Self>) {
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

    /// Hands free places to whoever is next.
    fn dispatch(&mut self, ctx: &Context<Self>) {
        let Some(endpoint) = self.endpoint.clone() else {
            return;
        };
        if self
            .paused_until
            .is_some_and(|until| Instant::now() < until)
        {
            return;
        }
        let now = Instant::now().into_std();
        while let Some(next) = self.queue.next(now) {
            if next.item.is_abandoned() {
                self.queue
                    .finish(next.key, &Outcome::FailedBeforeFirstToken, now);
                continue;
            }
            self.record.dispatched += 1;
            let streamed = Arc::<AtomicU64>::default();
            self.running.insert(next.key, streamed.clone());
            let turn = Turn {
                key: next.key,
                waited: next.waited,
                tag: next.tag,
                streamed,
            };
            next.item.admit(endpoint.clone(), &ctx.address(), turn);
        }
    }

    /// Charges what was streamed since the last look.
    fn true_up(&mut self, now: std::time::Instant) {
        for (key, streamed) in &self.running {
            self.queue
                .streamed(*key, streamed.load(Ordering::Relaxed), now);
        }
        self.queue.tick(now);
    }

    fn refuse_waiting(&mut self) {
        let why = self.broken();
        for ticket in self.queue.remove_if(|_| true, Instant::now().into_std()) {
            ticket.refuse(why.clone());
        }
    }

    fn broken(&self) -> Refusal {
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

    /// Work left, or the time for it: may the engine go?
    fn is_drained(&self, now: Instant) -> bool {
        let counts = self.queue.total();
        let is_idle = counts.waiting == 0 && counts.running == 0;
        self.drain
            .is_some_and(|deadline| is_idle || now >= deadline)
    }

    fn arrival(&self, ticket: &Ticket, now: Instant) -> Arrival {
        Arrival {
            tenant: ticket.tenant.clone(),
            weight: 1,
            group: ticket.share.group.clone(),
            flow: None,
            class: ticket.share.class,
            prompt_tokens: self.estimator.tokens(ticket.size.prompt_bytes),
            max_tokens: ticket.size.max_tokens,
            choices: ticket.size.choices,
            bytes: ticket.size.prompt_bytes,
            expires: (now + self.params.queue_timeout).into_std(),
            is_retry: false,
        }
    }

    /// A tenant that fills the queue hears so; others hear that the node is busy.
    fn refuse_full(&self, ticket: Ticket, bound: Option<Bound>) {
        ticket.refuse(match bound {
            None => Refusal::TenantQueueFull {
                bound: Bound::Requests,
            },
            Some(bound @ (Bound::TenantRequests | Bound::TenantBytes)) => {
                Refusal::TenantQueueFull { bound }
            }
            Some(Bound::Requests | Bound::Bytes) => Refusal::QueueFull {
                waiting: self.queue.total().waiting,
            },
        });
    }

    fn clean_queue(&mut self, now: Instant) {
        drop(self.queue.remove_if(Ticket::is_abandoned, now.into_std()));
        let waited = self.params.queue_timeout;
        for ticket in self.queue.remove_expired(now.into_std()) {
            ticket.refuse(Refusal::QueueTimeout { waited });
        }
    }

    fn tick(&mut self, ctx: &Context<Self>) {
        let now = Instant::now();
        self.clean_queue(now);
        self.true_up(now.into_std());
        self.dispatch(ctx);
        if self.life.retry_at().is_some_and(|at| now.into_std() >= at) {
            self.happen(Event::RetryDue, ctx);
        }
        if self.is_drained(now) {
            for ticket in self.queue.remove_if(|_| true, now.into_std()) {
                ticket.refuse(Refusal::Draining);
            }
            self.happen(Event::Unwanted, ctx);
        }
    }

    fn ended(&mut self, class: FailureClass, reason: String, log_tail: Vec<String>) {
        self.endpoint = None;
        self.record.gone();
        if !matches!(self.life.state(), State::Stopping) {
            tracing::warn!(model = %self.params.id, ?class, reason, "engine ended");
            self.record.failed(reason, log_tail);
        }
    }

    fn ready(&mut self, endpoint: Arc<Endpoint>) {
        self.record.started();
        self.endpoint = Some(endpoint);
    }
}

impl Actor for Model {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |model, ctx| {
            model.tick(ctx);
            ctx.address().do_send(Pulse(Instant::now()));
        });
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

impl Handler<Enqueue> for Model {
    type Result = ();

    fn handle(&mut self, Enqueue(ticket): Enqueue, ctx: &mut Context<Self>) {
        self.vitals.handled();
        if self.drain.is_some() {
            return ticket.refuse(Refusal::Draining);
        }
        if let State::Broken { .. } = self.life.state() {
            return ticket.refuse(self.broken());
        }
        let now = Instant::now();
        let arrival = self.arrival(&ticket, now);
        match self.queue.push(&arrival, ticket, now.into_std()) {
            Ok(pushed) => pushed
                .displaced
                .into_iter()
                .for_each(|out| self.refuse_full(out, None)),
            Err(Full { item, bound }) => return self.refuse_full(item, Some(bound)),
        }
        self.happen(Event::Wanted, ctx);
        self.dispatch(ctx);
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
                self.ready(endpoint);
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

impl Handler<FirstToken> for Model {
    type Result = ();

    fn handle(&mut self, FirstToken(key): FirstToken, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.queue.first_token(key, Instant::now().into_std());
        self.dispatch(ctx);
    }
}

impl Handler<SlotFreed> for Model {
    type Result = ();

    fn handle(&mut self, freed: SlotFreed, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.running.remove(&freed.key);
        if freed.is_unreachable {
            self.paused_until = Some(Instant::now() + UNREACHABLE_PAUSE);
        }
        self.queue
            .finish(freed.key, &freed.outcome, Instant::now().into_std());
        if let Outcome::Completed(usage) = freed.outcome {
            self.estimator
                .learn(freed.prompt_bytes, usage.prompt_tokens);
        }
        self.dispatch(ctx);
    }
}

impl Handler<Drain> for Model {
    type Result = ();

    fn handle(&mut self, drain: Drain, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.drain = Some(drain.deadline);
        self.tick(ctx);
    }
}

impl Handler<Pulse> for Model {
    type Result = ();

    fn handle(&mut self, Pulse(sent): Pulse, _: &mut Context<Self>) {
        self.vitals.pulse(sent);
    }
}

impl Handler<Snapshot<ModelState>> for Model {
    type Result = MessageResult<Snapshot<ModelState>>;

    fn handle(&mut self, _: Snapshot<ModelState>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(ModelState {
            id: self.params.id.clone(),
            names: self.params.names.clone(),
            engine: self.params.engine,
            state: self.life.state(),
            generation: self.life.generation(),
            autostart: self.params.autostart,
            url: self.endpoint.as_ref().map(|endpoint| endpoint.base.clone()),
            pid: self.record.pid(),
            waiting: self.queue.total().waiting,
            running: self.queue.total().running,
            max_running: self.params.scheduling.max_in_flight,
            scheduling: self.queue.snapshot(),
            oldest_wait: self.queue.oldest_wait(Instant::now().into_std()),
            record: self.record.clone(),
            vitals: self.vitals,
        })
    }
}
