//! What happens when: one loop that waits for one thing at a time.
//!
//! ```text
//! Running --stop--> Stopping --grace over--> Sweeping --nothing left--> Exited
//!    \---------------- main process ended ------^
//! ```
//! The sweep comes after every end, a clean one too: vLLM's API server can exit and leave its
//! `EngineCore` with the GPU's memory.

use std::{io, os::fd::OwnedFd, time::Duration};

use kvwarden_actors::process::shim::{ShimCommand, ShimEvent, ShimExit, ShimSpec};
use kvwarden_policy::failure::{self, Exit, FailureClass};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, unix::pipe},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    engine::{Ended, Engine},
    log::Log,
    record::RecordFile,
    socket,
    tail::Tail,
};

/// How long the orchestrator may take to connect first; it does so at once or has died.
const FIRST_CONNECTION: Duration = Duration::from_secs(30);

/// What the engine gets between SIGTERM and SIGKILL when nobody says: its clients are gone.
const SHORT_GRACE: Duration = Duration::from_secs(5);

/// How long clients may take to read the last event and hang up.
const LINGER: Duration = Duration::from_secs(2);

/// The orchestrator, its successor during an upgrade, and somebody who looks.
const MAX_CLIENTS: usize = 4;

/// Output read at once: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Reads after the tree is gone: the most a pipe can be made to hold is 1 MiB (pipe(7)), and
/// somebody who left the tree in a way we don't know could go on writing.
const LAST_READS: usize = 16;

/// Pause between two sweeps, doubled up to the longest: a process in the kernel's hands (a driver
/// that tears down GPU memory) may take seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// One engine and everything around it.
pub(super) struct Shim {
    spec: ShimSpec,
    record: RecordFile,
    log: Log,
    tail: Tail,
    events: watch::Sender<Vec<ShimEvent>>,
    stage: Stage,
    asked_to_stop: bool,
    /// When the engine ends for want of an orchestrator; none while one is connected.
    orphaned: Option<Instant>,
    signals: Signals,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Running,
    Stopping { kill_at: Instant },
    Sweeping { again: Instant, pause: Duration },
    Gone,
}

struct Signals {
    child: Signal,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// Those who talk to us.
struct Clients {
    listener: UnixListener,
    tasks: JoinSet<()>,
    commands: (mpsc::Sender<ShimCommand>, mpsc::Receiver<ShimCommand>),
}

/// What the loop woke up for.
enum Input {
    ChildEnded,
    Stop(Duration),
    ClientCame,
    ClientLeft,
    Output(usize),
    OutputClosed,
    Timer,
}

impl Shim {
    pub(super) fn new(spec: ShimSpec, record: RecordFile) -> io::Result<Self> {
        Ok(Self {
            log: Log::open(spec.log.clone()),
            spec,
            record,
            tail: Tail::default(),
            events: watch::Sender::new(Vec::new()),
            stage: Stage::Running,
            asked_to_stop: false,
            orphaned: Some(Instant::now() + FIRST_CONNECTION),
            signals: Signals {
                child: signal(SignalKind::child())?,
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hang_up: signal(SignalKind::hangup())?,
            },
        })
    }

    /// A line of our own in the engine's log.
    pub(super) fn note(&mut self, text: &str) {
        self.log.write(format!("kvwarden: {text}\n").as_bytes());
    }

    /// Starts the engine, lives as long as it does, tells how it ended.
    pub(super) async fn run(mut self, listener: UnixListener) {
        let mut clients = Clients {
            listener,
            tasks: JoinSet::new(),
            commands: mpsc::channel(MAX_CLIENTS),
        };
        let last = match self.start() {
            Ok((mut engine, mut output)) => {
                self.supervise(&mut engine, &mut output, &mut clients).await;
                self.drain(&mut output);
                let exit = Exit {
                    code: engine.ended().and_then(|ended| ended.code),
                    signal: engine.ended().and_then(|ended| ended.signal),
                    is_oom_killed: engine.is_oom_killed(),
                };
                engine.clear();
                self.exited(exit)
            }
            Err(error) => self.failed(&error),
        };
        self.events.send_modify(|events| events.push(last));
        let socket = self.spec.socket.clone();
        self.say_goodbye(clients).await;
        let _ = std::fs::remove_file(socket);
    }

    fn start(&mut self) -> io::Result<(Engine, pipe::Receiver)> {
        self.note(&format!(
            "starting {} (start {}): {}",
            self.spec.model,
            self.spec.generation,
            self.spec.program.display()
        ));
        let (engine, output) = Engine::spawn(&self.spec)?;
        // Environments are the one secret; from here on only the command that ends it needs its own.
        self.spec.env.clear();
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(output))?;
        let pid = engine.pid();
        let written = self.record.started(pid);
        self.complain(written);
        self.events
            .send_modify(|events| events.push(ShimEvent::Started { pid }));
        Ok((engine, output))
    }

