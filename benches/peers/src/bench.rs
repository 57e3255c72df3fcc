//! One round after the other, and in each of them all peers in turn: what changes on the machine
//! meanwhile changes for all of them.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use memchr::memmem;
use tokio::time::{Instant, sleep};

use crate::{
    answer::WORD,
    backend::Backend,
    engine,
    load::{Call, Counted, Load, float, once},
    peer::{Peer, Setting, address, free_port, request},
    process::{Process, move_to},
    trial::{Kind, Trial},
};

/// How long a proxy may take until it answers.
const READY: Duration = Duration::from_secs(120);
/// Where proxies run.
const PROXY_CORE: usize = 0;
/// Where the backend and the clients run.
const LOAD_CORE: usize = 1;

/// What one trial on one peer gave.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) counted: Counted,
    pub(crate) cpu: Duration,
    /// In KiB, before the load and while it ran.
    pub(crate) memory: (f64, f64),
}

pub(crate) struct Bench {
    backend: Rc<Backend>,
    port: u16,
    engines: u16,
    kvwarden: PathBuf,
    window: Duration,
    dir: tempfile::TempDir,
    running: Vec<Running>,
}

struct Running {
    peer: Peer,
    port: u16,
    process: Process,
}

impl Bench {
    pub(crate) async fn new(kvwarden: &Path, window: Duration) -> anyhow::Result<Self> {
        move_to(LOAD_CORE).context("two cores are needed")?;
        let (backend, port) = Backend::start().await?;
        Ok(Self {
            engines: engine::await_engines(Rc::clone(&backend)).await?,
            backend,
            port,
            kvwarden: kvwarden.to_owned(),
            window,
            dir: tempfile::tempdir()?,
            running: Vec::new(),
        })
    }

    /// Runs one trial on one peer.
    pub(crate) async fn run(&mut self, peer: Peer, trial: &Trial) -> anyhow::Result<Reading> {
        if trial.is_fresh {
            self.stop(peer).await;
        }
        let port = self.port_of(peer).await?;
        let headers = peer.headers(self.port);
        let body = trial.question.body();
        let call = Call {
            to: address(port),
            request: request(trial.question.path(), &headers, &body),
        };
        self.backend.plan.set(trial.plan);
        self.backend.pace.set(trial.pace);
        if trial.on_one_core {
            move_to(PROXY_CORE)?;
        }
        let reading = self.measure(peer, trial, &call).await;
        move_to(LOAD_CORE)?;
        if reading.is_err() {
            self.stop(peer).await;
        }
        reading
    }

    async fn measure(&self, peer: Peer, trial: &Trial, call: &Call) -> anyhow::Result<Reading> {
        let is_endless = matches!(trial.load, Kind::Streams(_));
        if !is_endless {
            let answer = once(call).await?;
            let words = memmem::find_iter(&answer, WORD).count();
            if words != trial.question.words(trial.plan) {
                bail!(
                    "its answer has {words} tokens: {}",
                    String::from_utf8_lossy(&answer)
                );
            }
        }
        let process = self.running.iter().find(|running| running.peer == peer);
        let process = process.map(|running| &running.process);
        let memory = || process.map_or(0.0, |process| float(process.memory()));
        let cpu = || process.map(Process::cpu).unwrap_or_default();
        let before = memory();
        let load = self.load(trial, call).await;
        let cpu_before = cpu();
        let counted = load.count(self.window).await;
        let reading = counted.map(|counted| Reading {
            counted,
            cpu: cpu() - cpu_before,
            memory: (before, memory()),
        });
        load.end().await;
        reading
    }

    async fn load(&self, trial: &Trial, call: &Call) -> Load {
        match trial.load {
            Kind::Closed(clients) => Load::closed(call, clients).await,
            Kind::Open(a_second) => Load::open(call, a_second).await,
            Kind::Streams(count) => {
                let pace = trial.pace.unwrap_or_default();
                Load::streams(call, count, self.backend.began, pace).await
            }
            Kind::Idle => Load::closed(call, 0).await,
        }
    }

    async fn port_of(&mut self, peer: Peer) -> anyhow::Result<u16> {
        if peer == Peer::Direct {
            return Ok(self.port);
        }
        if let Some(running) = self.running.iter().find(|running| running.peer == peer) {
            return Ok(running.port);
        }
        let port = free_port()?;
        let dir = tempfile::Builder::new().tempdir_in(self.dir.path())?.keep();
        let setting = Setting {
            dir: &dir,
            port,
            backend: self.port,
            engines: self.engines,
            kvwarden: &self.kvwarden,
        };
        let mut command = peer.command(&setting)?.context("nothing to start")?;
        let mut process = Process::start(&mut command, PROXY_CORE, LOAD_CORE)?;
        self.until_ready(peer, port, &mut process, &dir).await?;
        self.running.push(Running {
            peer,
            port,
            process,
        });
        Ok(port)
    }

    async fn until_ready(
        &self,
        peer: Peer,
        port: u16,
        process: &mut Process,
        dir: &Path,
    ) -> anyhow::Result<()> {
        let question = crate::trial::TRIALS[0].question;
        let call = Call {
            to: address(port),
            request: request(question.path(), &peer.headers(self.port), &question.body()),
        };
        self.backend.pace.set(None);
        self.backend.plan.set(crate::trial::TRIALS[0].plan);
        let start = Instant::now();
        loop {
            let Err(error) = once(&call).await else {
                return Ok(());
            };
            if process.has_ended() || start.elapsed() > READY {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                let last = log
                    .trim()
                    .lines()
                    .last()
                    .unwrap_or("it said nothing")
                    .to_owned();
                bail!("does not answer: {error:#}; {last}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn stop(&mut self, peer: Peer) {
        let at = self.running.iter().position(|running| running.peer == peer);
        if let Some(at) = at {
            self.running.swap_remove(at).process.end().await;
        }
    }

    /// Ends all of them.
    pub(crate) async fn end(mut self) {
        for running in self.running.drain(..) {
            running.process.end().await;
        }
    }
}
