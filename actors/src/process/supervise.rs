//! One engine from its start to its end: one loop that waits for whatever comes first, and does one
//! thing at a time to the engine.

use std::{path::PathBuf, pin::Pin, sync::Arc};

use kvwarden_policy::{
    failure::FailureClass,
    lifecycle::{Phase, SleepLevel},
};

use super::{
    child::Child,
    end,
    handover::{Handover, HandoverState},
    prove,
    shim::ShimEvent,
    start::Started,
    startup,
    task::{EngineTask, Orders},
    tree::ProcessId,
};
use crate::engine::{Endpoint, EngineEnd, Launch, News, Order, Transition, saved_kv::Shelf};

/// What is done to an engine at the moment; one thing at a time.
type Work<'a> = Pin<Box<dyn Future<Output = Done> + 'a>>;

/// What came of it.
enum Done {
    Proved(Result<Endpoint, String>),
    FoundAsleep(Result<SleepLevel, String>),
    Probed(Result<(), String>),
    Changed(Transition, News),
    GivenUp,
    /// What is done with an engine before it is stopped is done.
    Prepared,
}

/// How far an engine has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Stopping,
}

/// Follows a running engine.
struct Supervisor<'a> {
    task: &'a EngineTask,
    launch: &'a Launch,
    token: String,
    record: PathBuf,
    handover: Handover,
    stage: Stage,
    endpoint: Arc<Endpoint>,
    work: Option<Work<'a>>,
}

/// Stays with the engine until nothing of it is left.
pub(super) async fn until_end(
    task: &EngineTask,
    started: Started,
    launch: &Launch,
    orders: &mut Orders,
) -> EngineEnd {
    let (mut child, mut supervisor) = Supervisor::new(task, started, launch);
    let mut overdue = std::pin::pin!(overdue(task, child.shim(), launch));
    // Why we ended it ourselves, if we did.
    let mut cause: Option<EngineEnd> = None;
    loop {
        let goes_on = cause.is_none();
        let is_starting = goes_on && supervisor.stage == Stage::Starting;
        let end = tokio::select! {
            event = child.next_event() => match (supervisor.on_event(event), cause) {
                (None, before) => {
                    cause = before;
                    continue;
                }
                (Some(end), Some(cause)) => {
                    return EngineEnd { log_tail: end.log_tail, ..cause };
                }
                (Some(end), None) => return end,
            },
            done = done(&mut supervisor.work), if goes_on => supervisor.on_done(done).await,
            end = &mut overdue, if is_starting && task.is_leader() => {
                // It may be somebody else's to end by now.
                overdue.set(self::overdue(task, child.shim(), launch));
                Some(end)
            }
            order = orders.recv(), if goes_on && supervisor.stage != Stage::Stopping => {
                supervisor.on_order(order).await;
                None
            }
        };
        if let Some(end) = end {
            supervisor.work = None;
            // Somebody else's to end; what comes of it we hear from its shim.
            if task.is_leader() {
                child.stop(end::grace(end.class, launch));
                cause = Some(end);
            }
        }
    }
}

