//! Finding and ending the processes of one engine.
//!
//! An engine is a tree: vLLM's API server starts an `EngineCore`, that starts workers, and each may
//! call `setsid`, outlive its parent and keep a GPU's memory. Two marks lead to them. They descend
//! from the shim, which is a subreaper; and they carry the tree's token in their environment, which
//! is what is left when the shim itself was killed and its orphans went to init.
//!
//! Pids are reused, so a process is a pid and its start time, and signals go through a pidfd where
//! the kernel has one (5.3).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use kvwarden_policy::startup::Traces;
use nix::{libc, sys::signal, unistd::Pid};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;

/// The variable that marks every process of an engine's tree, so that leftovers can be found.
pub const TREE_TOKEN: &str = "KVWARDEN_TREE";

/// Ticks of `/proc` are hundredths of a second on every architecture (`USER_HZ`).
const MILLIS_PER_TICK: u64 = 10;

/// One process, whatever becomes of its pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: u64,
}

/// The processes of the machine at one moment.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<i32, Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    parent: i32,
    /// Processor time, of ended children that were waited for as well.
    cpu: Duration,
    /// A zombie without threads: nothing of it runs and nothing can be signalled.
    dead: bool,
}

impl ProcessId {
    /// The process that has this pid now.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let start = read_entry(pid).ok()??.start;
        Some(Self { pid, start })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        let entry = read_entry(self.pid).ok().flatten();
        entry.is_some_and(|entry| entry.start == self.start && !entry.dead)
    }

    /// SIGKILL, unless the pid has gone to another process.
    pub fn kill(self) {
        let pidfd = pidfd_open(self.pid);
        // Only after the pidfd is open: from then on it means the process this line looks at.
        if Self::of(self.pid) != Some(self) {
            return;
        }
        match pidfd {
            Ok(pidfd) => pidfd_kill(&pidfd),
            Err(_) => {
                let _ = signal::kill(Pid::from_raw(self.pid), signal::Signal::SIGKILL);
            }
        }
    }
}

impl Table {
    /// Reads `/proc`. Processes that come or go meanwhile may or may not be in it.
    ///
    /// # Errors
    /// `/proc` can't be read, for instance because we are out of file descriptors.
    pub fn read() -> io::Result<Self> {
        let pids = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let entries = pids.map(|pid| Ok(read_entry(pid)?.map(|entry| (pid, entry))));
        let present = entries.filter_map(io::Result::transpose);
        Ok(Self(present.collect::<io::Result<_>>()?))
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn has(&self, process: ProcessId) -> bool {
        self.0
            .get(&process.pid)
            .is_some_and(|entry| entry.start == process.start && !entry.dead)
    }

    /// The living processes below the given ones, these not among them.
    #[must_use]
    pub fn descendants(&self, roots: &BTreeSet<i32>) -> BTreeSet<ProcessId> {
        let mut below = roots.clone();
        loop {
            let known = below.len();
            let children = self.0.iter().filter(|(_, e)| below.contains(&e.parent));
            let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
            below.extend(children);
            if below.len() == known {
                return self.living(below.difference(roots).copied());
            }
        }
    }

    /// What a process and all below it have done so far, by `/proc`.
    #[must_use]
    pub fn traces(&self, root: ProcessId) -> Traces {
        let mut all = self.descendants(&BTreeSet::from([root.pid]));
        all.insert(root);
        let mut sum = Traces::default();
        for process in all.iter().filter(|process| self.has(**process)) {
            sum.cpu += self
                .0
                .get(&process.pid)
                .map(|entry| entry.cpu)
                .unwrap_or_default();
            sum.io += moved_bytes(process.pid);
        }
        sum
    }

    /// Every token that some process carries in its environment, this one left out.
    ///
    /// # Errors
    /// As for [`Self::bearing`].
    pub fn tokens(&self) -> io::Result<BTreeSet<String>> {
        let own = std::process::id();
        let mut tokens = BTreeSet::new();
        for pid in self.0.keys().filter(|pid| pid.unsigned_abs() != own) {
            let environ = read_proc(*pid, "environ")?.unwrap_or_default();
            let mut variables = environ.split(|b| *b == 0).map(String::from_utf8_lossy);
            let token = variables.find_map(|variable| {
                let (name, token) = variable.split_once('=')?;
                (name == TREE_TOKEN).then(|| token.to_owned())
            });
            tokens.extend(token);
        }
        Ok(tokens)
    }

    /// The pid of a process's parent.
    #[must_use]
    pub fn parent(&self, process: ProcessId) -> Option<i32> {
        let entry = self.0.get(&process.pid);
        Some(entry.filter(|entry| entry.start == process.start)?.parent)
    }

    /// The living processes that carry `token` in their environment, and what descends from them.
    /// This process is never among them.
    ///
    /// # Errors
    /// `/proc` can't be read; that other users' environments are closed to us is no error.
    pub fn bearing(&self, token: &str) -> io::Result<BTreeSet<ProcessId>> {
        let mark = format!("{TREE_TOKEN}={token}");
        let own = std::process::id();
        let mut bearers = BTreeSet::new();
        for pid in self.0.keys().filter(|pid| pid.unsigned_abs() != own) {
            let environ = read_proc(*pid, "environ")?.unwrap_or_default();
            if environ.split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
                bearers.insert(*pid);
            }
        }
        let mut found = self.descendants(&bearers);
        found.extend(self.living(bearers.into_iter()));
        found.retain(|process| process.pid.unsigned_abs() != own);
        Ok(found)
    }

