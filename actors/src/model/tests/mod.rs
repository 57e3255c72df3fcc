//! A model and its engines in virtual time. The test stands in for the router and the GPU set: it
//! reads what the model says to them, a line each, and answers as an engine would.

mod configuration;
mod ends;
mod failures;
mod hidden;
mod replicas;
mod stalls;
mod starts;
mod swaps;
mod targets;

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use actix::{Actor, Addr, Context, Handler, Message};
use kvwarden_policy::{
    DeviceId, Generation, ModelId, TenantId,
    cost::RequestSize,
    failure::FailureClass,
    lifecycle::{Phase, SleepLevel, SleepLevels, State},
    residency::{self, Costs},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{EngineParams, EngineState, Model, ModelState, Params, Peers};
use crate::{
    Admission, Permit, Refusal, RequestHints, Ticket,
    engine::{Attached, Endpoint, EngineEnd, EngineKind, EngineSpec, News, Order, Transition},
    protocol::{
        Demand, Drain, EngineNews, EngineSays, Enqueue, Grant, Preparation, Prepared, Reclaim,
        Reconfigure, Register, Remove, Removed, Resign, SetTarget, Signal, Snapshot, Spawn, Target,
        Unregister,
    },
    tests::{Setup, permit, refusal},
};

/// Longer than any event here takes, in virtual time.
const DEADLINE: Duration = Duration::from_secs(1000);
const STALL: Duration = Duration::from_secs(20);
const BROKEN: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);

/// Takes down what a model says, in place of the router and the GPU set.
struct Listener {
    said: mpsc::UnboundedSender<String>,
    demands: Rc<RefCell<HashMap<ModelId, Vec<residency::Demand>>>>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Listener {
    fn take_down(&self, line: String) {
        let _ = self.said.send(line);
    }
}

/// `Message => line` for each of the messages that are taken down.
macro_rules! listens {
    ($($message:ty, $at:pat => $line:expr;)*) => { $(
        impl Handler<$message> for Listener {
            type Result = ();

            fn handle(&mut self, $at: $message, _: &mut Context<Self>) {
                self.take_down($line);
            }
        }
    )* };
}

listens! {
    Register, Register { engine, needs } => match needs.costs {
        Some(_) => format!("{engine} registers with costs"),
        None => format!("{engine} registers"),
    };
    Unregister, Unregister(engine) => format!("{engine} unregisters");
    Removed, Removed(model) => format!("{model} is removed");
    Spawn, Spawn { engine, generation, spec, devices, .. } =>
        format!("{engine}/{generation} spawn {} on {}", served_name(&spec), devices[0]);
    Signal, Signal { engine, generation, what } => format!("{engine}/{generation} {}", order(what));
}

impl Handler<Demand> for Listener {
    type Result = ();

    fn handle(&mut self, Demand { engine, demand }: Demand, _: &mut Context<Self>) {
        let mut demands = self.demands.borrow_mut();
        demands.entry(engine).or_default().push(demand);
    }
}

/// All that was sent to the listener before has been heard.
#[derive(Message)]
#[rtype(result = "()")]
struct Heard;

impl Handler<Heard> for Listener {
    type Result = ();

