//! What a process holds.

use std::fs;

use nix::unistd::Pid;

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
