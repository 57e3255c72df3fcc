//! Every message between actors, in the order a request meets them.
//!
//! Handlers return `()` and never await; only [`Snapshot`], [`ListActors`], [`Locate`] and
//! [`PlaceInLine`] are questions. A message about an engine carries its [`Generation`].

use std::{marker::PhantomData, sync::Arc};

use actix::{Addr, Message, MessageResponse};
use kvwarden_policy::{
    DeviceId, Generation, ModelId, TenantId,
    cost::RequestSize,
    failure::FailureClass,
    lifecycle::{SleepLevel, State},
    residency::{self, Needs},
    scheduling::{Key, Outcome},
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    Gpu, Held, Model, Spent, Tenant, Ticket,
    engine::{EngineSpec, Order},
    gpu, model,
    router::Unnamed,
    tenant,
};

pub use crate::engine::{EngineGone, EngineNews, Spawn};

// === a request ===

/// http -> Router: let this request in.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Admit(pub Ticket);

/// Router -> Tenant: hold what this request may use against your limits, and let its model have it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reserve {
    /// The request.
    pub ticket: Ticket,
    /// Its model.
    pub model: Addr<Model>,
}

/// Tenant -> Model: this request is within its tenant's limits and waits for its turn.
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

/// The scrape of an engine's metrics -> Model: what it says of itself.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EngineSays {
    /// Which engine.
    pub engine: ModelId,
    /// Which start of it.
    pub generation: Generation,
    /// Requests that wait inside it; none if it did not say.
    pub waiting: Option<u64>,
    /// A number that changes as it computes; none if it did not say.
    pub work: Option<u64>,
}

/// Model -> itself: the prompt that the next one waits for has probably been computed by now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake;

/// Permit or abandoned ticket -> Tenant: what was held against what was used.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settle {
    /// What was held.
    pub held: Held,
    /// What was used. `None`: the request never reached an engine.
    pub spent: Option<Spent>,
}

// === places and engines ===

/// Model -> Gpu: an engine of mine that may want memory.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Register {
    /// Its name: the model's, or `model#2` for a second engine of it.
    pub engine: ModelId,
    /// What it takes.
    pub needs: Needs,
}

/// Model -> Router -> Gpu: where an engine stands and how much it is wanted. Said when that changes,
/// and at every tick.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Demand {
    /// Which engine.
    pub engine: ModelId,
    /// What the planner goes by.
    pub demand: residency::Demand,
}

/// Gpu -> Router -> Model: start or wake now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Grant {
    /// Which engine.
    pub engine: ModelId,
    /// Names this order in [`residency::Demand::order`].
    pub order: u64,
    /// Where.
    pub devices: Vec<DeviceId>,
    /// Nobody has to want it yet: it is loaded before its model is asked.
    pub is_prefetch: bool,
    /// Take over the engine of that generation instead, which an earlier kvwarden left there.
    pub inherited: Option<Generation>,
}

/// Gpu -> Router -> Model: others need the memory.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reclaim {
    /// Which engine.
    pub engine: ModelId,
    /// Names this order in [`residency::Demand::order`].
    pub order: u64,
    /// How deep it shall go.
    pub to: SleepLevel,
}

/// Model -> Gpu: an order to a live engine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Signal {
    /// Which engine.
    pub engine: ModelId,
    /// Which start of it.
    pub generation: Generation,
    /// What it shall do.
    pub what: Order,
}

/// admin -> Router -> Model: what an operator wants.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct SetTarget {
    /// The model, by its canonical name.
    pub model: ModelId,
    /// What shall become of it.
    pub target: Target,
}

/// What an operator can want of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// It shall serve as soon as there is room.
    Load,
    /// It shall go this deep once its requests have ended; cold is to unload it.
    Sleep(SleepLevel),
    /// It shall stay where it is, or not any more.
    Pin(bool),
}

impl Target {
    /// Nothing is left to do for it: the engine serves or, as deep as it can, does not.
    pub(crate) fn is_reached_by(self, state: State) -> bool {
        match self {
            Self::Load => state.admits(),
            Self::Sleep(_) => matches!(
                state,
                State::Cold | State::Asleep { .. } | State::Broken { .. }
            ),
            Self::Pin(_) => true,
        }
    }
}

// === before and after ===

/// serve -> Router: who is let in and what is served from now on, at the start and whenever the
/// configuration is read again. Who was there and is not in it leaves.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Configure {
    /// The tenants that it names.
    pub tenants: Vec<(TenantId, tenant::Limits)>,
    /// All others.
    pub unnamed: Unnamed,
    /// The models, in its order.
    pub models: Vec<model::Params>,
}

/// Router -> Tenant: what you may use from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetLimits(pub tenant::Params);

/// Router -> Model: what a tenant may use from now on; what waits of it waits by that.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct UpdateShare {
    /// Whose.
    pub tenant: TenantId,
    /// What it may use.
    pub params: tenant::Params,
}

/// Router -> Model: what the configuration says of you now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reconfigure(pub model::Params);

/// Router -> Model: the configuration has you no more. Serve whom you let in, then say [`Removed`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct Remove;

/// Model -> Router: nothing of me is left; forget me. Router -> Model: done, you may go.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Removed(pub ModelId);

/// Model -> Gpu: this engine is no more, and no other takes its name.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Unregister(pub ModelId);

/// serve -> Gpu: how to run engines from now on; each one from its next start.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetTuning(pub gpu::Tuning);

/// serve -> Model: how far the installation of an engine and its weights got.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Prepared {
    /// Which of the model's engines.
    pub engine: ModelId,
    /// By which [`revision`](model::EngineParams::revision) of its configuration.
    pub revision: u64,
    /// How far.
    pub how: Preparation,
}

/// How far an installation got.
#[derive(Debug)]
pub enum Preparation {
    /// It is at this step.
    Step(String),
    /// All is here.
    Done(Arc<EngineSpec>),
    /// It can't be had. A download that failed is tried again.
    Failed {
        /// What kind of failure that is.
        class: FailureClass,
        /// Why, and what to do.
        reason: String,
    },
}

/// serve -> Router -> Models: let in nobody new.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Drain {
    /// When engines stop even if requests still run.
    pub deadline: Instant,
}

/// serve -> Router -> Models: another process is in charge of the engines. What they can serve as they
/// are is served; what would need an engine to be started is refused.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Resign;

/// Tenant -> Router: nobody has used me for long; forget me. Router -> Tenant: done, you may go.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Expire(pub TenantId);

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
pub struct ListActors;

/// http -> Router: who is the model of this name, by any of its names.
#[derive(Message)]
#[rtype(result = "Option<Addr<Model>>")]
pub struct Locate(pub String);

/// http -> Model: where a request of this tenant stands that came at this time.
#[derive(Message)]
#[rtype(result = "Standing")]
pub struct PlaceInLine {
    /// Whose request it is.
    pub tenant: TenantId,
    /// When it was sent here.
    pub since: Instant,
    /// More than so many requests ahead of it are not counted.
    pub most: usize,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, MessageResponse)]
pub struct Standing {
    /// Where the best engine of its model stands.
    pub state: State,
    /// Requests of its own tenant that came before it and wait as well.
    pub ahead: usize,
}

/// Everybody the router knows.
pub struct Addresses {
    /// The tenants that exist now.
    pub tenants: Vec<(TenantId, Addr<Tenant>)>,
    /// The models, in the configuration's order.
    pub models: Vec<(ModelId, Addr<Model>)>,
    /// The GPU set.
    pub gpu: Addr<Gpu>,
}
