//! What all actors say of themselves at one moment.
//!
//! Actors answer in microseconds, so one that does not answer in two seconds is stuck, or the machine
//! is. An [`Overview`] of everybody says who did not; a [partial](Overview::partial) one has what the
//! others said. Neither takes such an actor for one that has ended.

use std::time::Duration;

use actix::{Actor, Addr, Handler, MailboxError, Message, dev::ToEnvelope};
use futures_util::future::{join, join_all};
use kvwarden_policy::{ModelId, TenantId};
use tokio::time::{Instant, timeout_at};

use crate::{
    Router,
    gpu::GpuState,
    model::ModelState,
    protocol::{ListActors, Snapshot},
    router::RouterState,
    tenant::TenantState,
};

/// How long an actor has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What every actor says of itself at one moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The router.
    pub router: RouterState,
    /// The GPU set; empty if it did not answer.
    pub gpu: GpuState,
    /// The models, in the configuration's order.
    pub models: Vec<ModelState>,
    /// The tenants that exist, by name.
    pub tenants: Vec<TenantState>,
    /// Who did not answer in time, and is missing above.
    pub unresponsive: Vec<ActorName>,
}

/// An actor, as errors, metrics and operators call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActorName {
    /// The router.
    Router,
    /// The GPU set.
    Gpu,
    /// A model.
    Model(ModelId),
    /// A tenant.
    Tenant(TenantId),
}

/// Why there is no overview.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverviewError {
    /// An actor is stuck, or has too much to do.
    #[error("actor {actor} did not answer within {} s", after.as_secs_f64())]
    Timeout {
        /// Which one.
        actor: ActorName,
        /// How long it was waited for.
        after: Duration,
    },
    /// The actors have ended: this process is at its end.
    #[error("actor {0} has ended")]
    Ended(ActorName),
}

// === impl ActorName ===

impl std::fmt::Display for ActorName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Router => f.write_str("router"),
            Self::Gpu => f.write_str("gpu"),
            Self::Model(id) => write!(f, "model:{id}"),
            Self::Tenant(id) => write!(f, "tenant:{id}"),
        }
    }
}

// === impl Overview ===

impl Overview {
    /// Asks all actors.
    ///
    /// # Errors
    /// When one of them does not answer in two seconds.
    pub async fn of(router: &Addr<Router>) -> Result<Self, OverviewError> {
        let overview = Self::partial(router).await?;
        match overview.unresponsive.first() {
            Some(actor) => Err(OverviewError::late(actor.clone())),
            None => Ok(overview),
        }
    }

    /// Asks all actors, and takes what comes within two seconds.
    ///
    /// # Errors
    /// When the router does not answer, who alone knows the others.
    pub async fn partial(router: &Addr<Router>) -> Result<Self, OverviewError> {
        let by = Instant::now() + PATIENCE;
        let (actors, state) = join(
            answer(ActorName::Router, by, router.send(ListActors)),
            ask(ActorName::Router, router, by),
        )
        .await;
        let (actors, state) = (actors?, state?);
        let models = actors.models.iter();
        let models = models.map(|(id, model)| ask(ActorName::Model(id.clone()), model, by));
        let tenants = actors.tenants.iter();
        let tenants = tenants.map(|(id, tenant)| ask(ActorName::Tenant(id.clone()), tenant, by));
        let gpu = ask(ActorName::Gpu, &actors.gpu, by);
        let (gpu, (models, tenants)) = join(gpu, join(join_all(models), join_all(tenants))).await;
        let mut unresponsive = Vec::new();
        let gpu = match gpu {
            Err(ended @ OverviewError::Ended(_)) => return Err(ended),
            gpu => present([gpu], &mut unresponsive).pop(),
        };
        let mut overview = Self {
            router: state,
            gpu: gpu.unwrap_or_default(),
            models: present(models, &mut unresponsive),
            tenants: present(tenants, &mut unresponsive),
            unresponsive,
        };
        overview.tenants.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(overview)
    }

    /// The models that did not answer.
    pub fn unresponsive_models(&self) -> impl Iterator<Item = &ModelId> {
        self.unresponsive.iter().filter_map(|actor| match actor {
            ActorName::Model(id) => Some(id),
            ActorName::Router | ActorName::Gpu | ActorName::Tenant(_) => None,
        })
    }
}

// === impl OverviewError ===

impl OverviewError {
    /// This actor did not answer in the time that each has.
    #[must_use]
    pub const fn late(actor: ActorName) -> Self {
        Self::Timeout {
            actor,
            after: PATIENCE,
        }
    }
}

async fn ask<A, S>(name: ActorName, actor: &Addr<A>, by: Instant) -> Result<S, OverviewError>
where
    A: Actor + Handler<Snapshot<S>>,
    A::Context: ToEnvelope<A, Snapshot<S>>,
    S: Send + 'static,
    Snapshot<S>: Message<Result = S>,
{
    answer(name, by, actor.send(Snapshot::default())).await
}

async fn answer<S>(
    name: ActorName,
    by: Instant,
    asked: impl Future<Output = Result<S, MailboxError>>,
) -> Result<S, OverviewError> {
    match timeout_at(by, asked).await {
        Ok(Ok(state)) => Ok(state),
        Ok(Err(MailboxError::Closed | MailboxError::Timeout)) => Err(OverviewError::Ended(name)),
        Err(_) => Err(OverviewError::late(name)),
    }
}

/// Those that answered. One that has ended meanwhile (a tenant that was forgotten) is left out.
fn present<S>(
    answers: impl IntoIterator<Item = Result<S, OverviewError>>,
    unresponsive: &mut Vec<ActorName>,
) -> Vec<S> {
    let answers = answers.into_iter();
    let present = answers.filter_map(|answer| match answer {
        Ok(state) => Some(state),
        Err(OverviewError::Ended(_)) => None,
        Err(OverviewError::Timeout { actor, .. }) => {
            unresponsive.push(actor);
            None
        }
    });
    present.collect()
}
