//! `kvwarden serve` as a user runs it, with a configuration and directories of its own.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    Client, EngineProcess, Exchange, Metrics, Process, Stopwatch, eventually, eventually_within,
    kvwarden, open_files, wait::poll, workspace,
};

/// A simulated engine is ready in under a second; this is for a machine that also compiles.
const READY: Duration = Duration::from_secs(60);
/// More than the longest stop ladder in these tests.
const GONE: Duration = Duration::from_secs(60);
/// Lines of the log that a failure shows.
const TAIL: usize = 60;

/// A running `kvwarden serve`. Dropping it kills it and everything it started.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where the API listens.
    pub port: u16,
    home: tempfile::TempDir,
    env: Vec<(&'static str, String)>,
    log: Arc<Mutex<Vec<String>>>,
    trees: Mutex<BTreeSet<String>>,
}

/// What a command printed.
#[must_use]
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// How long it took.
    pub took: Duration,
}

/// A process of kvwarden beside the one that serves. Dropping it kills it.
#[derive(Debug)]
pub struct Sibling(Child);

impl Sibling {
    /// Waits for its end.
    ///
    /// # Panics
    /// If it goes on.
    #[must_use]
    pub fn wait_for_end(&mut self) -> Ended {
        end_of(&mut self.0)
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Starts a server and waits until `/health` says that all of it is there. `config` is TOML
    /// without `listen`.
    ///
    /// # Panics
    /// If it does not become ready; its log is shown.
    #[must_use]
    pub fn start(config: &str) -> Self {
        let mut server = Self::launch(config);
        server.wait_until_ready(READY);
        server
    }

    /// Starts a server and waits for nothing.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    pub fn launch(config: &str) -> Self {
        Self::launch_with(config, &[], Vec::new())
    }

