//! One cgroup per engine, where the kernel lets us have one.
//!
//! A cgroup is the one mark that a process can't shed, and `cgroup.kill` (Linux 5.14) ends all its
//! members at once, faster than they can fork. Everything here is best effort: without cgroup v2
//! or the right to make one, an engine's tree is found by descent and by token (see
//! [`super::tree`]).

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

/// The cgroup of one engine's tree.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup for `token` below the one this process is in.
    ///
    /// # Errors
    /// There is no cgroup v2 here, or we may not make one.
    pub fn create(token: &str) -> io::Result<Self> {
        let dir = dir_for(token)?;
        fs::create_dir(&dir)?;
        Ok(Self { dir })
    }

    /// The cgroup for `token`, if there is one below ours.
    #[must_use]
    pub fn find(token: &str) -> Option<Self> {
        let dir = dir_for(token).ok().filter(|dir| dir.is_dir())?;
        Some(Self { dir })
    }

    /// Opens the file that a process enters the cgroup by: it writes `0`.
    ///
    /// # Errors
    /// The cgroup is not writable.
    pub fn entrance(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.dir.join("cgroup.procs"))
    }

    /// Whether its members can be killed at once: the kernel is 5.14 or newer.
    #[must_use]
    pub fn has_kill(&self) -> bool {
        self.dir.join("cgroup.kill").exists()
    }

    /// SIGKILL to every member.
    ///
    /// # Errors
    /// The kernel is older than 5.14.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.kill"), "1")
    }

    /// Whether anything in it still runs; zombies do not count (`cgroup.events`).
    #[must_use]
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.events"))
            .is_ok_and(|events| events.contains("populated 1"))
    }

    /// Whether the kernel has killed any of its members because memory ran out.
    #[must_use]
    pub fn has_oom_kill(&self) -> bool {
        let events = fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        let kills = events
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "));
        kills.into_iter().any(|count| count != "0")
    }

    /// Removes the cgroup; it stays if it still has members.
    pub fn remove(&self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

fn dir_for(token: &str) -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    own_dir(&mounts, &membership)
        .map(|dir| dir.join(format!("kvwarden-{token}")))
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Where this process's cgroup is in the file system: the cgroup2 mount (`/sys/fs/cgroup`, or
/// `/sys/fs/cgroup/unified` beside version 1) and in it the path after `0::`.
fn own_dir(mounts: &str, membership: &str) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mount = place.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then_some(mount)
    })?;
    let path = membership
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(mount).join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cgroup_is_found_beside_version_1_and_alone() {
        let hybrid = "40 31 0:37 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = own_dir(hybrid, "8:pids:/\n0::/\n");
        assert_eq!(found, Some("/sys/fs/cgroup/unified/".into()));

        let pure = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let found = own_dir(pure, "0::/system.slice/kvwarden.service\n");
        assert_eq!(
            found,
            Some("/sys/fs/cgroup/system.slice/kvwarden.service".into())
        );
        assert_eq!(own_dir("", "0::/\n"), None);
        assert_eq!(own_dir(pure, "8:pids:/\n"), None);
    }
}
