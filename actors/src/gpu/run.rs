//! The life of one engine: spawn it, see it become ready, see it end. One task per engine, which
//! owns the connection to its shim; nobody else stops it.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use actix::{Addr, Recipient};
use kvwarden_policy::{
    failure::FailureClass,
    lifecycle::{Phase, Rung},
    stall,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Gpu, Params, attached,
    collector::Collector,
    engine::{Endpoint, EngineSpec, Launch},
    handover::{Handover, Standing},
    orphans::{self, Orphan},
    probe::Probe,
    rungs,
    seats::Needs,
    shift::Shifter,
    shim::ShimEvent,
    snapshot::{self, Shelf},
    startup,
    tree::{ProcessId, processor_times},
    vram::Reading,
    ward::Ward,
};
use crate::protocol::{EngineGone, EngineNews, News, Order, Shift, Spawn};

/// How long an engine that served may take to prove that it still does. It may be busy with what the
/// clients of an earlier kvwarden left in it.
const STILL_WORKS: Duration = Duration::from_secs(20);

/// The part of a processor that a process takes which computes: a tenth. Where it hangs, none takes
/// more than a twentieth, for `/metrics` above all; among twenty busy processes of others the one
/// that computes took a third.
const COMPUTES: u32 = 10;

/// What an engine that does not work gets between SIGTERM and SIGKILL: time to give back what the
/// kernel does not, such as files in /dev/shm.
const BROKEN_GRACE: Duration = Duration::from_secs(2);

/// One engine to run.
pub(super) struct Run {
    pub(super) params: Params,
    pub(super) spawn: Spawn,
    /// What CUDA calls the devices it was given.
    pub(super) gpus: Vec<String>,
    /// What it is charged for on each device.
    pub(super) bytes: u64,
    /// What an earlier kvwarden left of it.
    pub(super) orphan: Option<Orphan>,
    pub(super) gpu: Addr<Gpu>,
    pub(super) readings: watch::Receiver<Reading>,
}

/// What an engine is told to do.
pub(super) type Orders = mpsc::UnboundedReceiver<Order>;

/// What is done to an engine at the moment; one thing at a time.
type Work<'a> = Pin<Box<dyn Future<Output = Done> + 'a>>;

/// What came of it.
enum Done {
    Proved(Result<Endpoint, String>),
    Probed(Result<(), String>),
    Shifted(Shift, News),
    GivenUp,
    Parted,
}

/// How far an engine's life has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Parting,
}

/// What is known of an engine that lives.
struct Life {
    stage: Stage,
    endpoint: Arc<Endpoint>,
    record: PathBuf,
    handover: Handover,
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

/// How an engine ended.
pub(super) struct End {
    pub(super) class: FailureClass,
    pub(super) reason: String,
    pub(super) log_tail: Vec<String>,
}

impl End {
    pub(super) fn new(class: FailureClass, reason: impl Into<String>) -> Self {
        Self {
            class,
            reason: reason.into(),
            log_tail: Vec::new(),
        }
    }

    /// How long an engine may take to end for this reason.
    fn grace(&self, launch: &Launch) -> Duration {
        use FailureClass::{Canary, Hung, StartStalled};
        if matches!(self.class, Canary | Hung | StartStalled) {
            BROKEN_GRACE.min(launch.stop_grace)
        } else {
            launch.stop_grace
        }
    }
}

impl Run {
    /// Runs the engine until nothing of it is left. `orders` is how it is told what to do.
    pub(super) async fn live(self, mut orders: Orders) {
        let end = match self.spawn.spec.clone().as_ref() {
            EngineSpec::Child(launch) => self.supervise(launch, &mut orders).await,
            EngineSpec::Attached(attached) => attached::watch(&self, &mut orders, attached).await,
        };
        self.gpu.do_send(EngineGone {
            engine: self.spawn.engine.clone(),
            generation: self.spawn.generation,
        });
        let End {
            class,
            reason,
            log_tail,
        } = end;
        let reason = match class.advice() {
            Some(advice) => format!("{reason}; {advice}"),
            None => reason,
        };
        self.tell(News::Exited {
            class,
            reason,
            log_tail,
        });
    }

    /// Reports to the model, if it still lives.
    pub(super) fn tell(&self, what: News) {
        let news: Option<Recipient<EngineNews>> = self.spawn.news.upgrade();
        if let Some(news) = news {
            news.do_send(EngineNews {
                engine: self.spawn.engine.clone(),
                generation: self.spawn.generation,
                what,
            });
        }
    }

