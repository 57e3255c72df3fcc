//! The GPU set of this node: whose engine may start, and the engines that run.
//!
//! The actor itself only passes on: what models say of their engines and what the driver says to the
//! planner's [`Tracker`], and what that orders to the models. Each engine has one task
//! ([`process`](crate::process)) that owns its shim, does what its model says and reports by message.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use actix::{Actor, AsyncContext, Context, Handler, MessageResult, WeakAddr};
use kvwarden_policy::{
    Generation, ModelId,
    residency::{self, Action, OrderKind, Resident, Tracker},
};
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    EngineObserver, PULSE, Router, Vitals, device,
    engine::Order,
    process::{self, EngineTask, leadership::Leadership, orphans::Orphan},
    protocol::{
        Demand, EngineGone, Grant, Pulse, Reclaim, Register, SetTuning, Signal, Snapshot, Spawn,
        Unregister,
    },
};

/// How often it is thought again while an engine waits for a place: the rent of those who wait for it
/// rises meanwhile, and a wake may take less than this.
const REPLAN: Duration = Duration::from_millis(50);

/// What the GPU set is told at its birth.
#[derive(Clone, Debug)]
pub struct Params {
    /// The executable that has the subcommand `shim`: our own.
    pub shim: PathBuf,
    /// Where shims listen and keep their records.
    pub run_dir: PathBuf,
    /// Where engines' output goes.
    pub log_dir: PathBuf,
    /// How much of each GPU's memory is for engines, or of the machine's where there is no GPU.
    pub memory: Option<u64>,
    /// What may change while it runs.
    pub tuning: Tuning,
    /// Whether this process decides about engines.
    pub leadership: Leadership,
    /// Who is told what the planner orders.
    pub observer: Arc<dyn EngineObserver>,
}

impl Params {
    /// What the task of an engine goes by.
    fn of_tasks(&self) -> process::Params {
        process::Params {
            shim: self.shim.clone(),
            run_dir: self.run_dir.clone(),
            log_dir: self.log_dir.clone(),
            leadership: self.leadership.clone(),
            orphan_grace: self.tuning.orphan_grace,
            start_stall_timeout: self.tuning.start_stall_timeout,
            max_saved_kv: self.tuning.max_saved_kv,
        }
    }
}

/// How engines are swapped and left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tuning {
    /// When to swap.
    pub residency: residency::Settings,
    /// How long engines outlive us if we die without stopping them.
    pub orphan_grace: Duration,
    /// How long nothing may move in an engine that starts.
    pub start_stall_timeout: Duration,
    /// Bytes of disk for KV that stopped engines leave behind, all models together.
    pub max_saved_kv: u64,
}

/// The GPU set.
pub struct Gpu {
    params: Params,
    router: Option<WeakAddr<Router>>,
    engines: HashMap<ModelId, Running>,
    /// Left by an earlier kvwarden, for models that are not prepared yet.
    orphans: HashMap<ModelId, Orphan>,
    tracker: Tracker,
    reading: device::Reading,
    reader: device::Reader,
    planned: Instant,
    vitals: Vitals,
}

struct Running {
    generation: Generation,
    orders: mpsc::UnboundedSender<Order>,
}

/// The GPU set's observable state.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GpuState {
    /// Models whose engine exists, in whatever state.
    pub engines: Vec<ModelId>,
    /// Every engine and its place in memory.
    pub residents: Vec<Resident>,
    /// Memory as the planner sees it.
    pub memory: Vec<residency::Device>,
    /// Who is asked after whom.
    #[serde(skip)]
    pub succession: residency::Succession,
    /// What the driver says about the devices.
    pub devices: device::Reading,
    /// How busy the actor is.
    pub vitals: Vitals,
}

/// serve -> Gpu: this is the router.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub struct SetRouter(pub WeakAddr<Router>);

// === impl Gpu ===

