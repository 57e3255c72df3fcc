//! The life of one engine: spawn it, see it become ready, see it end. One task per engine, which
//! owns the connection to its shim; nobody else stops it.

use std::sync::Arc;

use actix::{Addr, Recipient};
use kvwarden_policy::{
    failure::FailureClass,
    lifecycle::{Phase, Rungs},
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Gpu, Params, attached,
    child::Child,
    collector::Collector,
    engine::{Endpoint, EngineSpec, Launch, Start},
    probe::Probe,
    rungs,
    shim::{ShimEvent, ShimSpec},
    snapshot::{self, Shelf},
};
use crate::protocol::{EngineGone, EngineNews, News, Spawn, StartOver};

/// One engine to run.
pub(super) struct Run {
    pub(super) params: Params,
    pub(super) spawn: Spawn,
    pub(super) gpu: Addr<Gpu>,
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
    /// Runs the engine until nothing of it is left. `stopped` is how it is asked to end.
    pub(super) async fn live(self, mut stopped: oneshot::Receiver<()>) {
        let end = match self.spawn.spec.clone().as_ref() {
            EngineSpec::Child(launch) => self.supervise(launch, &mut stopped).await,
            EngineSpec::Attached(attached) => attached::watch(&self, &mut stopped, attached).await,
        };
        let model = self.spawn.model.clone();
        self.gpu.do_send(EngineGone {
            model: model.clone(),
            generation: self.spawn.generation,
        });
        self.gpu.do_send(StartOver { model });
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
                generation: self.spawn.generation,
                what,
            });
        }
    }

    /// The engine answers: the model may use it, and the next one may start.
    pub(super) fn tell_ready(&self, endpoint: Endpoint) {
        self.tell(News::Ready(Arc::new(endpoint)));
        self.gpu.do_send(StartOver {
            model: self.spawn.model.clone(),
        });
    }

    async fn supervise(&self, launch: &Launch, stopped: &mut oneshot::Receiver<()>) -> End {
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
        let spec = self.shim_spec(launch, Start { port, key: &key });
        let record = spec.record.clone();
        let child = match Child::start(&self.params.shim, spec).await {
            Ok(child) => child,
            Err(error) => return End::new(FailureClass::NotInstalled, error.to_string()),
        };
        let endpoint = Endpoint {
            model: self.spawn.model.clone(),
            kind: launch.kind,
            generation: self.spawn.generation,
            base: format!("http://127.0.0.1:{port}"),
            api_key: Some(key),
            served_name: launch.served_name.clone(),
            rungs: Rungs::default(),
            canary: None,
        };
        let end = self.follow(child, endpoint, launch, stopped).await;
        // It is about an engine of which nothing is left.
        let _ = std::fs::remove_file(record);
        end
    }

    async fn follow(
        &self,
        mut child: Child,
        endpoint: Endpoint,
        launch: &Launch,
        stopped: &mut oneshot::Receiver<()>,
    ) -> End {
        let deadline = Instant::now() + launch.start_timeout;
        let mut readiness = Box::pin(self.become_ready(&endpoint, launch));
        let mut is_starting = true;
        let mut parting = Box::pin(self.part(&endpoint, launch));
        let mut is_parting = false;
        // Why we ended it ourselves, if we did.
        let mut cause: Option<End> = None;
        loop {
            tokio::select! {
                event = child.next_event() => match event {
                    Some(ShimEvent::Started { pid }) => {
                        self.tell(News::Progressed { phase: Phase::Loading, pid: Some(pid) });
                    }
                    Some(ShimEvent::Failed { reason }) => {
                        return End::new(FailureClass::NotInstalled, reason);
                    }
                    Some(ShimEvent::Exited { code, signal, class, log_tail }) => {
                        let class = if is_starting { class } else { after_ready(class) };
                        let reason = describe(class, code, signal, &log_tail);
                        let end = cause.unwrap_or_else(|| End::new(class, reason));
                        return End { log_tail, ..end };
                    }
                    None => return cause.unwrap_or_else(|| {
                        End::new(FailureClass::Killed, "the engine's shim was killed")
                    }),
                },
                verdict = &mut readiness, if is_starting && cause.is_none() => {
                    is_starting = false;
                    match verdict {
                        Ok(endpoint) => self.tell_ready(endpoint),
                        Err(reason) => {
                            cause = Some(End::new(FailureClass::Canary, reason));
                            child.stop(launch.stop_grace);
                        }
                    }
                }
                () = tokio::time::sleep_until(deadline), if is_starting && cause.is_none() => {
                    let reason = format!("not ready after {} s", launch.start_timeout.as_secs());
                    cause = Some(End::new(FailureClass::StartTimeout, reason));
                    child.stop(launch.stop_grace);
                }
                _ = &mut *stopped, if cause.is_none() => {
                    cause = Some(End::new(FailureClass::Stopped, "stopped"));
                    is_parting = !is_starting;
                    if is_starting {
                        child.stop(launch.stop_grace);
                    }
                }
                () = &mut parting, if is_parting => {
                    is_parting = false;
                    child.stop(launch.stop_grace);
                }
            }
        }
    }

    /// Comes back once the engine has proved itself and KV of an earlier one is in it again.
    async fn become_ready(&self, endpoint: &Endpoint, launch: &Launch) -> Result<Endpoint, String> {
        let probe = Probe::new(endpoint);
        probe.until_healthy().await;
        self.tell(News::Progressed {
            phase: Phase::Canary,
            pid: None,
        });
        let canary = probe.canary().await?;
        let rungs = rungs::supported(endpoint, launch.flags.rungs).await;
        if let Some(shelf) = Shelf::of(launch, self.params.max_saved_kv) {
            self.tell(News::Restored(shelf.restore(endpoint).await));
        }
        Ok(Endpoint {
            rungs,
            canary,
            ..endpoint.clone()
        })
    }

    /// What is done with an engine that works before it is stopped.
    async fn part(&self, endpoint: &Endpoint, launch: &Launch) {
        if let Some(shelf) = Shelf::of(launch, self.params.max_saved_kv) {
            self.tell(News::Saved(shelf.save(endpoint).await));
        }
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
            model: self.spawn.model.to_string(),
            generation: self.spawn.generation.0,
            program: command.program,
            args: command.args,
            env: command.env,
            socket: run_dir.join(format!("{short}.sock")),
            record: run_dir.join(format!("{short}.json")),
            log: log_dir.join(log_name(self.spawn.model.as_str())),
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