    async fn supervise(&self, launch: &Launch, orders: &mut Orders) -> End {
        if let Err(error) = snapshot::prepare(launch) {
            let reason = format!("cannot make {}: {error}", launch.kv_dir.display());
            return End::new(FailureClass::NotInstalled, reason);
        }
        let _collector = Collector::of(launch, &self.params.charge);
        let ward = match &self.orphan {
            Some(orphan) if orphan.generation() == self.spawn.generation => {
                self.adopt(orphan, launch).await
            }
            Some(orphan) => {
                orphan.clone().end().await;
                self.start(launch).await
            }
            None => self.start(launch).await,
        };
        match ward {
            Ok(ward) => {
                let record = ward.record.clone();
                let end = self.follow(ward, launch, orders).await;
                if self.is_in_charge() {
                    orphans::forget(&record);
                }
                end
            }
            Err(end) => end,
        }
    }

    async fn follow(&self, ward: Ward, launch: &Launch, orders: &mut Orders) -> End {
        let Ward {
            mut child,
            token,
            record,
            handover,
        } = ward;
        let deadline = Instant::now() + launch.start_timeout;
        let mut stalled = std::pin::pin!(self.stalled(child.shim()));
        let endpoint = Arc::new(handover.endpoint.clone());
        let mut work = self.trial(handover.standing, &endpoint, &token, launch);
        let mut life = Life {
            stage: match work {
                Some(_) => Stage::Starting,
                None => Stage::Serving,
            },
            endpoint,
            record,
            handover,
        };
        // Why we ended it ourselves, if we did.
        let mut cause: Option<End> = None;
        loop {
            let end = tokio::select! {
                event = child.next_event() => match (self.heard(event, life.stage), cause) {
                    (None, before) => {
                        cause = before;
                        continue;
                    }
                    (Some(end), Some(cause)) => return End { log_tail: end.log_tail, ..cause },
                    (Some(end), None) => return end,
                },
                done = done(&mut work), if cause.is_none() => {
                    match self.did(done, &mut life).await {
                        Some(end) => end,
                        None => continue,
                    }
                }
                reason = &mut stalled,
                    if life.stage == Stage::Starting && cause.is_none() && self.is_in_charge() =>
                {
                    stalled.set(self.stalled(child.shim()));
                    End::new(FailureClass::StartStalled, reason)
                }
                () = tokio::time::sleep_until(deadline),
                    if life.stage == Stage::Starting && cause.is_none() && self.is_in_charge() =>
                {
                    let reason = format!("not ready after {} s", launch.start_timeout.as_secs());
                    End::new(FailureClass::StartTimeout, reason)
                }
                order = orders.recv(), if life.stage != Stage::Parting && cause.is_none() => {
                    let is_probe = order == Some(Order::Probe);
                    if is_probe && work.is_some() {
                        continue;
                    }
                    if !is_probe {
                        self.note(&life.record, &mut life.handover, Standing::Away).await;
                    }
                    work = Some(self.obey(order, &mut life, &token, launch));
                    continue;
                }
            };
            work = None;
            // Somebody else's to end; what comes of it we hear from its shim.
            if self.is_in_charge() {
                child.stop(end.grace(launch));
                cause = Some(end);
            }
        }
    }

    /// Takes in what came of the work, and returns why the engine has to end, if it has to.
    async fn did(&self, done: Done, life: &mut Life) -> Option<End> {
        match done {
            Done::Proved(Ok(proved)) => {
                life.stage = Stage::Serving;
                life.endpoint = Arc::new(proved);
                life.handover.endpoint = Endpoint::clone(&life.endpoint);
                let serving = Standing::Serving;
                self.note(&life.record, &mut life.handover, serving).await;
                self.tell(News::Ready(life.endpoint.clone()));
            }
            Done::Proved(Err(reason)) => return Some(End::new(FailureClass::Canary, reason)),
            Done::Shifted(what, news) => {
                let whole = life.handover.bytes;
                if let Some(standing) = self.standing_after(what, &news, whole) {
                    self.note(&life.record, &mut life.handover, standing).await;
                }
                self.tell(news);
            }
            Done::Probed(Ok(())) => self.tell(News::Proved),
            Done::Probed(Err(reason)) => {
                tracing::warn!(engine = %self.spawn.engine, reason, "asked in vain");
            }
            Done::GivenUp => {
                let reason = "nothing moved in it, nor when it was asked for a token";
                return Some(End::new(FailureClass::Hung, reason));
            }
            Done::Parted => return Some(End::new(FailureClass::Stopped, "stopped")),
        }
        None
    }