impl Gpu {
    /// A GPU set without engines.
    #[must_use]
    pub fn new(params: Params) -> Self {
        let now = Instant::now();
        Self {
            engines: HashMap::new(),
            orphans: HashMap::new(),
            tracker: Tracker::new(params.tuning.residency, now.into_std()),
            params,
            router: None,
            reading: device::Reading::NotYet,
            reader: device::Reader::default(),
            planned: now,
            vitals: Vitals::default(),
        }
    }

    /// With engines that an earlier kvwarden left running.
    #[must_use]
    pub fn inheriting(mut self, orphans: Vec<Orphan>) -> Self {
        for orphan in orphans {
            let (devices, bytes) = orphan.place();
            self.tracker.add_orphan(orphan.engine(), devices, bytes);
            self.orphans.insert(orphan.engine(), orphan);
        }
        self
    }

    /// With what an earlier kvwarden saw of who is asked after whom.
    #[must_use]
    pub fn remembering(mut self, succession: residency::Succession) -> Self {
        self.tracker.set_succession(succession);
        self
    }

    /// Gives an engine that an earlier kvwarden left to its model.
    fn offer_orphan(&mut self, engine: ModelId) {
        let Some(orphan) = self.orphans.get(&engine) else {
            return;
        };
        let router = self.router.as_ref().and_then(WeakAddr::upgrade);
        if let Some(router) = router
            && let Some((order, devices)) = self.tracker.offer_orphan(&engine)
        {
            router.do_send(Grant {
                engine,
                order,
                devices,
                is_prefetch: false,
                inherited: Some(orphan.generation()),
            });
        }
    }

    /// Engines whose models took too long to be prepared are ended by their shims.
    fn forget_orphans(&mut self) {
        for (engine, orphan) in self.orphans.extract_if(|_, orphan| !orphan.is_alive()) {
            self.tracker.remove_orphan(&engine);
            actix::spawn(orphan.end());
        }
    }

    /// Asks the planner and passes on what it orders.
    fn plan(&mut self) {
        let Some(router) = self.router.as_ref().and_then(WeakAddr::upgrade) else {
            return;
        };
        self.planned = Instant::now();
        let orders = self.tracker.decide(self.planned.into_std());
        for action in self.tracker.plan().orders() {
            if let Action::Demote { model, to, why } = action {
                tracing::info!(engine = %model, %to, ?why, "makes room");
            }
            self.params.observer.ordered(action);
        }
        for residency::Order {
            engine,
            number: order,
            kind,
        } in orders
        {
            match kind {
                OrderKind::Grant {
                    devices,
                    is_prefetch,
                } => {
                    if is_prefetch {
                        tracing::info!(%engine, "expected, so it is loaded ahead");
                    }
                    router.do_send(Grant {
                        engine,
                        order,
                        devices,
                        is_prefetch,
                        inherited: None,
                    });
                }
                OrderKind::Reclaim(to) => router.do_send(Reclaim { engine, order, to }),
            }
        }
    }
}

impl Actor for Gpu {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(PULSE, |gpu, ctx| {
            if gpu.params.leadership.is_held() {
                gpu.forget_orphans();
                gpu.plan();
            }
            ctx.address().do_send(Pulse(Instant::now()));
        });
        self.reader = device::watch(
            device::Nvidia::default(),
            device::INTERVAL,
            ctx.address().downgrade().recipient(),
        );
    }
}

impl Handler<SetRouter> for Gpu {
    type Result = ();

    fn handle(&mut self, SetRouter(router): SetRouter, _: &mut Context<Self>) {
        self.router = Some(router);
    }
}

impl Handler<Register> for Gpu {
    type Result = ();

    fn handle(&mut self, Register { engine, needs }: Register, _: &mut Context<Self>) {
        self.vitals.handled();
        let now = Instant::now().into_std();
        self.tracker.register(engine.clone(), needs, now);
        self.offer_orphan(engine);
    }
}

