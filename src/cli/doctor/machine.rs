//! The readings: the only file of the doctor that touches the machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use kvwarden_actors::process::{
    cgroup::Cgroup,
    tree::{self, ProcessId, Table},
};
use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit},
        statvfs::{FsFlags, statvfs},
    },
    unistd::{AccessFlags, eaccess, geteuid},
};
use serde_json::Value;

use crate::cli::client::Target;

/// A directory that is there or will be made.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Its owner and permission bits, if it is there.
    pub(super) owner_and_mode: Option<(u32, u32)>,
    /// We may make files in it, or in the nearest directory above it that is there.
    pub(super) writable: Result<(), String>,
    pub(super) free: Option<u64>,
    pub(super) forbids_programs: bool,
}

pub(super) fn directory(path: &Path) -> Directory {
    let there = path.ancestors().find(|dir| dir.exists());
    let there = there.unwrap_or(Path::new("/"));
    let rights = AccessFlags::W_OK | AccessFlags::X_OK;
    let stat = statvfs(there).ok();
    Directory {
        path: path.to_owned(),
        owner_and_mode: fs::metadata(path)
            .ok()
            .map(|meta| (meta.uid(), meta.mode() & 0o7777)),
        writable: if there.is_dir() {
            eaccess(there, rights).map_err(|error| format!("{}: {error}", there.display()))
        } else {
            Err(format!("{} is no directory", there.display()))
        },
        free: stat.map(|stat| stat.blocks_available() * stat.fragment_size()),
        forbids_programs: stat.is_some_and(|stat| stat.flags().contains(FsFlags::ST_NOEXEC)),
    }
}

pub(super) fn user() -> u32 {
    geteuid().as_raw()
}

/// Who has the address that kvwarden would listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occupant {
    Nobody,
    Kvwarden,
    Stranger,
    /// It can't be had, for this reason.
    Unavailable(io::ErrorKind),
}

pub(super) fn occupant(address: SocketAddr) -> Occupant {
    match TcpListener::bind(address) {
        Ok(_) => Occupant::Nobody,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_kvwarden(address) => {
            Occupant::Kvwarden
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Occupant::Stranger,
        Err(error) => Occupant::Unavailable(error.kind()),
    }
}

/// Its health has a shape of its own, and needs no key.
fn is_kvwarden(address: SocketAddr) -> bool {
    let Ok(answer) = Target::at(address).get("/health") else {
        return false;
    };
    let health: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    health["status"].is_string() && health["models"].is_object()
}

/// Soft and hard limit of open files.
pub(super) fn open_files() -> Option<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).ok()
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) available: u64,
    /// What a container may use of it.
    pub(super) limit: Option<u64>,
}

pub(super) fn memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let limit = ["memory.max", "memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|file| fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok());
    parse_memory(&text, limit.as_deref())
}

fn parse_memory(meminfo: &str, limit: Option<&str>) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    };
    let total = field("MemTotal:")?;
    // `max`, and in version 1 a number beyond all memory, mean none.
    let limit = limit.and_then(|limit| limit.trim().parse().ok());
    Some(Memory {
        total,
        available: field("MemAvailable:")?,
        limit: limit.filter(|limit| *limit < total),
    })
}

/// Bytes of /dev/shm: in all, and free.
pub(super) fn shared_memory() -> Option<(u64, u64)> {
    let stat = statvfs("/dev/shm").ok()?;
    let size = stat.fragment_size();
    Some((stat.blocks() * size, stat.blocks_available() * size))
}

/// What kvwarden may do with cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// Make them, and kill all members at once.
    Full,
    /// Make them.
    WithoutKill,
    /// None.
    Closed(io::ErrorKind),
}

/// Makes a cgroup as for an engine and takes it away again.
pub(super) fn cgroups() -> Cgroups {
    match Cgroup::create(&format!("doctor-{}", std::process::id())) {
        Ok(cgroup) => {
            let entered = cgroup.entrance().map(drop);
            let has_kill = cgroup.has_kill();
            cgroup.remove();
            match (entered, has_kill) {
                (Err(error), _) => Cgroups::Closed(error.kind()),
                (Ok(()), true) => Cgroups::Full,
                (Ok(()), false) => Cgroups::WithoutKill,
            }
        }
        Err(error) => Cgroups::Closed(error.kind()),
    }
}

/// What the kernel offers to end processes for certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) has_pidfd: bool,
    pub(super) has_death_signal: bool,
}

pub(super) fn kernel() -> Kernel {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Kernel {
        release: release.trim().to_owned(),
        has_pidfd: tree::has_pidfd(),
        has_death_signal: prctl::get_pdeathsig().is_ok(),
    }
}

