//! The engine's processes: started, signalled, reaped.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, PipeReader, PipeWriter},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use kvwarden_actors::process::{
    cgroup::Cgroup,
    shim::{KEEP_ENVIRON, ShimSpec, StopCommand},
    tree::{TREE_TOKEN, Table},
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        signal::{self, Signal},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{self, Pid},
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
}

/// The engine's tree of processes.
#[derive(Debug)]
pub(super) struct Engine {
    main: Pid,
    /// Set once the main process is reaped; from then on its pid may be another's.
    ended: Option<Ended>,
    token: String,
    cgroup: Option<Cgroup>,
    /// The command that ends it, while that runs.
    stop: Option<Pid>,
    /// How that failed, until somebody tells of it.
    stop_failure: Option<Ended>,
    /// Where that writes to.
    output: PipeWriter,
}

impl Engine {
    /// Starts the engine in a session and, if we can, a cgroup of its own. Its output and its
    /// errors come out of the one pipe, in the order it wrote them.
    pub(super) fn spawn(spec: &ShimSpec) -> io::Result<(Self, PipeReader)> {
        let (output, input) = io::pipe()?;
        let cgroup = Cgroup::create(&spec.token).ok();
        let entrance = cgroup.as_ref().and_then(|cgroup| cgroup.entrance().ok());
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .env_clear()
            .envs(&spec.env)
            .env(TREE_TOKEN, &spec.token)
            .env(KEEP_ENVIRON, "1")
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input.try_clone()?);
        let shim = unistd::getpid();
        // SAFETY: `become_engine` runs between fork and exec; it makes system calls and returns
        // plain error numbers, so it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || become_engine(shim, entrance.as_ref())) };
        // Not waited for by its handle: reap() waits for all children at once.
        match command.spawn().map(|child| i32::try_from(child.id())) {
            Ok(Ok(pid)) => {
                let engine = Self {
                    main: Pid::from_raw(pid),
                    ended: None,
                    token: spec.token.clone(),
                    cgroup,
                    stop: None,
                    stop_failure: None,
                    output: input,
                };
                Ok((engine, output))
            }
            failed => {
                if let Some(cgroup) = cgroup {
                    cgroup.remove();
                }
                Err(failed
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::InvalidData.into()))
            }
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.main.as_raw()
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// The kernel killed some of it for want of memory; unknown without a cgroup.
    pub(super) fn is_oom_killed(&self) -> bool {
        self.cgroup.as_ref().is_some_and(Cgroup::has_oom_kill)
    }

    /// Runs the command that ends it, as a part of its tree.
    pub(super) fn run_stop(&mut self, stop: &StopCommand) -> io::Result<()> {
        let child = Command::new(&stop.program)
            .args(&stop.args)
            .env_clear()
            .envs(&stop.env)
            .env(TREE_TOKEN, &self.token)
            .stdin(Stdio::null())
            .stdout(self.output.try_clone()?)
            .stderr(self.output.try_clone()?)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        self.stop = Some(Pid::from_raw(pid));
        Ok(())
    }

    /// The command that ends it has not come to its end.
    pub(super) fn is_being_stopped(&self) -> bool {
        self.stop.is_some()
    }

    /// How the command that ends it failed; told once.
    pub(super) fn take_stop_failure(&mut self) -> Option<Ended> {
        self.stop_failure.take()
    }

    /// SIGTERM to the main process alone: it knows how to end the others.
    pub(super) fn terminate(&self) {
        if self.ended.is_none() {
            let _ = signal::kill(self.main, Signal::SIGTERM);
        }
    }

    /// Takes the status of every child that has ended, adopted orphans among them; whether any
    /// child is left.
    pub(super) fn reap(&mut self) -> bool {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended_with(pid, Some(code), None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended_with(pid, None, Some(signal as i32));
                }
                Ok(WaitStatus::StillAlive) => return true,
                Err(Errno::ECHILD) => {
                    self.ended_with(self.main, None, None);
                    self.stop = None;
                    return false;
                }
                // Reaped, but by a real-time signal, which nix can't name.
                Err(Errno::EINVAL) if self.main_is_gone() => {
                    self.ended_with(self.main, None, None);
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn ended_with(&mut self, pid: Pid, code: Option<i32>, signal: Option<i32>) {
        let ended = Ended { code, signal };
        if self.stop.take_if(|stop| *stop == pid).is_some() && code != Some(0) {
            self.stop_failure = Some(ended);
        }
        if pid == self.main {
            self.ended.get_or_insert(ended);
        }
    }

    fn main_is_gone(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.main), flags) == Err(Errno::ECHILD)
    }

    /// SIGKILL to everything that is left; whether that was nothing.
    ///
    /// The cgroup is quickest, but its absence proves nothing. Descent finds all that the kernel
    /// gave us as subreaper; the token finds the rest where it would not (gVisor, seccomp).
    pub(super) fn sweep(&self) -> io::Result<bool> {
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill();
        }
        let table = Table::read()?;
        let mut left = table.descendants(&BTreeSet::from([unistd::getpid().as_raw()]));
        left.extend(table.bearing(&self.token)?);
        for process in &left {
            process.kill();
        }
        Ok(left.is_empty())
    }

    /// Gives back the cgroup of a tree that is gone.
    pub(super) fn clear(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }
}

/// What the child does to itself before it becomes the engine.
fn become_engine(shim: Pid, cgroup: Option<&File>) -> io::Result<()> {
    if let Some(entrance) = cgroup {
        let _ = unistd::write(entrance.as_fd(), b"0");
    }
    unistd::setsid()?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The shim may have died before that line, and then nobody would tell us.
    if unistd::getppid() != shim {
        return Err(Errno::ESRCH.into());
    }
    close_on_exec();
    Ok(())
}

/// Whatever descriptors came down to us from the orchestrator's parent end here, so that no engine
/// holds a port or a lock that is not its own.
fn close_on_exec() {
    let first = 3u32;
    // SAFETY: close_range takes three integers; with this flag it closes nothing now.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}