    fn handle(&mut self, _: Heard, _: &mut Context<Self>) {}
}

fn served_name(spec: &EngineSpec) -> &str {
    match spec {
        EngineSpec::Child(launch) => &launch.served_name,
        EngineSpec::Attached(attached) => &attached.served_name,
    }
}

fn order(what: Order) -> String {
    match what {
        Order::Stop => "stop".to_owned(),
        Order::Change(Transition::Demote { from, to }) => format!("demote from {from:?} to {to:?}"),
        Order::Change(Transition::Wake { from }) => format!("wake from {from:?}"),
        Order::Change(Transition::Verify) => "verify".to_owned(),
        Order::Probe => "probe".to_owned(),
        Order::GiveUp => "give up".to_owned(),
    }
}

fn crashed(class: FailureClass) -> News {
    News::Exited(EngineEnd {
        class,
        reason: format!("it {class:?}"),
        log_tail: vec!["last words".to_owned()],
    })
}

/// A model `m` that starts with the server, on one engine of a kind that we start ourselves.
fn params() -> Params {
    Params {
        stall_timeout: STALL,
        broken_pause: BROKEN,
        queue_timeout: DEADLINE,
        engines: vec![engine("m", 1)],
        ..Setup::default().model()
    }
}

/// The same, loaded only when somebody asks for it.
fn lazy() -> Params {
    Params {
        autostart: false,
        ..params()
    }
}

/// The same with these engines.
fn with(engines: &[&str]) -> Params {
    Params {
        engines: engines.iter().map(|name| engine(name, 1)).collect(),
        ..params()
    }
}

fn engine(name: &str, revision: u64) -> EngineParams {
    EngineParams {
        name: name.into(),
        kind: EngineKind::Sim,
        revision,
        costs: None,
    }
}

fn endpoint(engine: &str, generation: u64) -> Endpoint {
    Endpoint {
        model: engine.into(),
        kind: EngineKind::Sim,
        generation: Generation(generation),
        // No address at all, so that its metrics are asked of nobody.
        base: String::new(),
        api_key: None,
        served_name: String::new(),
        levels: SleepLevels::default()
            .with(SleepLevel::L1)
            .with(SleepLevel::L2),
        canary: None,
    }
}

/// A model, and what it has said.
struct Rig {
    model: Addr<Model>,
    listener: Addr<Listener>,
    said: mpsc::UnboundedReceiver<String>,
    demands: Rc<RefCell<HashMap<ModelId, Vec<residency::Demand>>>>,
    orders: u64,
}

impl Rig {
    fn new(params: Params) -> Self {
        tokio::time::pause();
        let (says, said) = mpsc::unbounded_channel();
        let demands = Rc::default();
        let listener = Listener {
            said: says,
            demands: Rc::clone(&demands),
        };
        let listener = listener.start();
        let peers = Peers {
            demand: listener.clone().into(),
            removed: listener.clone().into(),
            register: listener.clone().into(),
            unregister: listener.clone().into(),
            spawn: listener.clone().into(),
            signal: listener.clone().into(),
        };
        Self {
            model: Model::new(params, peers).start(),
            listener,
            said,
            demands,
            orders: 0,
        }
    }

    /// All engines of `params` are prepared, and nothing else has happened.
    async fn prepared(params: Params) -> Self {
        let engines = params.engines.clone();
        let mut rig = Self::new(params);
        for engine in engines {
            rig.prepare(engine.name.as_str(), 1, "v1");
            rig.hears(&format!("{} registers", engine.name)).await;
        }
        rig
    }

    /// All engines of `params`, which have to start with the server, serve.
    async fn serving(params: Params) -> Self {
        let engines = params.engines.clone();
        let mut rig = Self::prepared(params).await;
        for engine in engines {
            rig.start(engine.name.as_str(), 1).await;
        }
        rig
    }

    /// An engine that waits for its place gets it and comes to serve.
    async fn start(&mut self, engine: &str, generation: u64) {
        self.grant(engine);
        let line = format!("{engine}/{generation} spawn v1 on gpu0");
        self.hears(&line).await;
        self.ready(engine, generation);
        assert_eq!(self.engine(engine).await.state, State::Ready);
    }

    /// The only engine goes from Ready to this deep asleep.
    async fn sleep(&mut self, to: SleepLevel) {
        self.reclaim("m", to);
        self.hears(&format!("m/1 demote from Ready to {to:?}"))
            .await;
        self.news("m", 1, News::Demoted);
        assert_eq!(self.state().await.state, State::Asleep { level: to });
    }

    /// What the model says next.
    async fn hears(&mut self, line: &str) {
        let said = timeout(DEADLINE, self.said.recv()).await;
        let said = said.unwrap_or_else(|_| panic!("it says nothing, instead of {line:?}"));
        assert_eq!(said.unwrap(), line);
    }

    /// The model says nothing for so long.
    async fn hears_nothing_for(&mut self, time: Duration) {
        if let Ok(said) = timeout(time, self.said.recv()).await {
            panic!("{said:?} was not to be said");
        }
    }

    fn prepare(&self, engine: &str, revision: u64, served_name: &str) {
        let spec = Attached {
            base: String::new(),
            api_key: None,
            served_name: served_name.to_owned(),
        };
        let spec = EngineSpec::Attached(spec);
        self.preparation(engine, revision, Preparation::Done(spec.into()));
    }

