//! What a process holds.

use std::fs;

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Memory in use, in KiB.
    pub resident: u64,
    /// Open files and sockets.
    pub descriptors: usize,
}

impl Footprint {
    /// Looks at a process.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
        Self {
            resident: kib.expect("a process has memory"),
            descriptors: open.count(),
        }
    }
}

/// Lets this process open all the files that it may, and says how many: floods are sent over sockets
/// of its own, and the usual soft limit is 1024.
///
/// # Panics
/// If there is no limit to read.
pub fn open_files() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("what is allowed may be used");
    hard
}
