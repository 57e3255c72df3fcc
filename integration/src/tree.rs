//! The processes of a server, found in `/proc` however far they have moved from their parents.
//!
//! `TMPDIR` marks the server and, passed on, its engines. A shim inherits nothing; it carries the
//! token of its engine's tree. Tests that rely on finding nothing first make sure that they would
//! have found something.

use std::{collections::BTreeSet, fs, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line.
    pub args: Vec<String>,
    environ: Vec<String>,
}

/// A process that serves a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineProcess {
    /// Its id.
    pub pid: i32,
    /// Where it listens.
    pub port: u16,
    /// The key it asks for.
    pub key: String,
    /// Its command line.
    pub args: Vec<String>,
}

impl Process {
    /// Every process that we may look at.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }

    /// Every living process whose `TMPDIR` is `dir`, and the rest of their trees. `tokens` keeps
    /// the names of trees, so that what is left of one is found when its engine is gone. Zombies
    /// have no environment and don't count.
    #[must_use]
    pub fn all_of(dir: &Path, tokens: &mut BTreeSet<String>) -> Vec<Self> {
        let mark = format!("TMPDIR={}", dir.display());
        let all = Self::all();
        let marked = all.iter().filter(|process| process.environ.contains(&mark));
        tokens.extend(marked.flat_map(|process| process.tokens().cloned()));
        let is_ours = |process: &Self| {
            process.environ.contains(&mark) || process.tokens().any(|token| tokens.contains(token))
        };
        all.into_iter().filter(is_ours).collect()
    }

    fn tokens(&self) -> impl Iterator<Item = &String> {
        self.environ
            .iter()
            .filter(|entry| entry.starts_with("KVWARDEN_TREE="))
    }

    fn read(pid: i32) -> Option<Self> {
        let list = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
            let items = bytes
                .split(|byte| *byte == 0)
                .filter(|item| !item.is_empty());
            Some(
                items
                    .map(|item| String::from_utf8_lossy(item).into_owned())
                    .collect(),
            )
        };
        Some(Self {
            pid,
            args: list("cmdline")?,
            environ: list("environ")?,
        })
    }

    /// It belongs to the tree of this engine.
    #[must_use]
    pub fn is_of_the_tree_of(&self, engine: &EngineProcess) -> bool {
        Self::read(engine.pid).is_some_and(|root| root.tokens().eq(self.tokens()))
    }

    /// What it was started as, or calls itself, holds `name`.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.args.iter().any(|arg| arg.contains(name))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("the process lives");
    }

    /// The engine this process is, if it is one.
    #[must_use]
    pub fn engine(&self) -> Option<EngineProcess> {
        const KEYS: [&str; 3] = ["VLLM_API_KEY", "LLAMA_API_KEY", "KVWARDEN_ENGINE_KEY"];
        let at = self.args.iter().position(|arg| arg == "--port")?;
        let port = self.args.get(at + 1)?.parse().ok()?;
        let key = self.environ.iter().find_map(|entry| {
            let (name, value) = entry.split_once('=')?;
            KEYS.contains(&name).then(|| value.to_owned())
        });
        Some(EngineProcess {
            pid: self.pid,
            port,
            key: key?,
            args: self.args.clone(),
        })
    }
}

impl EngineProcess {
    /// Kills it, as the kernel's OOM killer would.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn kill(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).expect("the engine lives");
    }

    /// The addresses it listens on, as the kernel prints them (`0100007F` is 127.0.0.1).
    #[must_use]
    pub fn listening_addresses(&self) -> Vec<String> {
        const LISTEN: &str = "0A";
        let wanted = format!("{:04X}", self.port);
        let table = |name: &str| fs::read_to_string(format!("/proc/{}/net/{name}", self.pid));
        let tables = [table("tcp"), table("tcp6")].into_iter().flatten();
        let rows: Vec<String> = tables
            .flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        rows.iter()
            .filter_map(|row| {
                let mut words = row.split_whitespace().skip(1);
                let (address, port) = words.next()?.split_once(':')?;
                let state = words.nth(1)?;
                (port == wanted && state == LISTEN).then(|| address.to_owned())
            })
            .collect()
    }
}