    fn preparation(&self, engine: &str, revision: u64, how: Preparation) {
        self.model.do_send(Prepared {
            engine: engine.into(),
            revision,
            how,
        });
    }

    fn order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    fn grant(&mut self, engine: &str) {
        self.grant_for(engine, false, None);
    }

    fn prefetch(&mut self, engine: &str) {
        self.grant_for(engine, true, None);
    }

    fn offer_orphan(&mut self, engine: &str, generation: u64) {
        self.grant_for(engine, false, Some(Generation(generation)));
    }

    fn grant_for(&mut self, engine: &str, is_prefetch: bool, inherited: Option<Generation>) {
        let order = self.order();
        self.model.do_send(Grant {
            engine: engine.into(),
            order,
            devices: vec![DeviceId::from("gpu0")],
            is_prefetch,
            inherited,
        });
    }

    fn reclaim(&mut self, engine: &str, to: SleepLevel) {
        let order = self.order();
        self.model.do_send(Reclaim {
            engine: engine.into(),
            order,
            to,
        });
    }

    fn news(&self, engine: &str, generation: u64, what: News) {
        self.model.do_send(EngineNews {
            engine: engine.into(),
            generation: Generation(generation),
            what,
        });
    }

    fn ready(&self, engine: &str, generation: u64) {
        let endpoint = endpoint(engine, generation);
        self.news(engine, generation, News::Ready(endpoint.into()));
    }

    /// The only engine ended, and this is why.
    fn exited(&self, generation: u64, class: FailureClass) {
        self.news("m", generation, crashed(class));
    }

    fn target(&self, target: Target) {
        let model = ModelId::from("m");
        self.model.do_send(SetTarget { model, target });
    }

    /// A request whose client wants a stream.
    fn ask(&self) -> oneshot::Receiver<Admission> {
        self.ask_as(true)
    }

    /// One whose client wants its answer whole.
    fn ask_whole(&self) -> oneshot::Receiver<Admission> {
        self.ask_as(false)
    }

    fn ask_as(&self, is_streamed: bool) -> oneshot::Receiver<Admission> {
        let hints = RequestHints {
            is_streamed,
            ..RequestHints::default()
        };
        let size = RequestSize {
            prompt_bytes: 400,
            images: 0,
            body_bytes: 500,
            max_tokens: Some(100),
            choices: 1,
        };
        let tenant = TenantId::from("t");
        let (ticket, answer) = Ticket::new(tenant, "m".to_owned(), size, hints);
        self.model.do_send(Enqueue(ticket));
        answer
    }

    async fn state(&self) -> ModelState {
        self.model.send(Snapshot::default()).await.unwrap()
    }

    async fn engine(&self, name: &str) -> EngineState {
        let engines = self.state().await.engines;
        let is_it = |engine: &EngineState| engine.engine.as_str() == name;
        engines.into_iter().find(is_it).unwrap()
    }

    /// All that the planner was told of an engine until now.
    async fn demands(&self, engine: &str) -> Vec<residency::Demand> {
        self.state().await;
        self.listener.send(Heard).await.unwrap();
        self.demands.borrow()[&ModelId::from(engine)].clone()
    }

    /// What the planner was told last of an engine.
    async fn demand(&self, engine: &str) -> residency::Demand {
        self.demands(engine).await.pop().unwrap()
    }

    /// Waits until the planner is asked for a place, and says how long that took.
    async fn until_it_waits(&self, engine: &str) -> Duration {
        let begun = Instant::now();
        while !matches!(self.demand(engine).await.state, State::Waiting { .. }) {
            assert!(begun.elapsed() < DEADLINE, "{:?}", self.state().await);
            pass(Duration::from_millis(50)).await;
        }
        begun.elapsed()
    }
}

/// Another rig may follow in the same test.
impl Drop for Rig {
    fn drop(&mut self) {
        tokio::time::resume();
    }
}

/// Virtual time goes by.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// It was that long, give or take a tick.
fn is_about(time: Duration, expected: Duration) -> bool {
    time.abs_diff(expected) <= Duration::from_millis(150)
}

fn generation(permit: &Permit) -> u64 {
    permit.endpoint.generation.0
}