    fn living(&self, pids: impl Iterator<Item = i32>) -> BTreeSet<ProcessId> {
        let alive = pids.filter_map(|pid| Some((pid, self.0.get(&pid)?)));
        alive
            .filter(|(_, entry)| !entry.dead)
            .map(|(pid, entry)| ProcessId {
                pid,
                start: entry.start,
            })
            .collect()
    }
}

/// Processor time that each of the living processes which carry `token` has taken; none if that
/// can't be told.
pub async fn processor_times(token: &str) -> BTreeMap<ProcessId, Duration> {
    let token = token.to_owned();
    // Off this thread, as in `kill_tree`.
    let read = tokio::task::spawn_blocking(move || -> io::Result<_> {
        let table = Table::read()?;
        let time = |id: ProcessId| Some((id, table.0.get(&id.pid)?.cpu));
        Ok(table
            .bearing(&token)?
            .into_iter()
            .filter_map(time)
            .collect())
    });
    let times = read
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    times.unwrap_or_default()
}

/// Kills every process that carries `token`, shim included, and returns how many there were once
/// none is left. It does not give up: a process stuck in the kernel still holds its GPU memory.
pub async fn kill_tree(token: &str) -> usize {
    let mut seen = BTreeSet::new();
    let mut pause = Duration::from_millis(5);
    loop {
        let (token, known) = (token.to_owned(), seen.clone());
        // Off this thread: actors share it, and a thousand processes take some ten milliseconds.
        let pass = tokio::task::spawn_blocking(move || kill_pass(&token, &known));
        match pass.await {
            Ok(Ok(Pass::Gone)) => return seen.len(),
            Ok(Ok(Pass::Killed(alive))) => seen.extend(alive),
            Ok(Err(error)) => tracing::warn!(%error, "can't look for what is left of an engine"),
            Err(_) => return seen.len(), // the runtime ends
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Kills a process and all that descends from it now.
pub fn kill_below(root: ProcessId) {
    if let Ok(table) = Table::read() {
        for process in table.descendants(&BTreeSet::from([root.pid])) {
            process.kill();
        }
    }
    root.kill();
}

enum Pass {
    Gone,
    Killed(BTreeSet<ProcessId>),
}

/// Kills what is alive. `known` stays in sight: a dying process has no environment any more long
/// before its GPU memory is back.
fn kill_pass(token: &str, known: &BTreeSet<ProcessId>) -> io::Result<Pass> {
    let cgroup = Cgroup::find(token);
    if let Some(cgroup) = &cgroup {
        let _ = cgroup.kill();
    }
    let table = Table::read()?;
    let mut alive = table.bearing(token)?;
    alive.extend(known.iter().filter(|process| table.has(**process)));
    for process in &alive {
        process.kill();
    }
    if !alive.is_empty() || cgroup.as_ref().is_some_and(Cgroup::is_populated) {
        return Ok(Pass::Killed(alive));
    }
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
    Ok(Pass::Gone)
}

/// Bytes that a process moved by calls, files and pipes alike, and those that came from disk without
/// a call, as mapped weights do (`/proc/PID/io`, see proc(5)).
fn moved_bytes(pid: i32) -> u64 {
    let io = read_proc(pid, "io").ok().flatten().unwrap_or_default();
    let io = String::from_utf8_lossy(&io).into_owned();
    let counts = io.lines().filter_map(|line| line.split_once(": "));
    let counts = counts.filter(|(name, _)| matches!(*name, "rchar" | "wchar" | "read_bytes"));
    counts
        .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
        .sum()
}

fn read_entry(pid: i32) -> io::Result<Option<Entry>> {
    let stat = read_proc(pid, "stat")?;
    Ok(stat.and_then(|stat| parse_stat(&String::from_utf8_lossy(&stat))))
}

/// `None` if the process is gone or not ours to look at. Other errors (no descriptor left) must
/// not pass for that: a sweep would call a tree gone that it could not see.
fn read_proc(pid: i32, file: &str) -> io::Result<Option<Vec<u8>>> {
    const GONE: [i32; 4] = [libc::ENOENT, libc::ESRCH, libc::EACCES, libc::EPERM];
    match fs::read(format!("/proc/{pid}/{file}")) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.raw_os_error().is_some_and(|e| GONE.contains(&e)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `PID (NAME) STATE PPID ..`, see proc_pid_stat(5). The name may hold anything, also `)`.
fn parse_stat(stat: &str) -> Option<Entry> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let state = *fields.first()?;
    let threads: u32 = fields.get(17)?.parse().ok()?;
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Entry {
        start: number(19)?,
        parent: fields.get(1)?.parse().ok()?,
        cpu: Duration::from_millis((11..15).filter_map(number).sum::<u64>() * MILLIS_PER_TICK),
        // The main thread of a dying process is a zombie while others still hold its memory.
        dead: matches!(state, "Z" | "X") && threads <= 1,
    })
}

/// Whether the kernel has pidfds. Without them, a signal in the moment that a pid is reused could
/// reach a stranger.
#[must_use]
pub fn has_pidfd() -> bool {
    std::process::id()
        .try_into()
        .is_ok_and(|own| pidfd_open(own).is_ok())
}

/// nix has no pidfd yet (0.31).
fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just gave us this descriptor, and nothing else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pidfd_kill(pidfd: &OwnedFd) {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; a null siginfo means the same as kill(2).
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            no_info,
            0,
        )
    };
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper(token: &str) -> Child {
        // The outer shell sheds the token from the inner one's environment.
        Command::new("sh")
            .args(["-c", "env -u KVWARDEN_TREE sh -c 'echo; sleep 600'; :"])
            .env(TREE_TOKEN, token)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits for the inner shell's line.
    fn grown(child: &mut Child) {
        use std::io::Read;
        let mut line = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
    }

    #[tokio::test]
    async fn tree_is_killed_by_token_and_another_is_left_alone() {
        let (mut ours, mut other) = (sleeper("unit-a"), sleeper("unit-b"));
        grown(&mut ours);
        grown(&mut other);
        let table = Table::read().unwrap();
        assert!(table.bearing("unit-a").unwrap().len() >= 2);
        assert!(table.tokens().unwrap().contains("unit-a"));
        let outer = ProcessId::of(ours.id().try_into().unwrap()).unwrap();
        assert_eq!(table.parent(outer), std::process::id().try_into().ok());

        let reaper = std::thread::spawn(move || ours.wait().unwrap());
        assert!(kill_tree("unit-a").await >= 2);
        assert!(!reaper.join().unwrap().success());
        assert!(Table::read().unwrap().bearing("unit-a").unwrap().is_empty());
        assert!(!Table::read().unwrap().bearing("unit-b").unwrap().is_empty());

        let reaper = std::thread::spawn(move || other.wait().unwrap());
        kill_tree("unit-b").await;
        reaper.join().unwrap();
        assert_eq!(kill_tree("unit-b").await, 0);
    }

    #[test]
    fn what_a_tree_does_is_counted_with_its_children() {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "head -c 3000000 /dev/zero | cat >/dev/null; echo; read line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        grown(&mut child);
        let root = ProcessId::of(child.id().try_into().unwrap()).unwrap();
        let here = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        let table = Table::read().unwrap();
        // Children that ended took their bytes along; this process has read a good deal.
        assert!(table.traces(here).io > table.traces(root).io);
        assert!(table.traces(here).cpu >= table.traces(root).cpu);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(Table::read().unwrap().traces(root), Traces::default());
    }

    #[test]
    fn reused_pid_is_not_killed() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut process = ProcessId::of(pid).unwrap();
        process.start += 1;
        process.kill();
        assert!(child.try_wait().unwrap().is_none());
        ProcessId::of(pid).unwrap().kill();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn stat_of_an_odd_name_is_read() {
        let stat =
            "814 (a) R) b) S 7 814 814 0 -1 4194304 100 0 0 0 1 2 3 4 20 0 3 0 5150 2281472 199";
        let entry = parse_stat(stat).unwrap();
        assert_eq!(entry.cpu, Duration::from_millis(100));
        assert_eq!((entry.parent, entry.start, entry.dead), (7, 5150, false));
        let zombie =
            |threads| format!("9 (x) Z 1 9 9 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 77 0 0");
        assert!(parse_stat(&zombie(1)).unwrap().dead);
        assert!(!parse_stat(&zombie(2)).unwrap().dead);
        assert_eq!(parse_stat("9 (x) Z"), None);
    }
}
