//! The orchestrator's side of one engine: its shim, as a handle.
//!
//! No actor: whoever owns a [`Child`] awaits [`Child::next_event`] and calls [`Child::stop`].
//! `next_event` may be dropped at any await and called again. Its last event is `Failed` or
//! `Exited`, always; when the shim itself was killed, it first kills what the shim left behind.
//! Dropping the handle, or dying, closes the socket: from then on the shim waits `orphan_grace` for
//! [`Child::adopt`] and then ends the engine.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use kvwarden_policy::failure::FailureClass;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child as Process, Command},
    time::timeout,
};

use super::{
    shim::{LISTENING, REFUSED, ShimCommand, ShimEvent, ShimExit, ShimRecord, ShimSpec},
    tree::{self, ProcessId, TREE_TOKEN},
};
use crate::files;

/// How long a shim may take from its start to `listening`: a few milliseconds, but a machine that
/// loads models swaps and stalls.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a shim's first line is read.
const FIRST_LINE: u64 = 4096;

/// One engine, seen through its shim.
#[derive(Debug)]
pub struct Child {
    model: String,
    token: String,
    record: PathBuf,
    /// The shim's process, if we started it; an adopted one is somebody else's to reap.
    process: Option<Process>,
    shim: Option<ProcessId>,
    asked_to_stop: bool,
    link: Link,
}

#[derive(Debug)]
enum Link {
    Open(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf),
    /// The shim went away and did not say how the engine ended.
    Lost,
    /// The last event was delivered.
    Over,
}