    /// The same, with further arguments of `serve` and further environment.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    pub fn launch_with(config: &str, args: &[&str], env: Vec<(&'static str, String)>) -> Self {
        let _ = open_files();
        let port = free_port();
        let home = tempfile::Builder::new().prefix("kvw").tempdir();
        let home = home.expect("a temporary directory");
        fs::create_dir(home.path().join("tmp")).expect("a directory is made");
        let log = Arc::default();
        Self {
            child: spawn(port, home.path(), config, args, &env, &log),
            port,
            home,
            env,
            log,
            trees: Mutex::default(),
        }
    }

    /// Ends the server and its engines, and starts it anew with another configuration and with what
    /// it left behind.
    ///
    /// # Panics
    /// If it does not end well, or not start.
    pub fn restart(&mut self, config: &str) {
        let ended = self.terminate();
        assert!(ended.status.success(), "{ended:?}");
        self.wait_until_nothing_is_left(GONE);
        self.start_again(config);
        self.wait_until_ready(READY);
    }

    /// Starts the server anew, after its end, with what it left behind and what still runs there.
    pub fn start_again(&mut self, config: &str) {
        self.child = spawn(
            self.port,
            self.home.path(),
            config,
            &[],
            &self.env,
            &self.log,
        );
    }

    /// Starts a process that is to take over, with another configuration.
    #[must_use]
    pub fn successor(&self, config: &str) -> Sibling {
        let (args, home) = (["--takeover"], self.home.path());
        Sibling(spawn(self.port, home, config, &args, &self.env, &self.log))
    }

    /// Lets another process take over, waits until it serves, and returns the one that did before.
    ///
    /// # Panics
    /// If it does not.
    pub fn take_over(&mut self, config: &str) -> Sibling {
        let before = self.count("another process serves now");
        let mut successor = self.successor(config);
        eventually_within(READY, "a takeover", || {
            let ended = successor.0.try_wait().ok().flatten();
            assert!(ended.is_none(), "the successor ended: {ended:?}");
            (self.count("another process serves now") > before).then_some(())
        });
        std::mem::swap(&mut self.child, &mut successor.0);
        successor
    }

    /// Lines of the log that hold `text`.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        let log = self.log();
        log.iter().filter(|line| line.contains(text)).count()
    }

    /// As [`Self::start_again`], with the configuration that is there.
    pub fn resume(&mut self) {
        self.child = serve(self.home.path(), &[], &self.env, &self.log);
    }

    /// Kills it, as the kernel's OOM killer would, and waits for its end. Its engines stay.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.wait_for_end();
    }

    /// Waits until `/health` is 200.
    ///
    /// # Panics
    /// If that takes longer than `limit`, or the server ends.
    pub fn wait_until_ready(&mut self, limit: Duration) {
        let client = self.client();
        let mut last = String::new();
        let ready = poll(limit, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(format!("kvwarden ended with {status}")));
            }
            match client.try_get("/health") {
                Ok(reply) if reply.status == 200 => return Some(Ok(())),
                // Nothing will mend that while we wait.
                Ok(reply) if reply.text().contains("\"state\":\"broken\"") => {
                    return Some(Err(format!("a model is broken: {reply}")));
                }
                Ok(reply) => last = reply.to_string(),
                Err(error) => last = error.to_string(),
            }
            None
        });
        let why = match ready {
            Some(Ok(())) => return,
            Some(Err(why)) => why,
            None => format!("not ready after {} s; /health: {last}", limit.as_secs()),
        };
        panic!("{why}");
    }

    /// A client of this server.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.port))
    }

    /// Posts JSON as a tenant on a socket of its own.
    #[must_use]
    pub fn exchange(&self, path: &str, tenant: &str, body: &Value) -> Exchange {
        Exchange::post(self.port, path, tenant, body)
    }

    /// What `/metrics` says.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::new(self.client().get("/metrics").expect(200).text())
    }

    /// Everything it said so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.clone()
    }

    /// The end of what it said.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        log[log.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Its process id.
    ///
    /// # Panics
    /// Never: process ids fit.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("a process id"))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("kvwarden lives");
    }

    /// The server, its shims and its engines.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        Process::all_of(&self.home.path().join("tmp"), &mut trees)
    }

    /// Its engines.
    #[must_use]
    pub fn engines(&self) -> Vec<EngineProcess> {
        let mut engines: Vec<_> = self
            .processes()
            .iter()
            .filter_map(Process::engine)
            .collect();
        // A child between fork and exec, or a worker, shows its parent's command line.
        engines.sort_by_key(|engine| (engine.port, engine.pid));
        engines.dedup_by_key(|engine| engine.port);
        engines
    }

    /// Its only engine.
    ///
    /// # Panics
    /// If none appears.
    #[must_use]
    pub fn engine(&self) -> EngineProcess {
        eventually("an engine to run", || self.engines().into_iter().next())
    }

    /// The engine that serves the model of that id.
    ///
    /// # Panics
    /// If none appears.
    #[must_use]
    pub fn engine_of(&self, model: &str) -> EngineProcess {
        eventually("the model's engine to run", || {
            let mut engines = self.engines().into_iter();
            engines.find(|engine| engine.args.iter().any(|arg| arg == model))
        })
    }

    /// Runs a command of the CLI that asks this server.
    ///
    /// # Panics
    /// If it can't be run.
    #[must_use]
    pub fn command(&self, name: &str, args: &[&str]) -> Output {
        let url = format!("http://127.0.0.1:{}", self.port);
        let output = Command::new(kvwarden())
            .args([name, "--url", &url])
            .args(args)
            .env_remove("KVWARDEN_KEY")
            .output();
        output.expect("kvwarden runs")
    }

    /// Writes another configuration, and leaves it to the caller to have it read.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn configure(&self, config: &str) {
        write_config(self.port, self.home.path(), config);
    }

    /// Sends SIGHUP and waits until the configuration was read again; what came of it.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn hang_up(&self) -> Value {
        let last = || {
            let status = self.client().get("/kvwarden/status").expect(200).json();
            status["last_reload"].clone()
        };
        let before = last()["number"].clone();
        self.signal(Signal::SIGHUP);
        eventually_within(READY, "the configuration to be read again", || {
            Some(last()).filter(|last| last["number"] != before)
        })
    }

    /// What it says of a model.
    #[must_use]
    pub fn model(&self, id: &str) -> Value {
        let status = self.client().get("/kvwarden/status").expect(200).json();
        status["loaded_models"][id].clone()
    }

    /// Waits until a model is in this state.
    ///
    /// # Panics
    /// If it is not within `limit`.
    pub fn wait_until_model_is(&self, id: &str, state: &str, limit: Duration) {
        eventually_within(limit, &format!("{id} to be {state}"), || {
            (self.model(id)["state"] == state).then_some(())
        });
    }

    /// An operator's wish, such as `sleep`.
    pub fn wish(&self, id: &str, verb: &str) {
        let path = format!("/kvwarden/models/{id}/{verb}");
        let _ = self.client().post(&path, &Value::Null).expect(202);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it goes on.
    #[must_use]
    pub fn wait_for_end(&mut self) -> Ended {
        end_of(&mut self.child)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// SIGTERM, and its end.
    #[must_use]
    pub fn terminate(&mut self) -> Ended {
        self.signal(Signal::SIGTERM);
        self.wait_for_end()
    }

    /// Waits until no process of its tree is left.
    ///
    /// # Panics
    /// If one stays; it is shown.
    pub fn wait_until_nothing_is_left(&self, limit: Duration) {
        let mut left = Vec::new();
        let gone = poll(limit, || {
            left = self.processes();
            left.is_empty().then_some(())
        });
        assert!(gone.is_some(), "left behind: {left:#?}");
    }

    /// Where its configuration and its state are.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log_tail();
            let mut stderr = std::io::stderr().lock();
            let _ = std::io::Write::write_all(
                &mut stderr,
                format!("--- kvwarden's log ends ---\n{log}\n---\n").as_bytes(),
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Until all are gone: a shim that still writes its record would keep the directory alive.
        let _ = poll(GONE, || {
            let left = self.processes();
            for process in &left {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
    }
}

fn end_of(child: &mut Child) -> Ended {
    let watch = Stopwatch::start();
    let status = eventually_within(GONE, "kvwarden to end", || child.try_wait().ok().flatten());
    Ended {
        status,
        took: watch.elapsed(),
    }
}

fn spawn(
    port: u16,
    home: &Path,
    config: &str,
    args: &[&str],
    env: &[(&'static str, String)],
    log: &Arc<Mutex<Vec<String>>>,
) -> Child {
    write_config(port, home, config);
    serve(home, args, env, log)
}

fn write_config(port: u16, home: &Path, config: &str) {
    let text = format!("listen = \"127.0.0.1:{port}\"\n{config}");
    fs::write(config_file(home), text).expect("the configuration is written");
}

fn serve(
    home: &Path,
    args: &[&str],
    env: &[(&'static str, String)],
    log: &Arc<Mutex<Vec<String>>>,
) -> Child {
    let mut child = Command::new(kvwarden())
        .args(["serve", "--config"])
        .arg(config_file(home))
        .args(args)
        .env("KVWARDEN_STATE_DIR", home.join("state"))
        .env("TMPDIR", home.join("tmp"))
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvwarden starts");
    collect(child.stdout.take(), log);
    collect(child.stderr.take(), log);
    child
}

fn config_file(home: &Path) -> PathBuf {
    home.join("kvwarden.toml")
}

fn collect(output: Option<impl Read + Send + 'static>, log: &Arc<Mutex<Vec<String>>>) {
    let Some(output) = output else {
        return;
    };
    let log = Arc::clone(log);
    // Ends with the pipe, that is with the server.
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    });
}

/// A free port that nobody is given by chance: below the range from which the kernel takes the
/// ports of engines, stubs and clients, and never the same one twice.
///
/// # Panics
/// Never; it looks until one is found.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let ports = std::iter::repeat_with(|| {
        let next = std::process::id() + TAKEN.fetch_add(1, Ordering::Relaxed);
        u16::try_from(FIRST + next % COUNT).ok()
    });
    let mut free = ports
        .flatten()
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("an endless search")
}
