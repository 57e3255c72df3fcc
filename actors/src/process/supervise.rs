//! The life of one engine in our care, from its start to its end: one loop that waits for whatever
//! comes first, and does one thing at a time to the engine.

use std::{path::PathBuf, pin::Pin, sync::Arc};

use kvwarden_policy::{failure::FailureClass, lifecycle::Rung};
use tokio::sync::mpsc;

use super::{
    child::Child,
    handover::{Handover, HandoverState},
    start::Ward,
    task::{End, Run, probe, still_sleeps},
};
use crate::engine::{Endpoint, Launch};
use crate::protocol::{News, Order, Shift};

/// What an engine is told to do.
pub(super) type Orders = mpsc::UnboundedReceiver<Order>;

/// What is done to an engine at the moment; one thing at a time.
type Work<'a> = Pin<Box<dyn Future<Output = Done> + 'a>>;

/// What came of it.
pub(super) enum Done {
    Proved(Result<Endpoint, String>),
    FoundAsleep(Rung),
    Probed(Result<(), String>),
    Shifted(Shift, News),
    GivenUp,
    Parted,
}

/// How far an engine's life has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Starting,
    Serving,
    Parting,
}

/// A running engine.
struct Life<'a> {
    run: &'a Run,
    launch: &'a Launch,
    token: String,
    record: PathBuf,
    handover: Handover,
    stage: Stage,
    endpoint: Arc<Endpoint>,
    work: Option<Work<'a>>,
}

/// The end of the work; never, if there is none.
async fn done(work: &mut Option<Work<'_>>) -> Done {
    match work {
        Some(running) => {
            let done = running.await;
            *work = None;
            done
        }
        None => std::future::pending().await,
    }
}

impl Run {
    /// Stays with the engine until nothing of it is left.
    pub(super) async fn follow(&self, ward: Ward, launch: &Launch, orders: &mut Orders) -> End {
        let (mut child, mut life) = Life::of(self, ward, launch);
        let mut overdue = std::pin::pin!(self.overdue(child.shim(), launch));
        // Why we ended it ourselves, if we did.
        let mut cause: Option<End> = None;
        loop {
            let goes_on = cause.is_none();
            let is_starting = goes_on && life.stage == Stage::Starting;
            let end = tokio::select! {
                event = child.next_event() => match (self.heard(event, life.stage), cause) {
                    (None, before) => {
                        cause = before;
                        continue;
                    }
                    (Some(end), Some(cause)) => return End { log_tail: end.log_tail, ..cause },
                    (Some(end), None) => return end,
                },
                done = done(&mut life.work), if goes_on => life.came(done).await,
                end = &mut overdue, if is_starting && self.is_leader() => {
                    // It may be somebody else's to end by now.
                    overdue.set(self.overdue(child.shim(), launch));
                    Some(end)
                }
                order = orders.recv(), if goes_on && life.stage != Stage::Parting => {
                    life.obey(order).await;
                    None
                }
            };
            if let Some(end) = end {
                life.work = None;
                // Somebody else's to end; what comes of it we hear from its shim.
                if self.is_leader() {
                    child.stop(end.grace(launch));
                    cause = Some(end);
                }
            }
        }
    }
}

// === impl Life ===

impl<'a> Life<'a> {
    /// Begins with a proof.
    fn of(run: &'a Run, ward: Ward, launch: &'a Launch) -> (Child, Self) {
        let Ward {
            child,
            token,
            record,
            handover,
        } = ward;
        let endpoint = Arc::new(handover.endpoint.clone());
        let mut life = Self {
            run,
            launch,
            token,
            record,
            handover,
            stage: Stage::Starting,
            endpoint: endpoint.clone(),
            work: None,
        };
        match life.handover.state {
            HandoverState::Starting => {
                let endpoint = Endpoint::clone(&endpoint);
                life.work = Some(Box::pin(run.prove(endpoint, launch)));
            }
            HandoverState::Serving | HandoverState::Away => {
                let token = life.token.clone();
                life.work = Some(Box::pin(run.still_works(endpoint, token, launch)));
            }
            HandoverState::Asleep { rung, .. } => {
                life.work = Some(Box::pin(still_sleeps(endpoint, rung)));
            }
        }
        (child, life)
    }

    /// What comes of the work; the end, if that is what follows.
    async fn came(&mut self, done: Done) -> Option<End> {
        match done {
            Done::Proved(Ok(proved)) => {
                self.stage = Stage::Serving;
                self.endpoint = Arc::new(proved);
                self.handover.endpoint = Endpoint::clone(&self.endpoint);
                self.note(HandoverState::Serving).await;
                self.run.tell(News::Ready(self.endpoint.clone()));
                None
            }
            Done::FoundAsleep(rung) => {
                self.stage = Stage::Serving;
                let endpoint = self.endpoint.clone();
                self.run.tell(News::FoundAsleep { rung, endpoint });
                None
            }
            Done::Proved(Err(reason)) => Some(End::new(FailureClass::Canary, reason)),
            Done::Shifted(what, news) => {
                let whole = self.handover.bytes;
                if let Some(state) = self.run.state_after(what, &news, whole) {
                    self.note(state).await;
                }
                self.run.tell(news);
                None
            }
            Done::Probed(Ok(())) => {
                self.run.tell(News::Proved);
                None
            }
            Done::Probed(Err(reason)) => {
                tracing::warn!(engine = %self.run.spawn.engine, reason, "asked in vain");
                None
            }
            Done::GivenUp => {
                let reason = "nothing moved in it, nor when it was asked for a token";
                Some(End::new(FailureClass::Hung, reason))
            }
            Done::Parted => Some(End::new(FailureClass::Stopped, "stopped")),
        }
    }

    /// Begins what is ordered. Whoever is busy need not prove that, too.
    async fn obey(&mut self, order: Option<Order>) {
        let is_probe = order == Some(Order::Probe);
        if is_probe && self.work.is_some() {
            return;
        }
        if !is_probe {
            self.note(HandoverState::Away).await;
        }
        self.work = Some(self.work_of(order));
    }

    fn work_of(&mut self, order: Option<Order>) -> Work<'a> {
        let (run, launch, endpoint) = (self.run, self.launch, self.endpoint.clone());
        match (order, self.stage) {
            (Some(Order::Probe), _) => Box::pin(probe(endpoint, self.token.clone(), launch)),
            (Some(Order::GiveUp), _) => Box::pin(std::future::ready(Done::GivenUp)),
            (Some(Order::Shift(what)), _) => {
                let shifter = run.shifter(endpoint, &self.token);
                Box::pin(async move {
                    run.params.leadership.until_unused(&run.spawn.engine).await;
                    Done::Shifted(what, shifter.shift(what).await)
                })
            }
            (Some(Order::Stop) | None, Stage::Serving) => {
                self.stage = Stage::Parting;
                Box::pin(run.part(endpoint, launch))
            }
            (Some(Order::Stop) | None, Stage::Starting | Stage::Parting) => {
                Box::pin(std::future::ready(Done::Parted))
            }
        }
    }

    async fn note(&mut self, state: HandoverState) {
        self.run.note(&self.record, &mut self.handover, state).await;
    }
}