    /// What an engine has to go through before it serves; nothing, if it sleeps.
    fn trial<'a>(
        &'a self,
        standing: Standing,
        endpoint: &Arc<Endpoint>,
        token: &str,
        launch: &'a Launch,
    ) -> Option<Work<'a>> {
        match standing {
            Standing::Starting => Some(Box::pin(self.prove(Endpoint::clone(endpoint), launch))),
            Standing::Serving | Standing::Away => {
                let proof = self.still_works(endpoint.clone(), token.to_owned(), launch);
                Some(Box::pin(proof))
            }
            Standing::Asleep { rung, .. } => {
                let endpoint = endpoint.clone();
                self.tell(News::FoundAsleep { rung, endpoint });
                None
            }
        }
    }

    fn is_in_charge(&self) -> bool {
        self.params.charge.is_held()
    }

    /// Comes back with a sentence once nothing moves in the engine that starts.
    async fn stalled(&self, shim: Option<ProcessId>) -> String {
        let Some(shim) = shim else {
            return std::future::pending().await;
        };
        let patience = self.params.start_stall_timeout;
        let last = startup::stalled(patience, shim, self.log()).await;
        startup::reason(patience, last)
    }

    /// How the engine ended, if that is what its shim says.
    fn heard(&self, event: Option<ShimEvent>, stage: Stage) -> Option<End> {
        match event {
            Some(ShimEvent::Started { pid }) => {
                let (phase, pid) = (Phase::Loading, Some(pid));
                self.tell(News::Progressed { phase, pid });
                None
            }
            Some(ShimEvent::Failed { reason }) => {
                Some(End::new(FailureClass::NotInstalled, reason))
            }
            Some(ShimEvent::Exited {
                code,
                signal,
                class,
                log_tail,
            }) => {
                let is_starting = stage == Stage::Starting;
                let class = if is_starting {
                    class
                } else {
                    after_ready(class)
                };
                Some(End {
                    reason: describe(class, code, signal, &log_tail),
                    class,
                    log_tail,
                })
            }
            None => Some(End::new(
                FailureClass::Killed,
                "the engine's shim was killed",
            )),
        }
    }

    /// The work that an order makes.
    fn obey<'a>(
        &'a self,
        order: Option<Order>,
        life: &mut Life,
        token: &str,
        launch: &'a Launch,
    ) -> Work<'a> {
        let endpoint = &life.endpoint;
        match (order, life.stage) {
            (Some(Order::Probe), _) => Box::pin(probe(endpoint.clone(), token.to_owned(), launch)),
            (Some(Order::GiveUp), _) => Box::pin(std::future::ready(Done::GivenUp)),
            (Some(Order::Shift(what)), _) => {
                let shifter = self.shifter(endpoint.clone(), token);
                Box::pin(async move {
                    self.params.charge.vacated(&self.spawn.engine).await;
                    Done::Shifted(what, shifter.shift(what).await)
                })
            }
            (Some(Order::Stop) | None, Stage::Serving) => {
                life.stage = Stage::Parting;
                Box::pin(self.part(endpoint.clone(), launch))
            }
            (Some(Order::Stop) | None, Stage::Starting | Stage::Parting) => {
                Box::pin(std::future::ready(Done::Parted))
            }
        }
    }

    /// Comes back once the engine has proved itself and KV of an earlier one is in it again.
    async fn prove(&self, endpoint: Endpoint, launch: &Launch) -> Done {
        let probe = Probe::new(&endpoint);
        probe.until_healthy().await;
        self.tell(News::Progressed {
            phase: Phase::Canary,
            pid: None,
        });
        let canary = match probe.canary().await {
            Ok(canary) => canary,
            Err(reason) => return Done::Proved(Err(reason)),
        };
        let rungs = rungs::supported(&endpoint, launch.flags.rungs).await;
        if let Some(shelf) = Shelf::of(launch, self.params.max_saved_kv) {
            self.tell(News::Restored(shelf.restore(&endpoint).await));
        }
        Done::Proved(Ok(Endpoint {
            rungs,
            canary,
            ..endpoint
        }))
    }

    /// An engine that served before proves that it still does. Of one that serves guests no token is
    /// asked: it may have no slot free for it.
    async fn still_works(&self, endpoint: Arc<Endpoint>, token: String, launch: &Launch) -> Done {
        let works = if self.params.charge.has_guests(&self.spawn.engine) {
            Probe::new(&endpoint).lists_models().await
        } else {
            at_most_slow(&endpoint, &token, launch, STILL_WORKS).await
        };
        if let Err(reason) = works {
            return Done::Proved(Err(reason));
        }
        // Which of them it may use does not belong to its start, and may have changed.
        let rungs = rungs::supported(&endpoint, launch.flags.rungs).await;
        Done::Proved(Ok(Endpoint {
            rungs,
            ..Endpoint::clone(&endpoint)
        }))
    }

    /// Where an engine that holds `whole` while it serves stands for its heir once it was told to
    /// change; none if that is uncertain.
    fn standing_after(&self, what: Shift, news: &News, whole: u64) -> Option<Standing> {
        match (what, news) {
            (Shift::Demote { to, .. }, News::Demoted) => {
                let freed = Needs::of(&self.spawn.spec).freed(Rung::Ready, to);
                Some(Standing::Asleep {
                    rung: to,
                    bytes: whole.saturating_sub(freed),
                })
            }
            (Shift::Verify, News::Verified) => Some(Standing::Serving),
            (Shift::Demote { .. } | Shift::Wake { .. } | Shift::Verify, _) => None,
        }
    }

    fn shifter(&self, endpoint: Arc<Endpoint>, token: &str) -> Shifter {
        let devices = self.spawn.devices.iter();
        Shifter {
            endpoint,
            devices: devices.map(ToString::to_string).collect(),
            token: token.to_owned(),
            needs: Needs::of(&self.spawn.spec),
            readings: self.readings.clone(),
        }
    }

    /// What is done with an engine that works before it is stopped.
    async fn part(&self, endpoint: Arc<Endpoint>, launch: &Launch) -> Done {
        self.params.charge.vacated(&self.spawn.engine).await;
        if let Some(shelf) = Shelf::of(launch, self.params.max_saved_kv) {
            self.tell(News::Saved(shelf.save(&endpoint).await));
        }
        Done::Parted
    }
}

