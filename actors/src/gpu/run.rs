//! The life of one engine: spawn it, see it become ready, see it end. One task per engine, which
//! owns the connection to its shim; nobody else stops it.

use std::{pin::Pin, sync::Arc};

use actix::{Addr, Recipient};
use kvwarden_policy::{
    failure::FailureClass,
    lifecycle::{Phase, Rungs},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Gpu, Params, attached,
    child::Child,
    collector::Collector,
    engine::{Endpoint, EngineSpec, Launch, Start},
    probe::Probe,
    rungs,
    seats::Needs,
    shift::Shifter,
    shim::{ShimEvent, ShimSpec},
    snapshot::{self, Shelf},
    vram::Reading,
};
use crate::protocol::{EngineGone, EngineNews, News, Order, Spawn};

/// One engine to run.
pub(super) struct Run {
    pub(super) params: Params,
    pub(super) spawn: Spawn,
    /// What CUDA calls the devices it was given.
    pub(super) gpus: Vec<String>,
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
    Shifted(News),
    Parted,
}

/// How far an engine's life has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Parting,
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
        let _collector = Collector::of(launch);
        let port = match free_port() {
            Ok(port) => port,
            Err(error) => {
                return End::new(
                    FailureClass::Crashed,
                    format!("no free loopback port: {error}"),
                );
            }
        };
        let key = random_hex();
        let start = Start {
            port,
            key: &key,
            gpus: &self.gpus,
        };
        let spec = self.shim_spec(launch, start);
        let (record, token) = (spec.record.clone(), spec.token.clone());
        let child = match Child::start(&self.params.shim, spec).await {
            Ok(child) => child,
            Err(error) => return End::new(FailureClass::NotInstalled, error.to_string()),
        };
        let endpoint = Endpoint {
            model: self.spawn.engine.clone(),
            kind: launch.kind,
            generation: self.spawn.generation,
            base: format!("http://127.0.0.1:{port}"),
            api_key: Some(key),
            served_name: launch.served_name.clone(),
            rungs: Rungs::default(),
            canary: None,
        };
        let end = self.follow(child, &token, endpoint, launch, orders).await;
        // It is about an engine of which nothing is left.
        let _ = std::fs::remove_file(record);
        end
    }

    async fn follow(
        &self,
        mut child: Child,
        token: &str,
        endpoint: Endpoint,
        launch: &Launch,
        orders: &mut Orders,
    ) -> End {
        let deadline = Instant::now() + launch.start_timeout;
        let mut stage = Stage::Starting;
        let mut work: Option<Work<'_>> = Some(Box::pin(self.prove(endpoint.clone(), launch)));
        let mut endpoint = Arc::new(endpoint);
        // Why we ended it ourselves, if we did.
        let mut cause: Option<End> = None;
        loop {
            let end = tokio::select! {
                event = child.next_event() => match event {
                    Some(ShimEvent::Started { pid }) => {
                        self.tell(News::Progressed { phase: Phase::Loading, pid: Some(pid) });
                        continue;
                    }
                    Some(ShimEvent::Failed { reason }) => {
                        return End::new(FailureClass::NotInstalled, reason);
                    }
                    Some(ShimEvent::Exited { code, signal, class, log_tail }) => {
                        let is_starting = stage == Stage::Starting;
                        let class = if is_starting { class } else { after_ready(class) };
                        let reason = describe(class, code, signal, &log_tail);
                        let end = cause.unwrap_or_else(|| End::new(class, reason));
                        return End { log_tail, ..end };
                    }
                    None => return cause.unwrap_or_else(|| {
                        End::new(FailureClass::Killed, "the engine's shim was killed")
                    }),
                },
                done = done(&mut work), if cause.is_none() => match done {
                    Done::Proved(Ok(proved)) => {
                        stage = Stage::Serving;
                        endpoint = Arc::new(proved);
                        self.tell(News::Ready(endpoint.clone()));
                        continue;
                    }
                    Done::Proved(Err(reason)) => End::new(FailureClass::Canary, reason),
                    Done::Shifted(news) => {
                        self.tell(news);
                        continue;
                    }
                    Done::Parted => End::new(FailureClass::Stopped, "stopped"),
                },
                () = tokio::time::sleep_until(deadline),
                    if stage == Stage::Starting && cause.is_none() =>
                {
                    let reason = format!("not ready after {} s", launch.start_timeout.as_secs());
                    End::new(FailureClass::StartTimeout, reason)
                }
                order = orders.recv(), if stage != Stage::Parting && cause.is_none() => {
                    let endpoint = endpoint.clone();
                    let shifter = self.shifter(endpoint.clone(), token);
                    work = match (order, stage) {
                        (Some(Order::Shift(what)), _) => Some(Box::pin(async move {
                            Done::Shifted(shifter.shift(what).await)
                        })),
                        (Some(Order::Stop) | None, Stage::Serving) => {
                            stage = Stage::Parting;
                            Some(Box::pin(self.part(endpoint, launch)))
                        }
                        (Some(Order::Stop) | None, Stage::Starting | Stage::Parting) => {
                            Some(Box::pin(std::future::ready(Done::Parted)))
                        }
                    };
                    continue;
                }
            };
            work = None;
            cause = Some(end);
            child.stop(launch.stop_grace);
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
        if let Some(shelf) = Shelf::of(launch, self.params.max_saved_kv) {
            self.tell(News::Saved(shelf.save(&endpoint).await));
        }
        Done::Parted
    }

    fn shim_spec(&self, launch: &Launch, start: Start<'_>) -> ShimSpec {
        let command = launch.command(start, std::env::vars());
        let token = random_hex();
        // Short, since the path of a Unix socket ends at 107 bytes.
        let short = &token[..8];
        let Params {
            run_dir,
            log_dir,
            orphan_grace,
            ..
        } = &self.params;
        ShimSpec {
            model: self.spawn.engine.to_string(),
            generation: self.spawn.generation.0,
            program: command.program,
            args: command.args,
            env: command.env,
            socket: run_dir.join(format!("{short}.sock")),
            record: run_dir.join(format!("{short}.json")),
            log: log_dir.join(log_name(self.spawn.engine.as_str())),
            orphan_grace: *orphan_grace,
            token,
        }
    }
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

/// A loopback port that was free a moment ago. Another process may take it before the engine does;
/// then the engine ends with [`FailureClass::PortInUse`] and its next start gets another.
fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?
        .local_addr()?
        .port())
}

/// 128 random bits.
fn random_hex() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn log_name(model: &str) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = model.chars().map(safe).collect();
    format!("{name}.log")
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