/// NVIDIA display and compute devices on the PCI bus, with or without a driver.
pub(super) fn nvidia_devices() -> usize {
    let devices = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten();
    let reads = |dir: &Path, file: &str, start: &str| {
        fs::read_to_string(dir.join(file)).is_ok_and(|text| text.starts_with(start))
    };
    devices
        .flatten()
        .map(|entry| entry.path())
        .filter(|dir| reads(dir, "vendor", "0x10de") && reads(dir, "class", "0x03"))
        .count()
}

/// The processes of one engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EngineTree {
    pub(super) token: String,
    pub(super) pids: BTreeSet<i32>,
    /// A kvwarden looks after it.
    pub(super) is_supervised: bool,
}

/// Every engine's processes, as far as this user may see them.
pub(super) fn engine_trees() -> io::Result<Vec<EngineTree>> {
    let table = Table::read()?;
    let engine_tree = |token: String| {
        let processes = table.bearing(&token)?;
        Ok(EngineTree {
            is_supervised: is_supervised(&processes, |process| table.parent(process), executable),
            pids: processes.iter().map(|process| process.pid).collect(),
            token,
        })
    };
    let trees: io::Result<Vec<_>> = table.tokens()?.into_iter().map(engine_tree).collect();
    // A tree that ended since its token was read is none.
    Ok(trees?
        .into_iter()
        .filter(|tree| !tree.pids.is_empty())
        .collect())
}

/// The shim and the server that started it run the same executable, and the server is not of the
/// tree. When the server dies, init or another reaper becomes the shim's parent.
fn is_supervised(
    processes: &BTreeSet<ProcessId>,
    parent: impl Fn(ProcessId) -> Option<i32>,
    executable: impl Fn(i32) -> Option<PathBuf>,
) -> bool {
    let members: BTreeSet<i32> = processes.iter().map(|process| process.pid).collect();
    processes.iter().any(|process| {
        let above = parent(*process).filter(|pid| !members.contains(pid));
        let above = above.and_then(&executable);
        above.is_some() && above == executable(process.pid)
    })
}

fn executable(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The names of processes, for people.
pub(super) fn names(pids: impl Iterator<Item = u32>) -> BTreeMap<u32, String> {
    let name = |pid| Some((pid, fs::read_to_string(format!("/proc/{pid}/comm")).ok()?));
    pids.filter_map(name)
        .map(|(pid, name)| (pid, name.trim().to_owned()))
        .collect()
}

/// Now, and when this program was put here.
pub(super) fn clock() -> (SystemTime, Option<SystemTime>) {
    let program = std::env::current_exe().and_then(fs::metadata);
    let made = program.and_then(|meta| meta.modified()).ok();
    (SystemTime::now(), made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_a_container_counts_only_below_what_there_is() {
        let meminfo = "MemTotal:  1024 kB\nMemFree: 1 kB\nMemAvailable:  512 kB\n";
        let memory = |limit| parse_memory(meminfo, limit).unwrap();
        assert_eq!(
            (memory(None).total, memory(None).available),
            (1 << 20, 1 << 19)
        );
        assert_eq!(memory(Some("max\n")).limit, None);
        assert_eq!(memory(Some("9223372036854771712\n")).limit, None);
        assert_eq!(memory(Some("4096\n")).limit, Some(4096));
    }

    #[test]
    fn tree_below_the_same_program_is_looked_after() {
        let process = |pid| ProcessId { pid, start: 1 };
        let tree = BTreeSet::from([process(10), process(11)]);
        let executable = |pid| {
            let name = if pid == 11 || pid == 1 {
                "python"
            } else {
                "kvwarden"
            };
            Some(PathBuf::from(name))
        };
        let below =
            |server: i32| move |child: ProcessId| Some(if child.pid == 10 { server } else { 10 });
        assert!(is_supervised(&tree, below(5), executable));
        assert!(!is_supervised(&tree, below(1), executable));
        // The shim was killed; its orphan went to init.
        let orphan = BTreeSet::from([process(11)]);
        assert!(!is_supervised(&orphan, |_| Some(2), executable));
    }

    #[test]
    fn directory_that_is_not_there_is_judged_by_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let below = directory(&dir.path().join("a/b"));
        assert_eq!((below.owner_and_mode, below.writable), (None, Ok(())));
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(directory(&dir.path().join("file/b")).writable.is_err());
    }

    #[test]
    fn address_with_a_listener_has_an_occupant() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let refuser = std::thread::spawn(move || drop(listener.accept()));
        assert_eq!(occupant(address), Occupant::Stranger);
        refuser.join().unwrap();
        assert_eq!(occupant(address), Occupant::Nobody);
    }
}