/// Why there is no engine to talk to.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Our own binary can't be executed.
    #[error("can't run {}: {source}", program.display())]
    NoShim {
        /// What was to be executed.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim looked at the spec or at the machine and won't.
    #[error("{0}")]
    Refused(String),
    /// The shim died, hung or was not understood.
    #[error("the engine's supervisor did not answer: {0}")]
    NoAnswer(String),
    /// Nobody listens at its socket.
    #[error("can't connect to {}: {source}", socket.display())]
    NoSocket {
        /// Where we tried.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Child {
    /// Starts a shim (`shim_program shim`) that starts the engine.
    ///
    /// `shim_program` is best `/proc/self/exe`: unlike `std::env::current_exe()` it still works
    /// when an upgrade has replaced the file, and then it is the version that speaks our protocol.
    ///
    /// # Errors
    /// There is no shim, and so no engine; what was started has been killed.
    pub async fn start(shim_program: &Path, spec: ShimSpec) -> Result<Self, LaunchError> {
        let no_shim = |source| LaunchError::NoShim {
            program: shim_program.to_owned(),
            source,
        };
        let mut process = Command::new(shim_program)
            .arg0("kvwarden")
            .arg("shim")
            // The shim bears the token too, so that one sweep finds all; it needs nothing else.
            .env_clear()
            .env(TREE_TOKEN, &spec.token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr_to(&spec.log))
            .spawn()
            .map_err(no_shim)?;
        let shim = process.id().and_then(|pid| pid.try_into().ok());
        let shim = shim.and_then(ProcessId::of);
        let link = timeout(START_TIMEOUT, introduce(&mut process, &spec)).await;
        match link.unwrap_or_else(|_| Err(LaunchError::NoAnswer("timed out".into()))) {
            Ok(link) => Ok(Self {
                model: spec.model,
                token: spec.token,
                record: spec.record,
                process: Some(process),
                shim,
                asked_to_stop: false,
                link,
            }),
            Err(error) => {
                let _ = process.kill().await;
                tree::kill_tree(&spec.token).await;
                Err(error)
            }
        }
    }

    /// Takes over an engine that an earlier orchestrator left running. The first event is
    /// `Started` again, or how it ended.
    ///
    /// # Errors
    /// Nobody listens at its socket. Then `tree::kill_tree(&record.token)` ends what may be left,
    /// and `record.exit` says how the engine ended, if its shim lived to see it.
    pub async fn adopt(path: &Path, record: ShimRecord) -> Result<Self, LaunchError> {
        Ok(Self {
            link: connect(&record.socket).await?,
            model: record.model,
            token: record.token,
            record: path.to_owned(),
            process: None,
            shim: Some(record.shim),
            asked_to_stop: false,
        })
    }

    /// The shim's process.
    #[must_use]
    pub fn shim(&self) -> Option<ProcessId> {
        self.shim
    }

    /// Asks the engine to end; after `grace` its tree is killed. Asking again can only shorten.
    pub fn stop(&mut self, grace: Duration) {
        self.asked_to_stop = true;
        let Link::Open(_, write) = &self.link else {
            return;
        };
        let Ok(mut line) = serde_json::to_vec(&ShimCommand::Stop { grace }) else {
            return;
        };
        line.push(b'\n');
        // A hundred bytes into an empty socket buffer: they go in whole or the shim is gone, and
        // that `next_event` will notice.
        let _ = write.try_write(&line);
    }

    /// What happened next; `None` once the engine's end was told and its shim is reaped.
    pub async fn next_event(&mut self) -> Option<ShimEvent> {
        loop {
            match &mut self.link {
                Link::Open(lines, _) => {
                    let line = lines.next_line().await.ok().flatten();
                    match line.map(|line| serde_json::from_str(&line)) {
                        Some(Ok(started @ ShimEvent::Started { .. })) => return Some(started),
                        Some(Ok(end)) => {
                            self.link = Link::Over;
                            return Some(end);
                        }
                        Some(Err(_)) | None => self.link = Link::Lost,
                    }
                }
                Link::Lost => {
                    let end = self.lost().await;
                    self.link = Link::Over;
                    return Some(end);
                }
                Link::Over => {
                    if let Some(process) = &mut self.process {
                        let _ = process.wait().await;
                    }
                    return None;
                }
            }
        }
    }

    /// The shim is lost. Its engine went with it (PDEATHSIG), but not what the engine had started.
    async fn lost(&mut self) -> ShimEvent {
        match (&mut self.process, self.shim) {
            (Some(process), _) => drop(process.kill().await),
            (None, Some(shim)) => shim.kill(),
            (None, None) => {}
        }
        let killed = tree::kill_tree(&self.token).await;
        tracing::warn!(model = %self.model, killed, "an engine's supervisor was lost");
        let told = read_record(&self.record).filter(|record| record.token == self.token);
        let exit = told.and_then(|record| record.exit).unwrap_or(ShimExit {
            code: None,
            signal: None,
            class: if self.asked_to_stop {
                FailureClass::Stopped
            } else {
                FailureClass::Killed
            },
        });
        ShimEvent::Exited {
            exit,
            log_tail: vec!["kvwarden: the engine's supervisor was killed".into()],
            recent: None,
        }
    }
}

/// Reads what a shim left on disk.
#[must_use]
pub fn read_record(path: &Path) -> Option<ShimRecord> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Hands the spec over, waits for the shim to listen, and connects.
async fn introduce(process: &mut Process, spec: &ShimSpec) -> Result<Link, LaunchError> {
    let no_answer = |error: io::Error| LaunchError::NoAnswer(error.to_string());
    let mut line = serde_json::to_vec(spec).map_err(|error| no_answer(error.into()))?;
    line.push(b'\n');
    if let Some(mut stdin) = process.stdin.take() {
        stdin.write_all(&line).await.map_err(no_answer)?;
    }
    let mut said = String::new();
    if let Some(stdout) = process.stdout.take() {
        let mut stdout = BufReader::new(stdout.take(FIRST_LINE));
        stdout.read_line(&mut said).await.map_err(no_answer)?;
    }
    match said.trim_end() {
        LISTENING => connect(&spec.socket).await,
        "" => Err(LaunchError::NoAnswer("it died at once".into())),
        other => Err(match other.strip_prefix(REFUSED) {
            Some(reason) => LaunchError::Refused(reason.to_owned()),
            None => LaunchError::NoAnswer(format!("it said {other:?}")),
        }),
    }
}

async fn connect(socket: &Path) -> Result<Link, LaunchError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| LaunchError::NoSocket {
            socket: socket.to_owned(),
            source,
        })?;
    let (read, write) = stream.into_split();
    Ok(Link::Open(BufReader::new(read).lines(), write))
}

/// The shim says little on stderr (a panic), and that belongs beside the engine's output.
fn stderr_to(log: &Path) -> Stdio {
    files::append(log).map_or_else(|_| Stdio::null(), Stdio::from)
}
