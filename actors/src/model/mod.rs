//! One model: who waits for it, who runs on it, and the lives of its engines.
//!
//! It never spawns anything. Which request goes next is decided by `policy::scheduling`, to which
//! engine by `policy::routing`, what to do about an engine by `policy::lifecycle`; the actor only
//! carries messages between them: `queue` for who waits and runs, `engines` for their lives,
//! `demand` for what the planner is told, `configure` for a configuration that changes.

mod configure;
mod demand;
mod engines;
mod metrics;
mod peers;
mod queue;
mod replica;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::{Actor, AsyncContext, Context, Handler, MessageResult};
use kvwarden_policy::{
    ModelId,
    cost::PromptEstimator,
    lifecycle::Event,
    residency::{Costs, Rate},
    scheduling::{Key, Scheduler, Settings},
    stall::Verdict,
};
use tokio::time::Instant;

use crate::{
    EngineObserver, Refusal, TICK, Ticket, Vitals,
    engine::{EngineKind, Order},
    protocol::{Drain, Pulse, Resign, Snapshot},
};

use demand::Clock;
pub use peers::Peers;
use queue::Running;
pub use replica::Occupancy;
use replica::Replica;
pub use state::{EngineState, ModelState, Record};

/// How long nothing is sent to an engine that did not answer. News of its end is on the way, and
/// what waits should meet its successor instead of the same closed port.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);
/// How long a request waits, rounded up to a tick, that its engine broke off before the answer began. If the engine is dying,
/// its connections close a moment before we hear of its end, and the next ones find it unreachable.
/// If it is not, the request is what it dropped, and nobody else waits for that.
const LOST_PAUSE: Duration = Duration::from_millis(200);

/// How long a request takes, until some have ended.
const ASSUMED_SERVICE: Duration = Duration::from_secs(5);

/// What the configuration says of an engine of a model.
#[derive(Clone, Debug)]
pub struct EngineParams {
    /// The model's name, or `model#2` for a second one.
    pub name: ModelId,
    /// Which kind it is.
    pub kind: EngineKind,
    /// Stands for everything else that is said of it: another number, another engine.
    pub revision: u64,
    /// What its comings and goings were measured to cost before this process began.
    pub costs: Option<Costs>,
}

/// What the configuration says of a model.
#[derive(Clone, Debug)]
pub struct Params {
    /// Canonical name.
    pub id: ModelId,
    /// Every name that routes to it, the canonical one first.
    pub names: Vec<String>,
    /// Its engines; at least one.
    pub engines: Vec<EngineParams>,
    /// Who goes next, and how much may wait.
    pub scheduling: Settings,
    /// How long a request may wait.
    pub queue_timeout: Duration,
    /// How long nothing may move in an engine that has work.
    pub stall_timeout: Duration,
    /// How long requests are refused once an engine has failed too often.
    pub broken_pause: Duration,
    /// Start at once instead of at the first request.
    pub autostart: bool,
    /// Never reclaimed.
    pub is_pinned: bool,
    /// It is stopped when nobody has wanted it for this long.
    pub idle_ttl: Option<Duration>,
    /// How often it was asked for before this process began.
    pub rate: Rate,
    /// Who is told what becomes of its engines.
    pub observer: Arc<dyn EngineObserver>,
}

/// One model.
pub struct Model {
    params: Params,
    peers: Peers,
    replicas: Vec<Replica>,
    queue: Scheduler<Ticket>,
    running: HashMap<Key, Running>,
    /// Requests that an engine broke off, and when they may go before what waits.
    lost: VecDeque<(Instant, Ticket)>,
    estimator: PromptEstimator,
    rate: Rate,
    /// As configured, until an operator wants it otherwise.
    is_pinned: bool,
    /// The configuration has it no more: it serves whom it let in.
    is_leaving: bool,
    clock: Clock,
    busy_at: Instant,
    /// When the last request came.
    asked_at: Option<Instant>,
    /// An operator has sent it to sleep, and nobody has asked for it since.
    is_put_away: bool,
    service_time: Duration,
    /// When it wakes itself to look for room.
    wakes_at: Option<Instant>,
    drain: Option<Instant>,
    /// Another process is in charge of the engines now.
    has_resigned: bool,
    vitals: Vitals,
}

// === impl Model ===

