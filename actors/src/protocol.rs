//! Every message between actors, in the order a request meets them.
//!
//! Handlers return `()` and never await; only [`Snapshot`] and [`Roster`] are questions. A message
//! about an engine carries its [`Generation`].

use std::{marker::PhantomData, sync::Arc};

use actix::{Addr, Message, WeakRecipient};
use kvwarden_policy::{
    Generation, ModelId, TenantId,
    cost::RequestSize,
    failure::FailureClass,
    lifecycle::Phase,
    scheduling::{Key, Outcome},
};
use tokio::time::Instant;

use crate::{
    Gpu, Held, Model, Tenant, Ticket, Used,
    gpu::engine::{Endpoint, EngineSpec},
};

// === a request ===

/// http -> Router: let this request in.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Admit(pub Ticket);

/// Router -> Tenant: hold what this request may use against its tenant's limits.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reserve(pub Ticket);

/// Tenant -> Router: the tenant is within its limits.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reserved(pub Ticket);

/// Router -> Model: wait for your turn.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enqueue(pub Ticket);

/// Permit -> Model: the engine finished this request's prefill.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FirstToken(pub Key);

/// Permit -> Model: the request left the engine; its place is free.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SlotFreed {
    /// Which request.
    pub key: Key,
    /// How large it was, to learn the ratio of bytes to tokens.
    pub size: RequestSize,
    /// How it ended.
    pub outcome: Outcome,
    /// The engine did not answer at all.
    pub is_unreachable: bool,
    /// The request wants another turn, since its engine went away before the first token.
    pub retry: Option<Ticket>,
}

/// The scrape of an engine's metrics -> Model: so many requests wait inside the engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EngineWaiting {
    /// Which start of the engine.
    pub generation: Generation,
    /// How many; none if it did not say.
    pub waiting: Option<u64>,
}

/// Permit or abandoned ticket -> Tenant: what was held against what was used.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settle {
    /// What was held.
    pub held: Held,
    /// What was used. `None`: the request never reached an engine.
    pub used: Option<Used>,
}

// === places and engines ===

/// Model -> Router -> Gpu: I have work and no engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Demand {
    /// Who asks.
    pub model: ModelId,
    /// Whether a start of its engine changes how much memory is free.
    pub takes_memory: bool,
}

/// Gpu -> Router -> Model: start now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Grant {
    /// Whose turn it is.
    pub model: ModelId,
}

/// Model -> Gpu: start this engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Spawn {
    /// For whom.
    pub model: ModelId,
    /// Which start this is.
    pub generation: Generation,
    /// What to start.
    pub spec: Arc<EngineSpec>,
    /// Where news of it goes.
    pub news: WeakRecipient<EngineNews>,
}

/// Model -> Gpu: end this engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop {
    /// Whose engine.
    pub model: ModelId,
    /// Which start of it.
    pub generation: Generation,
}

/// Gpu -> Model: what became of an engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EngineNews {
    /// Which start this is about.
    pub generation: Generation,
    /// What happened.
    pub what: News,
}

/// What can become of an engine.
#[derive(Debug)]
pub enum News {
    /// Its start got further.
    Progressed {
        /// How far.
        phase: Phase,
        /// The engine's process, once it exists.
        pid: Option<i32>,
    },
    /// It answered its first token.
    Ready(Arc<Endpoint>),
    /// It ended, and nothing of it is left.
    Exited {
        /// Why.
        class: FailureClass,
        /// One sentence.
        reason: String,
        /// Its last words.
        log_tail: Vec<String>,
    },
}

/// Engine task or Model -> Gpu: this start is over, well or badly; the next model may start.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StartOver {
    /// Whose start.
    pub model: ModelId,
}

/// Engine task -> Gpu: nothing is left of this engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EngineGone {
    /// Whose engine.
    pub model: ModelId,
    /// Which start of it.
    pub generation: Generation,
}

// === before and after ===

/// serve -> Model: how far the installation of its engine and weights got.
#[derive(Message)]
#[rtype(result = "()")]
pub enum Prepared {
    /// It is at this step.
    Step(String),
    /// All is here.
    Done(Arc<EngineSpec>),
    /// It can't be had.
    Failed(String),
}

/// serve -> Router -> Models: let in nobody new.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Drain {
    /// When engines stop even if requests still run.
    pub deadline: Instant,
}

/// Tenant -> Router: nobody has used me for long; forget me. Router -> Tenant: done, you may go.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Retire(pub TenantId);

/// An actor to itself, once a tick: how long messages wait for it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Pulse(pub Instant);

/// Anybody -> any actor: your observable state `S`.
pub struct Snapshot<S>(PhantomData<fn() -> S>);

impl<S> Default for Snapshot<S> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<S: Send + 'static> Message for Snapshot<S> {
    type Result = S;
}

/// admin -> Router: who is there.
#[derive(Message)]
#[rtype(result = "Addresses")]
pub struct Roster;

/// Everybody the router knows.
pub struct Addresses {
    /// The tenants that exist now.
    pub tenants: Vec<Addr<Tenant>>,
    /// The models, in the configuration's order.
    pub models: Vec<Addr<Model>>,
    /// The GPU set.
    pub gpu: Addr<Gpu>,
}
