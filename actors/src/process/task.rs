//! One engine: how it is brought into our care, proves itself and is told apart by how it ended.
//! One task per engine, which owns the connection to its shim; nobody else stops it.

use std::{sync::Arc, time::Duration};

use actix::{Addr, Recipient};
use kvwarden_policy::{
    failure::{self, FailureClass},
    lifecycle::{Phase, Rung},
    stall,
};

use super::{
    attached,
    handover::HandoverState,
    orphans::{self, Orphan},
    shim::ShimEvent,
    startup,
    supervise::{Done, Orders, Stage},
    tree::{ProcessId, processor_times},
};
use crate::protocol::{EngineGone, EngineNews, News, Shift, Spawn};
use crate::{
    device::Reader,
    engine::{
        Endpoint, EngineSpec, Launch,
        kv_disk_gc::Collector,
        probe::Probe,
        rungs,
        saved_kv::{self, Shelf},
        sleep::Shifter,
    },
    gpu::{Gpu, Params, seats::Needs},
};

/// How long an engine that served may take to prove that it still does. It may be busy with what the
/// clients of an earlier kvwarden left in it.
const STILL_WORKS: Duration = Duration::from_secs(20);

/// How long an engine that gave no first token is left alone. If it dies of that, its connections
/// break a moment before its end is known, and its end says why.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The part of a processor that a process takes which computes: a tenth. Where it hangs, none takes
/// more than a twentieth, for `/metrics` above all; among twenty busy processes of others the one
/// that computes took a third.
const COMPUTES: u32 = 10;

/// What an engine that does not work gets between SIGTERM and SIGKILL: time to give back what the
/// kernel does not, such as files in /dev/shm.
const BROKEN_GRACE: Duration = Duration::from_secs(2);

/// One engine to run.
pub(crate) struct Run {
    pub(crate) params: Params,
    pub(crate) spawn: Spawn,
    /// What CUDA calls the devices it was given.
    pub(crate) gpus: Vec<String>,
    /// What it is charged for on each device.
    pub(crate) bytes: u64,
    /// What an earlier kvwarden left of it.
    pub(crate) orphan: Option<Orphan>,
    pub(crate) gpu: Addr<Gpu>,
    pub(crate) reader: Reader,
}

/// How an engine ended.
pub(crate) struct End {
    pub(crate) class: FailureClass,
    pub(crate) reason: String,
    pub(crate) log_tail: Vec<String>,
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
    pub(super) fn grace(&self, launch: &Launch) -> Duration {
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
    pub(crate) async fn live(self, mut orders: Orders) {
        let end = match self.spawn.spec.clone().as_ref() {
            EngineSpec::Child(launch) => {
                let end = self.supervise(launch, &mut orders).await;
                // The planner shall see its memory free before it hears that nobody holds it.
                self.reader.read().await;
                end
            }
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
        if let Err(error) = saved_kv::prepare(launch) {
            let reason = format!("cannot make {}: {error}", launch.kv_dir.display());
            return End::new(FailureClass::NotInstalled, reason);
        }
        let _collector = Collector::of(launch, &self.params.leadership);
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
                if self.is_leader() {
                    orphans::forget(&record);
                }
                end
            }
            Err(end) => end,
        }
    }