impl Handler<Unregister> for Gpu {
    type Result = ();

    fn handle(&mut self, Unregister(engine): Unregister, _: &mut Context<Self>) {
        self.vitals.handled();
        self.tracker.unregister(&engine);
        if let Some(orphan) = self.orphans.remove(&engine) {
            actix::spawn(orphan.end());
        }
    }
}

impl Handler<SetTuning> for Gpu {
    type Result = ();

    fn handle(&mut self, SetTuning(tuning): SetTuning, _: &mut Context<Self>) {
        self.vitals.handled();
        self.params.tuning = tuning;
        self.tracker.set_settings(tuning.residency);
        self.plan();
    }
}

impl Handler<Demand> for Gpu {
    type Result = ();

    fn handle(&mut self, Demand { engine, demand }: Demand, _: &mut Context<Self>) {
        self.vitals.handled();
        let waits = demand.is_wanted();
        let now = Instant::now().into_std();
        let is_news = self.tracker.update(&engine, demand, now);
        let is_due = waits && self.planned.elapsed() >= REPLAN;
        if (is_news || is_due) && self.params.leadership.is_held() {
            self.plan();
        }
    }
}

impl Handler<Spawn> for Gpu {
    type Result = ();

    fn handle(&mut self, spawn: Spawn, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let (orders, received) = mpsc::unbounded_channel();
        let running = Running {
            generation: spawn.generation,
            orders,
        };
        self.engines.insert(spawn.engine.clone(), running);
        let task = EngineTask {
            params: self.params.of_tasks(),
            gpus: self.reading.names(&spawn.devices),
            bytes: self.tracker.charged(&spawn.engine),
            orphan: self.orphans.remove(&spawn.engine),
            spawn,
            gone: ctx.address().recipient(),
            reader: self.reader.clone(),
        };
        actix::spawn(task.run(received));
    }
}

impl Handler<Signal> for Gpu {
    type Result = ();

    fn handle(&mut self, signal: Signal, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(engine) = self.engines.get(&signal.engine)
            && engine.generation == signal.generation
            && self.params.leadership.is_held()
        {
            // The task may have ended at this moment; then its last message is on the way.
            let _ = engine.orders.send(signal.what);
        }
    }
}

impl Handler<EngineGone> for Gpu {
    type Result = ();

    fn handle(&mut self, EngineGone { engine, generation }: EngineGone, _: &mut Context<Self>) {
        self.vitals.handled();
        if self
            .engines
            .get(&engine)
            .is_some_and(|running| running.generation == generation)
        {
            self.engines.remove(&engine);
        }
    }
}

impl Handler<device::Reading> for Gpu {
    type Result = ();

    fn handle(&mut self, reading: device::Reading, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(memory) = reading.memory() {
            self.tracker.observe(&memory, self.params.memory);
        }
        self.reading = reading;
        if self.params.leadership.is_held() {
            self.plan();
        }
    }
}

impl Handler<Pulse> for Gpu {
    type Result = ();

    fn handle(&mut self, Pulse(sent): Pulse, _: &mut Context<Self>) {
        self.vitals.pulse(sent);
    }
}

impl Handler<Snapshot<residency::Snapshot>> for Gpu {
    type Result = MessageResult<Snapshot<residency::Snapshot>>;

    fn handle(&mut self, _: Snapshot<residency::Snapshot>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.tracker.snapshot())
    }
}

impl Handler<Snapshot<GpuState>> for Gpu {
    type Result = MessageResult<Snapshot<GpuState>>;

    fn handle(&mut self, _: Snapshot<GpuState>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(GpuState {
            engines: self.engines.keys().cloned().collect(),
            residents: self.tracker.residents(),
            memory: self.tracker.memory(),
            succession: self.tracker.succession().clone(),
            devices: self.reading.clone(),
            vitals: self.vitals,
        })
    }
}