/// Waits until the engine should have started: nothing moves in it, or it took too long in any case.
async fn overdue(task: &EngineTask, shim: Option<ProcessId>, launch: &Launch) -> EngineEnd {
    let patience = task.params.start_stall_timeout;
    let stalled = async {
        match shim {
            Some(shim) => startup::stalled(patience, shim, task.log()).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        last = stalled => {
            EngineEnd::new(FailureClass::StartStalled, startup::reason(patience, last))
        }
        () = tokio::time::sleep(launch.start_timeout) => {
            let reason = format!("not ready after {} s", launch.start_timeout.as_secs());
            EngineEnd::new(FailureClass::StartTimeout, reason)
        }
    };
    end::of_command(end, None, launch)
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

// === impl Supervisor ===

impl<'a> Supervisor<'a> {
    /// Begins with a proof.
    fn new(task: &'a EngineTask, started: Started, launch: &'a Launch) -> (Child, Self) {
        let Started {
            child,
            token,
            record,
            handover,
        } = started;
        let mut supervisor = Self {
            task,
            launch,
            token,
            record,
            stage: Stage::Starting,
            endpoint: Arc::new(handover.endpoint.clone()),
            handover,
            work: None,
        };
        supervisor.work = Some(supervisor.proof());
        (child, supervisor)
    }

    fn proof(&self) -> Work<'a> {
        let (task, launch, endpoint) = (self.task, self.launch, self.endpoint.clone());
        match self.handover.state {
            HandoverState::Starting => {
                Box::pin(async move { Done::Proved(task.prove(&endpoint, launch).await) })
            }
            HandoverState::Serving | HandoverState::Away => {
                let token = self.token.clone();
                Box::pin(
                    async move { Done::Proved(task.still_works(&endpoint, &token, launch).await) },
                )
            }
            HandoverState::Asleep { level, .. } => Box::pin(async move {
                Done::FoundAsleep(prove::still_sleeps(&endpoint).await.map(|()| level))
            }),
        }
    }

    /// What the shim says; the end, if that is it.
    fn on_event(&self, event: Option<ShimEvent>) -> Option<EngineEnd> {
        match event {
            Some(ShimEvent::Started { pid }) => {
                let (phase, pid) = (Phase::Loading, Some(pid));
                self.task.tell(News::Progressed { phase, pid });
                None
            }
            Some(ShimEvent::Failed { reason }) => {
                Some(EngineEnd::new(FailureClass::NotInstalled, reason))
            }
            Some(ShimEvent::Exited {
                exit,
                log_tail,
                recent,
            }) => Some(match self.stage {
                Stage::Starting => {
                    let end = end::of_start(exit, log_tail, recent);
                    end::of_command(end, exit.code, self.launch)
                }
                Stage::Serving | Stage::Stopping => end::of_service(exit, log_tail, recent),
            }),
            None => Some(EngineEnd::new(
                FailureClass::Killed,
                "the engine's shim was killed",
            )),
        }
    }

    /// What comes of the work; the end, if that is what follows.
    async fn on_done(&mut self, done: Done) -> Option<EngineEnd> {
        match done {
            Done::Proved(Ok(proved)) => {
                self.stage = Stage::Serving;
                self.endpoint = Arc::new(proved);
                self.handover.endpoint = Endpoint::clone(&self.endpoint);
                self.note(HandoverState::Serving).await;
                self.task.tell(News::Ready(self.endpoint.clone()));
                None
            }
            Done::FoundAsleep(Ok(level)) => {
                self.stage = Stage::Serving;
                let endpoint = self.endpoint.clone();
                self.task.tell(News::FoundAsleep { level, endpoint });
                None
            }
            Done::Proved(Err(reason)) | Done::FoundAsleep(Err(reason)) => {
                let end = EngineEnd::new(FailureClass::Canary, reason);
                Some(end::of_command(end, None, self.launch))
            }
            Done::Changed(what, news) => {
                if let Some(state) = self.state_after(what, &news) {
                    self.note(state).await;
                }
                self.task.tell(news);
                None
            }
            Done::Probed(Ok(())) => {
                self.task.tell(News::Proved);
                None
            }
            Done::Probed(Err(reason)) => {
                tracing::warn!(engine = %self.task.spawn.engine, reason, "asked in vain");
                None
            }
            Done::GivenUp => {
                let reason = "nothing moved in it, nor when it was asked for a token";
                Some(EngineEnd::new(FailureClass::Hung, reason))
            }
            Done::Prepared => Some(EngineEnd::new(FailureClass::Stopped, "stopped")),
        }
    }

    /// Begins what is ordered. Whoever is busy need not prove that, too.
    async fn on_order(&mut self, order: Option<Order>) {
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
        let (task, launch, endpoint) = (self.task, self.launch, self.endpoint.clone());
        let token = self.token.clone();
        match (order, self.stage) {
            (Some(Order::Probe), _) => {
                Box::pin(
                    async move { Done::Probed(prove::only_slow(&endpoint, &token, launch).await) },
                )
            }
            (Some(Order::GiveUp), _) => Box::pin(std::future::ready(Done::GivenUp)),
            (Some(Order::Change(what)), _) => {
                Box::pin(
                    async move { Done::Changed(what, task.change(what, &endpoint, &token).await) },
                )
            }
            (Some(Order::Stop) | None, Stage::Serving) => {
                self.stage = Stage::Stopping;
                Box::pin(async move {
                    if let Some(shelf) = Shelf::of(launch, task.params.max_saved_kv) {
                        task.tell(News::Saved(shelf.save(&endpoint).await));
                    }
                    Done::Prepared
                })
            }
            (Some(Order::Stop) | None, Stage::Starting | Stage::Stopping) => {
                Box::pin(std::future::ready(Done::Prepared))
            }
        }
    }

    /// Where the engine stands for whoever adopts it once it was told to change; none if that is
    /// uncertain.
    fn state_after(&self, what: Transition, news: &News) -> Option<HandoverState> {
        match (what, news) {
            (Transition::Demote { to, .. }, News::Demoted) => {
                let freed = self.task.spawn.spec.needs().freed(SleepLevel::Ready, to);
                Some(HandoverState::Asleep {
                    level: to,
                    bytes: self.handover.bytes.saturating_sub(freed),
                })
            }
            (Transition::Verify, News::Verified) => Some(HandoverState::Serving),
            (Transition::Demote { .. } | Transition::Wake { .. } | Transition::Verify, _) => None,
        }
    }

    async fn note(&mut self, state: HandoverState) {
        self.task
            .note(&self.record, &mut self.handover, state)
            .await;
    }
}
