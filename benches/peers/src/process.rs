//! A proxy as a process: where it runs, and what it and its children take.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

/// Puts this thread, and what is started from it, on these cores.
pub(crate) fn move_to(cores: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// A process and its children, on a core of its own. They are ended with it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Its children are none of ours.
    is_alone: bool,
}

impl Process {
    /// Starts it on `cores`; this thread itself stays on `own`.
    pub(crate) fn start(command: &mut Command, cores: &[usize], own: usize) -> io::Result<Self> {
        move_to(cores)?;
        let process = Self::start_anywhere(command);
        move_to(&[own])?;
        process
    }

    /// Starts it on whatever cores this thread may use.
    pub(crate) fn start_anywhere(command: &mut Command) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        Ok(Self {
            child,
            is_alone: false,
        })
    }

    /// Its number, also if it has ended.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().ok().flatten().is_some()
    }

    /// CPU time until now.
    pub(crate) fn cpu(&self) -> Duration {
        let nanos = self.tree().iter().map(|pid| threads_cpu(*pid)).sum();
        Duration::from_nanos(nanos)
    }

    /// Memory now, in KiB; what several of them share counts once.
    pub(crate) fn memory(&self) -> u64 {
        self.tree().iter().map(|pid| memory(*pid)).sum()
    }

    /// Asks it to end, and waits for so long.
    pub(crate) async fn end(&mut self, within: Duration) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let _ = killpg(group, Signal::SIGTERM);
        let start = Instant::now();
        while !self.has_ended() && start.elapsed() < within {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it alone: what it started lives on.
    pub(crate) fn kill_alone(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.is_alone = true;
        Ok(())
    }

    fn tree(&self) -> Vec<u32> {
        let parents: Vec<(u32, u32)> = processes().collect();
        let mut tree = vec![self.child.id()];
        let mut next = 0;
        while let Some(parent) = tree.get(next).copied() {
            let children = parents.iter().filter(|(_, of)| *of == parent);
            tree.extend(children.map(|(pid, _)| *pid));
            next += 1;
        }
        tree
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_alone {
            return;
        }
        let group = Pid::from_raw(self.child.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// All processes and their parents.
fn processes() -> impl Iterator<Item = (u32, u32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in brackets, may hold anything.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        Some((pid, parent.parse().ok()?))
    })
}

/// In nanoseconds, which `/proc/PID/stat` counts in hundredths of a second.
fn threads_cpu(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let entries = threads.into_iter().flatten().flatten();
    let times = entries.filter_map(|entry| {
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    times.sum()
}

fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = pss.and_then(|rest| rest.trim().strip_suffix(" kB"));
    number.and_then(|kib| kib.trim().parse().ok()).unwrap_or(0)
}