    /// Comes back once the engine should have started by now: nothing moves in it, or it took too
    /// long in any case.
    pub(super) async fn overdue(&self, shim: Option<ProcessId>, launch: &Launch) -> End {
        let patience = self.params.tuning.start_stall_timeout;
        let stalled = async {
            match shim {
                Some(shim) => startup::stalled(patience, shim, self.log()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            last = stalled => {
                End::new(FailureClass::StartStalled, startup::reason(patience, last))
            }
            () = tokio::time::sleep(launch.start_timeout) => {
                let reason = format!("not ready after {} s", launch.start_timeout.as_secs());
                End::new(FailureClass::StartTimeout, reason)
            }
        }
    }

    pub(super) fn is_leader(&self) -> bool {
        self.params.leadership.is_held()
    }

    /// How the engine ended, if that is what its shim says.
    pub(super) fn heard(&self, event: Option<ShimEvent>, stage: Stage) -> Option<End> {
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

    /// Comes back once the engine has proved itself and KV of an earlier one is in it again.
    pub(super) async fn prove(&self, endpoint: Endpoint, launch: &Launch) -> Done {
        let probe = Probe::new(&endpoint);
        probe.until_healthy().await;
        self.tell(News::Progressed {
            phase: Phase::Canary,
            pid: None,
        });
        let canary = match probe.canary().await {
            Ok(canary) => canary,
            Err(reason) => {
                tokio::time::sleep(LAST_WORDS).await;
                return Done::Proved(Err(reason));
            }
        };
        let rungs = rungs::supported(&endpoint, launch.flags.rungs).await;
        if let Some(shelf) = Shelf::of(launch, self.params.tuning.max_saved_kv) {
            self.tell(News::Restored(shelf.restore(&endpoint).await));
        }
        Done::Proved(Ok(Endpoint {
            rungs,
            canary,
            ..endpoint
        }))
    }

    /// An engine that served before proves that it still does. Of one that a predecessor uses no token is
    /// asked: it may have no slot free for it.
    pub(super) async fn still_works(
        &self,
        endpoint: Arc<Endpoint>,
        token: String,
        launch: &Launch,
    ) -> Done {
        let works = if self.params.leadership.is_in_use(&self.spawn.engine) {
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
    pub(super) fn state_after(
        &self,
        what: Shift,
        news: &News,
        whole: u64,
    ) -> Option<HandoverState> {
        match (what, news) {
            (Shift::Demote { to, .. }, News::Demoted) => {
                let freed = Needs::of(&self.spawn.spec).freed(Rung::Ready, to);
                Some(HandoverState::Asleep {
                    rung: to,
                    bytes: whole.saturating_sub(freed),
                })
            }
            (Shift::Verify, News::Verified) => Some(HandoverState::Serving),
            (Shift::Demote { .. } | Shift::Wake { .. } | Shift::Verify, _) => None,
        }
    }

    pub(super) fn shifter(&self, endpoint: Arc<Endpoint>, token: &str) -> Shifter {
        let devices = self.spawn.devices.iter();
        Shifter {
            endpoint,
            devices: devices.map(ToString::to_string).collect(),
            token: token.to_owned(),
            needs: Needs::of(&self.spawn.spec),
            reader: self.reader.clone(),
        }
    }

    /// What is done with an engine that works before it is stopped.
    pub(super) async fn part(&self, endpoint: Arc<Endpoint>, launch: &Launch) -> Done {
        if let Some(shelf) = Shelf::of(launch, self.params.tuning.max_saved_kv) {
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
    if launch.uses_gpu() {
        return Probe::new(endpoint).still_works(within).await;
    }
    let before = processor_times(token).await;
    let proof = Probe::new(endpoint).still_works(within).await;
    if proof.is_ok() {
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

/// An engine that sleeps is there, which is all that it can prove.
pub(super) async fn still_sleeps(endpoint: Arc<Endpoint>, rung: Rung) -> Done {
    match Probe::new(&endpoint).lists_models().await {
        Ok(()) => Done::FoundAsleep(rung),
        Err(reason) => Done::Proved(Err(reason)),
    }
}

/// An engine in which nothing moves proves that it is only slow.
pub(super) async fn probe(endpoint: Arc<Endpoint>, token: String, launch: &Launch) -> Done {
    Done::Probed(at_most_slow(&endpoint, &token, launch, stall::ANSWER).await)
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
    // vLLM's last line only says that the cause is above.
    let cause = tail
        .iter()
        .find(|line| failure::cause_in(line) == Some(class));
    let last = tail.iter().rev().find(|line| !line.trim().is_empty());
    cause.or(last).map_or_else(
        || format!("{how}{what}"),
        |line| format!("{how}{what} ({})", line.trim()),
    )
}
