//! The GPU set of this node: whose engine may start, and the engines that run.
//!
//! The actor itself only keeps the list. Each engine has one task ([`run`]) that owns its shim and
//! reports by message. Starts that take memory go one at a time: an engine that sizes its KV cache
//! while another one loads misjudges what is free (vLLM, and SGLang likewise).

mod attached;
pub mod cgroup;
pub mod child;
mod collector;
mod control;
pub mod engine;
pub mod probe;
mod run;
pub mod rungs;
pub mod shim;
pub mod snapshot;
pub mod tree;
pub mod vram;

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    time::Duration,
};

use actix::{Actor, AsyncContext, Context, Handler, MessageResult, WeakAddr};
use kvwarden_policy::{Generation, ModelId};
use serde::Serialize;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    PULSE, Router, Vitals,
    protocol::{Demand, EngineGone, Grant, Pulse, Snapshot, Spawn, StartOver, Stop},
};

/// What the GPU set is told at its birth.
#[derive(Clone, Debug)]
pub struct Params {
    /// The executable that has the subcommand `shim`: our own.
    pub shim: PathBuf,
    /// Where shims listen and keep their records.
    pub run_dir: PathBuf,
    /// Where engines' output goes.
    pub log_dir: PathBuf,
    /// How long engines outlive us if we die without stopping them.
    pub orphan_grace: Duration,
    /// Bytes of disk for KV that stopped engines leave behind, all models together.
    pub max_saved_kv: u64,
}

/// The GPU set.
pub struct Gpu {
    params: Params,
    router: Option<WeakAddr<Router>>,
    engines: HashMap<ModelId, Running>,
    starting: Option<ModelId>,
    waiting: VecDeque<ModelId>,
    reading: vram::Reading,
    vitals: Vitals,
}

struct Running {
    generation: Generation,
    stop: Option<oneshot::Sender<()>>,
}

/// The GPU set's observable state.
#[derive(Clone, Debug, Serialize)]
pub struct GpuState {
    /// Models whose engine exists, in whatever state.
    pub engines: Vec<ModelId>,
    /// The model whose engine is starting.
    pub starting: Option<ModelId>,
    /// Models that wait for their start.
    pub waiting: Vec<ModelId>,
    /// What the driver says about the devices.
    pub devices: vram::Reading,
    /// How busy the actor is.
    pub vitals: Vitals,
}

/// serve -> Gpu: this is the router.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub struct Meet(pub WeakAddr<Router>);

// === impl Gpu ===

impl Gpu {
    /// A GPU set without engines.
    #[must_use]
    pub fn new(params: Params) -> Self {
        Self {
            params,
            router: None,
            engines: HashMap::new(),
            starting: None,
            waiting: VecDeque::new(),
            reading: vram::Reading::NotYet,
            vitals: Vitals::default(),
        }
    }

    fn grant_next(&mut self) {
        if self.starting.is_none()
            && let Some(model) = self.waiting.pop_front()
        {
            self.starting = Some(model.clone());
            self.grant(model);
        }
    }

    fn grant(&self, model: ModelId) {
        if let Some(router) = self.router.as_ref().and_then(WeakAddr::upgrade) {
            router.do_send(Grant { model });
        }
    }
}

impl Actor for Gpu {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(PULSE, |_, ctx| ctx.address().do_send(Pulse(Instant::now())));
        vram::watch(
            vram::Nvidia::default(),
            ctx.address().downgrade().recipient(),
        );
    }
}

impl Handler<Meet> for Gpu {
    type Result = ();

    fn handle(&mut self, Meet(router): Meet, _: &mut Context<Self>) {
        self.router = Some(router);
    }
}

impl Handler<Demand> for Gpu {
    type Result = ();

    fn handle(
        &mut self,
        Demand {
            model,
            takes_memory,
        }: Demand,
        _: &mut Context<Self>,
    ) {
        self.vitals.handled();
        if !takes_memory {
            return self.grant(model);
        }
        if !self.waiting.contains(&model) {
            self.waiting.push_back(model);
        }
        self.grant_next();
    }
}

impl Handler<StartOver> for Gpu {
    type Result = ();

    fn handle(&mut self, StartOver { model }: StartOver, _: &mut Context<Self>) {
        self.vitals.handled();
        if self.starting.as_ref() == Some(&model) {
            self.starting = None;
        }
        self.grant_next();
    }
}

impl Handler<Spawn> for Gpu {
    type Result = ();

    fn handle(&mut self, spawn: Spawn, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let (stop, stopped) = oneshot::channel();
        let running = Running {
            generation: spawn.generation,
            stop: Some(stop),
        };
        self.engines.insert(spawn.model.clone(), running);
        let run = run::Run {
            params: self.params.clone(),
            spawn,
            gpu: ctx.address(),
        };
        actix::spawn(run.live(stopped));
    }
}

impl Handler<Stop> for Gpu {
    type Result = ();

    fn handle(&mut self, Stop { model, generation }: Stop, _: &mut Context<Self>) {
        self.vitals.handled();
        if let Some(engine) = self.engines.get_mut(&model)
            && engine.generation == generation
            && let Some(stop) = engine.stop.take()
        {
            // The task may have ended at this moment; then its last message is on the way.
            let _ = stop.send(());
        }
    }
}

impl Handler<EngineGone> for Gpu {
    type Result = ();

    fn handle(&mut self, EngineGone { model, generation }: EngineGone, _: &mut Context<Self>) {
        self.vitals.handled();
        if self
            .engines
            .get(&model)
            .is_some_and(|engine| engine.generation == generation)
        {
            self.engines.remove(&model);
        }
    }
}

impl Handler<vram::Reading> for Gpu {
    type Result = ();

    fn handle(&mut self, reading: vram::Reading, _: &mut Context<Self>) {
        self.vitals.handled();
        self.reading = reading;
    }
}

impl Handler<Pulse> for Gpu {
    type Result = ();

    fn handle(&mut self, Pulse(sent): Pulse, _: &mut Context<Self>) {
        self.vitals.pulse(sent);
    }
}

impl Handler<Snapshot<GpuState>> for Gpu {
    type Result = MessageResult<Snapshot<GpuState>>;

    fn handle(&mut self, _: Snapshot<GpuState>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(GpuState {
            engines: self.engines.keys().cloned().collect(),
            starting: self.starting.clone(),
            waiting: self.waiting.iter().cloned().collect(),
            devices: self.reading.clone(),
            vitals: self.vitals,
        })
    }
}
