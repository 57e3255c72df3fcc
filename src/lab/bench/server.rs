//! A server of our own, as a child process with a generated configuration.

use std::{
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    process::Child,
    time::{Instant, sleep, timeout},
};

/// An engine's install and a slow start on a busy machine stay under it.
const START: Duration = Duration::from_secs(1200);

/// How often a starting server is asked.
const LOOK: Duration = Duration::from_millis(50);

/// Without drain a server ends its engines at once; vLLM takes seconds.
const STOP: Duration = Duration::from_secs(60);

/// Longest answer of a status page.
const MAX_PAGE: usize = 4 << 20;

/// A running `kvwarden serve`. Dropping it kills it, and its engines with it unless they are kept.
pub struct Server {
    child: Child,
    place: Place,
    /// Base URL without `/v1`.
    pub base: String,
}

/// Where a server will be.
pub struct Place {
    /// For sockets and logs.
    pub state_dir: PathBuf,
    /// It goes with the server; none where the next server takes over the engines it finds there.
    own: Option<TempDir>,
    /// A loopback port that was free a moment ago.
    pub port: u16,
}

// === impl Place ===

impl Place {
    /// A port, and a private directory or the one where engines are kept.
    ///
    /// # Errors
    /// When the system has neither.
    pub fn find(kept: Option<&Path>) -> anyhow::Result<Self> {
        // Short, for the path of a Unix socket in it ends at 107 bytes.
        let own = || tempfile::Builder::new().prefix("kvw-").tempdir();
        let (state_dir, own) = match kept {
            Some(kept) => {
                std::fs::create_dir_all(kept)?;
                (std::path::absolute(kept)?, None)
            }
            None => own().map(|own| (own.path().to_owned(), Some(own)))?,
        };
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self {
            state_dir,
            own,
            port,
        })
    }

    /// Starts a server here and waits until all its models serve.
    ///
    /// # Errors
    /// When it refuses the configuration, ends, or takes too long; with its own words.
    pub async fn start(self, config: &str) -> anyhow::Result<Server> {
        let file = self.state_dir.join("kvwarden.toml");
        std::fs::write(&file, config)?;
        let log = std::fs::File::create(self.state_dir.join("serve.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: the child calls prctl alone, which is async-signal-safe.
        unsafe {
            // A bench that is killed leaves no server behind.
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?));
        }
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a server of our own")?;
        let mut server = Server {
            child,
            base: format!("http://127.0.0.1:{}", self.port),
            place: self,
        };
        server.until_ready().await?;
        Ok(server)
    }
}

// === impl Server ===

impl Server {
    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("our server ended with {status}:\n{}", self.log());
            }
            match get(&format!("{}/health", self.base), None).await {
                Ok((200, _)) => return Ok(()),
                Ok((_, page)) if page.contains("\"degraded\"") => {
                    bail!("the engine can't be started: {page}\n{}", self.log());
                }
                _ => sleep(LOOK).await,
            }
        }
        bail!(
            "our server was not ready in {} s:\n{}",
            START.as_secs(),
            self.log()
        )
    }

    /// What it said last.
    fn log(&self) -> String {
        let log = self.place.state_dir.join("serve.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends it and its engines; where they are kept it is killed, which they survive.
    pub async fn stop(mut self) {
        if self.place.own.is_none() {
            let _ = self.child.kill().await;
            return;
        }
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // It may be gone already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(STOP, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// A page of a server, asked for with a key if there is one: its status and text.
///
/// # Errors
/// When nobody answers within two seconds.
pub async fn get(url: &str, key: Option<&str>) -> anyhow::Result<(u16, String)> {
    let client = awc::Client::builder()
        .timeout(Duration::from_secs(2))
        .finish();
    let mut request = client.get(url);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let sent = request.send().await;
    let mut response = sent.map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
    let body = response.body().limit(MAX_PAGE).await?;
    Ok((
        response.status().as_u16(),
        String::from_utf8_lossy(&body).into_owned(),
    ))
}

/// A page of JSON.
///
/// # Errors
/// When it can't be had.
pub async fn get_json(url: &str) -> anyhow::Result<Value> {
    let (status, page) = get(url, None).await?;
    anyhow::ensure!(status == 200, "{url}: {status}");
    Ok(serde_json::from_str(&page)?)
}