/// An engine that was proved before proves that it is at most slow: by a token or, where it computes
/// on the host's processors, by the time that one of its processes takes of them. One step of a long
/// prompt lasts minutes there if the machine is busy.
async fn at_most_slow(
    endpoint: &Endpoint,
    token: &str,
    launch: &Launch,
    within: Duration,
) -> Result<(), String> {
    let before = processor_times(token).await;
    let proof = Probe::new(endpoint).still_works(within).await;
    if proof.is_ok() || launch.uses_gpu() {
        return proof;
    }
    let now = processor_times(token).await;
    let taken = now
        .iter()
        .filter_map(|(id, time)| Some(time.saturating_sub(*before.get(id)?)));
    match taken.max() {
        Some(time) if time >= within / COMPUTES => Ok(()),
        Some(_) | None => proof,
    }
}

/// An engine in which nothing moves proves that it is only slow.
async fn probe(endpoint: Arc<Endpoint>, token: String, launch: &Launch) -> Done {
    Done::Probed(at_most_slow(&endpoint, &token, launch, stall::PROOF).await)
}

/// Classes that forbid another start are read from the engine's output, which a prompt can reach
/// if the engine logs requests. Once it served, its model and flags were evidently fine.
fn after_ready(class: FailureClass) -> FailureClass {
    if class.is_permanent() {
        FailureClass::Crashed
    } else {
        class
    }
}

fn describe(
    class: FailureClass,
    code: Option<i32>,
    signal: Option<i32>,
    tail: &[String],
) -> String {
    let how = match (code, signal) {
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(code), None) => format!("exited with code {code}"),
        (None, None) => "ended".to_owned(),
    };
    // Crashes and kills are told by the exit status already.
    let says_more = !matches!(
        class,
        FailureClass::Crashed | FailureClass::Killed | FailureClass::Stopped
    );
    let what = if says_more {
        format!(": {class}")
    } else {
        String::new()
    };
    let last = tail.iter().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(
        || format!("{how}{what}"),
        |line| format!("{how}{what} ({})", line.trim()),
    )
}
