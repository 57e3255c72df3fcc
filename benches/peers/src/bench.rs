//! One round after the other, and in each of them all peers in turn: what changes on the machine
//! meanwhile changes for all of them.

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use memchr::memmem;
use tokio::time::{Instant, sleep};

use crate::{
    answer::WORD,
    backend::{Backend, Pace},
    engine,
    load::{Call, Counted, Load, float, once},
    peer::{MAX_CONCURRENT, Peer, Setting, free_port},
    process::{Process, move_to},
    trial::{Kind, TRIALS, Trial},
};

/// How long a proxy may take until it answers.
const READY: Duration = Duration::from_secs(120);
/// How long a proxy may take to end before it is killed.
pub(crate) const END: Duration = Duration::from_secs(5);
/// Where proxies run.
pub(crate) const PROXY_CORE: usize = 0;
/// Where the backend and the clients run.
pub(crate) const LOAD_CORE: usize = 1;

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
        move_to(&[LOAD_CORE]).context("two cores are needed")?;
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
        let call = Call::new(peer, port, self.port, trial.question);
        self.backend.plan.set(trial.plan);
        self.backend
            .pace
            .set(trial.pace.map_or(Pace::AtOnce, Pace::Each));
        if trial.on_one_core {
            move_to(&[PROXY_CORE])?;
        }
        let reading = self.measure(peer, trial, &call).await;
        move_to(&[LOAD_CORE])?;
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
            models: 1,
            max_concurrent: MAX_CONCURRENT,
            tenants: "",
            kvwarden: &self.kvwarden,
        };
        let mut command = peer.command(&setting)?.context("nothing to start")?;
        let mut process = Process::start(&mut command, &[PROXY_CORE], LOAD_CORE)?;
        self.backend.pace.set(Pace::AtOnce);
        self.backend.plan.set(TRIALS[0].plan);
        let call = Call::new(peer, port, self.port, TRIALS[0].question);
        until_ready(&call, &mut process, &dir).await?;
        self.running.push(Running {
            peer,
            port,
            process,
        });
        Ok(port)
    }

    async fn stop(&mut self, peer: Peer) {
        let at = self.running.iter().position(|running| running.peer == peer);
        if let Some(at) = at {
            self.running.swap_remove(at).process.end(END).await;
        }
    }

    /// Ends all of them.
    pub(crate) async fn end(mut self) {
        for mut running in self.running.drain(..) {
            running.process.end(END).await;
        }
    }
}

/// Waits until a proxy answers.
pub(crate) async fn until_ready(
    call: &Call,
    process: &mut Process,
    dir: &Path,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while let Err(error) = once(call).await {
        if process.has_ended() || start.elapsed() > READY {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
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
    Ok(())
}
