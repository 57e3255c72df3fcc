//! An engine with a tree as vLLM's: what matters about it for whoever must end all of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Process, kvwarden};

/// An executable that passes for vLLM. It is the simulated engine, and before that it leaves three
/// processes that don't end by themselves and ignore SIGTERM: one in a session of its own, its
/// child, and one that has also lost the environment by which trees are known.
#[derive(Debug)]
pub struct FakeTree {
    dir: tempfile::TempDir,
    /// For how long they sleep, by which they are known.
    mark: String,
}

impl FakeTree {
    /// Processes besides the engine.
    pub const SLEEPERS: usize = 3;

    /// Writes the executable.
    ///
    /// # Panics
    /// If it can't be written.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("36{:07}{number:03}", std::process::id());
        let dir = tempfile::tempdir().expect("a directory is made");
        let script = format!(
            "#!/bin/sh\n\
             trap '' TERM\n\
             setsid sh -c 'sleep {mark} & exec sleep {mark}' &\n\
             env -i setsid sleep {mark} &\n\
             trap - TERM\n\
             shift 2\n\
             for arg; do\n\
             shift\n\
             case $arg in --enable-prompt-tokens-details|--enforce-eager|--distributed-executor-backend|uni) ;; *) set -- \"$@\" \"$arg\";; esac\n\
             done\n\
             exec {} sim-engine --preset tiny \"$@\"\n",
            kvwarden().display()
        );
        let tree = Self { dir, mark };
        let path = tree.executable();
        fs::write(&path, script).expect("a script is written");
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&path, mode).expect("it is made executable");
        tree
    }

    /// The configuration of a model named `m` that this serves.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "[[models]]\nid = \"m\"\nengine = \"vllm-cpu\"\nexecutable = \"{}\"\n",
            self.executable().display()
        )
    }

    /// Those of its processes that sleep.
    #[must_use]
    pub fn sleepers(&self) -> Vec<i32> {
        let sleeps =
            |process: &Process| matches!(&process.args[..], [_, mark] if *mark == self.mark);
        let all = Process::all().into_iter().filter(sleeps);
        let mut pids: Vec<i32> = all.map(|process| process.pid).collect();
        pids.sort_unstable();
        pids
    }

    fn executable(&self) -> std::path::PathBuf {
        self.dir.path().join("engine.sh")
    }
}

impl Default for FakeTree {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FakeTree {
    /// What a failed test left.
    fn drop(&mut self) {
        for pid in self.sleepers() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
    }
}