impl Model {
    /// A model whose engines and weights are being prepared.
    #[must_use]
    pub fn new(params: Params, peers: Peers) -> Self {
        let clock = Clock::set();
        let pause = params.broken_pause;
        let engines = params.engines.iter();
        Self {
            queue: Scheduler::new(&params.scheduling),
            running: HashMap::new(),
            lost: VecDeque::new(),
            replicas: engines.map(|engine| Replica::new(engine, pause)).collect(),
            rate: params.rate.clone().resumed(clock.since_epoch()),
            clock,
            is_pinned: params.is_pinned,
            is_leaving: false,
            params,
            peers,
            estimator: PromptEstimator::default(),
            busy_at: Instant::now(),
            asked_at: None,
            is_put_away: false,
            service_time: ASSUMED_SERVICE,
            wakes_at: None,
            drain: None,
            has_resigned: false,
            vitals: Vitals::default(),
        }
    }

    /// Work left, or the time for it: may the engines go?
    fn is_drained(&self, now: Instant) -> bool {
        let counts = self.queue.total();
        let is_idle = counts.waiting == 0 && counts.running == 0 && self.lost.is_empty();
        let is_over = self.drain.is_some_and(|deadline| now >= deadline);
        is_over || (is_idle && (self.is_leaving || self.drain.is_some()))
    }

    fn tick(&mut self, ctx: &Context<Self>) {
        let now = Instant::now();
        self.clean_queue(now);
        self.send_again(now, ctx);
        self.true_up(now.into_std());
        self.dispatch(ctx);
        if self.queue.total().waiting > 0 && self.drain.is_none() {
            self.want(ctx);
        }
        if self.has_resigned && !self.may_serve() {
            self.refuse_all(&Refusal::Draining, now);
        }
        for at in 0..self.replicas.len() {
            self.tick_engine(at, now, ctx);
        }
        if self.is_drained(now) {
            self.refuse_all(&Refusal::Draining, now);
            for at in 0..self.replicas.len() {
                self.apply(at, Event::Unwanted, ctx);
            }
        }
        self.dismiss(ctx);
        self.report_removed();
    }

    fn tick_engine(&mut self, at: usize, now: Instant, ctx: &Context<Self>) {
        let replica = &self.replicas[at];
        if replica
            .life
            .retry_at()
            .is_some_and(|due| now.into_std() >= due)
        {
            self.apply(at, Event::RetryDue, ctx);
        }
        if self.drain.is_none() {
            self.roll(at, now, ctx);
        }
        self.reconcile(at, ctx);
        self.demand(at);
        let timeout = self.params.stall_timeout;
        match self.replicas[at].check_progress(now, timeout) {
            Verdict::Fine => {}
            Verdict::Suspect => {
                tracing::warn!(engine = %self.replicas[at].engine, "nothing moves; it is asked to prove itself");
                self.signal(at, Order::Probe);
            }
            Verdict::Hung => self.signal(at, Order::GiveUp),
        }
    }

    /// The engine that is closest to serving.
    fn lead(&self) -> &Replica {
        let rank = |replica: &&Replica| {
            let state = replica.life.state();
            // One that changes has no sleep level, and leads those that rest without serving.
            (!state.admits(), state.level())
        };
        let lead = self.replicas.iter().min_by_key(rank);
        lead.unwrap_or(&self.replicas[0])
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

impl Handler<Resign> for Model {
    type Result = ();

    fn handle(&mut self, _: Resign, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.has_resigned = true;
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
        let lead = self.lead().state();
        let engines = self.replicas.iter().map(Replica::state).collect();
        MessageResult(ModelState {
            id: self.params.id.clone(),
            names: self.params.names.clone(),
            engine: lead.kind,
            state: lead.state,
            generation: lead.generation,
            autostart: self.params.autostart,
            is_leaving: self.is_leaving,
            url: lead.url,
            pid: lead.pid,
            record: lead.record,
            engines,
            waiting: self.queue.total().waiting + self.lost.len(),
            running: self.queue.total().running,
            max_running: self.params.scheduling.max_in_flight,
            engine_waiting: lead.waiting,
            scheduling: self.queue.snapshot(),
            oldest_wait: self.queue.oldest_wait(Instant::now().into_std()),
            rate: self.rate.clone(),
            vitals: self.vitals,
        })
    }
}
