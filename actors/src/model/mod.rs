//! One model: who waits for it, who runs on it, and the life of its engine.
//!
//! It never spawns anything. Which request goes next is decided by `policy::scheduling`, what to do
//! about the engine by `policy::lifecycle`; the actor only carries messages between the two:
//! `queue` for who waits and runs, `engine` for the engine's life.

mod audit;
mod engine;
mod queue;
mod state;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, MessageResult, WeakAddr};
use kvwarden_policy::{
    ModelId,
    cost::PromptEstimator,
    lifecycle::{Event, Lifecycle},
    scheduling::{Key, Scheduler, Settings},
};
use tokio::time::Instant;

use crate::{
    Gpu, Refusal, Router, TICK, Ticket, Vitals,
    gpu::engine::{Endpoint, EngineKind, EngineSpec},
    protocol::{Drain, Pulse, Snapshot},
};

use audit::Audit;
pub use state::{ModelState, Record};

/// How long nothing is sent to an engine that did not answer. News of its end is on the way, and
/// what waits should meet its successor instead of the same closed port.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// The same after an engine broke off an answer before it began. Most likely it is dying, and its
/// connections close a moment before we hear of its end; if it is not, hardly anything is lost.
const LOST_PAUSE: Duration = Duration::from_millis(200);

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
    audit: Option<Audit>,
    engine_waiting: Option<u64>,
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
            audit: None,
            engine_waiting: None,
            estimator: PromptEstimator::default(),
            drain: None,
            paused_until: None,
            record: Record::default(),
            vitals: Vitals::default(),
        }
    }

    /// Work left, or the time for it: may the engine go?
    fn is_drained(&self, now: Instant) -> bool {
        let counts = self.queue.total();
        let is_idle = counts.waiting == 0 && counts.running == 0;
        self.drain
            .is_some_and(|deadline| is_idle || now >= deadline)
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
            engine_waiting: self.engine_waiting,
            scheduling: self.queue.snapshot(),
            oldest_wait: self.queue.oldest_wait(Instant::now().into_std()),
            record: self.record.clone(),
            vitals: self.vitals,
        })
    }
}