    async fn supervise(
        &mut self,
        engine: &mut Engine,
        output: &mut pipe::Receiver,
        clients: &mut Clients,
    ) {
        let mut buffer = vec![0; CHUNK];
        let mut open = true;
        while !matches!(self.stage, Stage::Gone) {
            match self.next(output, open, &mut buffer, clients).await {
                Input::ChildEnded => self.child_ended(engine),
                Input::Stop(grace) => self.stop(engine, grace),
                Input::ClientCame => self.orphaned = None,
                Input::ClientLeft => {
                    self.orphaned = Some(Instant::now() + self.spec.orphan_grace);
                }
                Input::Output(bytes) => self.keep(&buffer[..bytes]),
                Input::OutputClosed => open = false,
                Input::Timer => self.timer(engine),
            }
        }
    }

    async fn next(
        &mut self,
        output: &mut pipe::Receiver,
        open: bool,
        buffer: &mut [u8],
        clients: &mut Clients,
    ) -> Input {
        let deadline = self.deadline();
        let timer = deadline.unwrap_or_else(Instant::now);
        tokio::select! {
            _ = self.signals.child.recv() => Input::ChildEnded,
            _ = self.signals.terminate.recv() => Input::Stop(SHORT_GRACE),
            _ = self.signals.interrupt.recv() => Input::Stop(SHORT_GRACE),
            _ = self.signals.hang_up.recv() => Input::Stop(SHORT_GRACE),
            () = sleep_until(timer), if deadline.is_some() => Input::Timer,
            input = clients.next(&self.events) => input,
            read = output.read(buffer), if open => match read {
                Ok(bytes) if bytes > 0 => Input::Output(bytes),
                Ok(_) | Err(_) => Input::OutputClosed,
            },
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let step = match self.stage {
            Stage::Running | Stage::Gone => None,
            Stage::Stopping { kill_at } => Some(kill_at),
            Stage::Sweeping { again, .. } => Some(again),
        };
        step.into_iter().chain(self.orphaned).min()
    }

    fn timer(&mut self, engine: &mut Engine) {
        let now = Instant::now();
        if self.orphaned.is_some_and(|at| at <= now) {
            self.orphaned = None;
            self.note("no orchestrator left; ending the engine");
            self.stop(engine, SHORT_GRACE);
        }
        match self.stage {
            Stage::Stopping { kill_at } if kill_at <= now => self.sweep(engine, FIRST_PAUSE),
            Stage::Sweeping { again, pause } if again <= now => self.sweep(engine, pause),
            Stage::Running | Stage::Stopping { .. } | Stage::Sweeping { .. } | Stage::Gone => {}
        }
    }

    /// A stop during a stop can only shorten it.
    fn stop(&mut self, engine: &mut Engine, grace: Duration) {
        let by = Instant::now().checked_add(grace);
        match (self.stage, by) {
            (Stage::Running, by) => {
                self.asked_to_stop = true;
                if !self.run_stop(engine) {
                    engine.terminate();
                }
                // A grace beyond the clock's end is no grace to rely on.
                let kill_at = by.unwrap_or_else(|| Instant::now() + SHORT_GRACE);
                self.stage = Stage::Stopping { kill_at };
            }
            (Stage::Stopping { kill_at }, Some(by)) => {
                let kill_at = kill_at.min(by);
                self.stage = Stage::Stopping { kill_at };
            }
            (Stage::Stopping { .. }, None) | (Stage::Sweeping { .. } | Stage::Gone, _) => {}
        }
    }

    /// Runs the engine's own command to end it, once; whether there is one that runs.
    fn run_stop(&mut self, engine: &mut Engine) -> bool {
        let Some(stop) = self.spec.stop.take() else {
            return false;
        };
        let run = engine.run_stop(&stop);
        if let Err(error) = &run {
            self.note(&format!("can't run {}: {error}", stop.program.display()));
        }
        run.is_ok()
    }

    fn child_ended(&mut self, engine: &mut Engine) {
        let was_being_stopped = engine.is_being_stopped();
        self.reap(engine);
        let stage = self.stage;
        match stage {
            Stage::Running if engine.ended().is_some() && self.run_stop(engine) => {
                let kill_at = Instant::now() + SHORT_GRACE;
                self.stage = Stage::Stopping { kill_at };
            }
            Stage::Stopping { .. } if engine.is_being_stopped() => {}
            Stage::Running | Stage::Stopping { .. } if engine.ended().is_some() => {
                self.sweep(engine, FIRST_PAUSE);
            }
            // What it left of the engine is told in turn.
            Stage::Stopping { .. } if was_being_stopped => engine.terminate(),
            // What was killed is being reaped: look again now instead of at the next pause.
            Stage::Sweeping { .. } => self.sweep(engine, FIRST_PAUSE),
            Stage::Running | Stage::Stopping { .. } | Stage::Gone => {}
        }
    }

    /// Whether any child is left.
    fn reap(&mut self, engine: &mut Engine) -> bool {
        let children = engine.reap();
        if let Some(Ended { code, signal }) = engine.take_stop_failure() {
            let how = match (code, signal) {
                (_, Some(signal)) => format!("was killed by signal {signal}"),
                (code, None) => format!("exited with code {}", code.unwrap_or_default()),
            };
            self.note(&format!(
                "its `stop` {how}; see whether it left something outside its own processes"
            ));
        }
        children
    }

    fn sweep(&mut self, engine: &mut Engine, pause: Duration) {
        let clean = engine.sweep();
        let children = self.reap(engine);
        self.stage = match clean {
            Ok(true) if !children => Stage::Gone,
            Ok(_) | Err(_) => Stage::Sweeping {
                again: Instant::now() + pause,
                pause: (pause * 2).min(LONGEST_PAUSE),
            },
        };
    }

    fn keep(&mut self, output: &[u8]) {
        self.log.write(output);
        self.tail.feed(output, Instant::now());
    }

    /// What is still in the pipe.
    fn drain(&mut self, output: &mut pipe::Receiver) {
        let mut buffer = vec![0; CHUNK];
        for _ in 0..LAST_READS {
            match output.try_read(&mut buffer) {
                Ok(bytes @ 1..) => self.keep(&buffer[..bytes]),
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn exited(&mut self, ended: Exit) -> ShimEvent {
        let now = Instant::now();
        let Exit { code, signal, .. } = ended;
        let (log_tail, recent) = (self.tail.lines(now), self.tail.recent(now));
        let class = failure::classify(ended, &recent, self.asked_to_stop);
        let exit = ShimExit {
            code,
            signal,
            class,
        };
        let written = self.record.ended(exit);
        self.complain(written);
        self.note(&format!(
            "ended: code {code:?}, signal {signal:?}, {class:?}"
        ));
        ShimEvent::Exited {
            exit,
            recent: Some(recent.len().min(log_tail.len())),
            log_tail,
        }
    }

    fn failed(&mut self, error: &io::Error) -> ShimEvent {
        let reason = format!("can't run {}: {error}", self.spec.program.display());
        self.note(&reason);
        let written = self.record.ended(ShimExit {
            code: None,
            signal: None,
            class: FailureClass::NotInstalled,
        });
        self.complain(written);
        ShimEvent::Failed { reason }
    }

    fn complain(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.note(&format!("can't write the state file: {error}"));
        }
    }

    /// Waits for clients to read the last event and hang up. If none is connected, the one that
    /// started us or the one that adopts us may be on its way; what it would hear is also in the
    /// state file, so this has an end.
    async fn say_goodbye(mut self, mut clients: Clients) {
        if let Some(orphaned) = self.orphaned.filter(|_| clients.tasks.is_empty()) {
            let by = orphaned.min(Instant::now() + FIRST_CONNECTION);
            tokio::select! {
                _ = clients.next(&self.events) => {}
                _ = self.signals.terminate.recv() => {}
                () = sleep_until(by) => {}
            }
        }
        let all_left = async {
            while !clients.tasks.is_empty() {
                clients.next(&self.events).await;
            }
        };
        let _ = timeout(LINGER, all_left).await;
    }
}

impl Clients {
    /// Safe to drop at its await, as all of its branches are.
    async fn next(&mut self, events: &watch::Sender<Vec<ShimEvent>>) -> Input {
        loop {
            tokio::select! {
                Some(command) = self.commands.1.recv() => {
                    let ShimCommand::Stop { grace } = command;
                    return Input::Stop(grace);
                }
                Ok((stream, _)) = self.listener.accept(), if self.tasks.len() < MAX_CLIENTS => {
                    let commands = self.commands.0.clone();
                    self.tasks.spawn(socket::serve(stream, events.subscribe(), commands));
                    return Input::ClientCame;
                }
                Some(_) = self.tasks.join_next() => {
                    if self.tasks.is_empty() {
                        return Input::ClientLeft;
                    }
                }
            }
        }
    }
}
