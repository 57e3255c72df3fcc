//! Keeps vLLM's filesystem tier to its budget, which vLLM itself does not: oldest files first.
//!
//! Between two passes the tier may grow past the budget by what is written in that time. A block
//! that vanishes is a miss to vLLM and is computed again.

use std::{
    collections::BinaryHeap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::task::JoinHandle;

use super::{KvOnDisk, Launch};

const INTERVAL: Duration = Duration::from_secs(10);
/// Files removed in one pass at most, which also bounds what a pass remembers.
const MAX_REMOVED: usize = 10_000;
/// vLLM writes it once and does not look whether it is still there.
const DESCRIPTION: &str = "config.json";

/// Works for as long as it is held.
pub(crate) struct KvDiskGc(JoinHandle<()>);

/// What a pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pass {
    /// Bytes before.
    found: u64,
    /// Bytes removed.
    removed: u64,
}

impl KvDiskGc {
    /// None where the engine has no such tier. Nothing is removed while `is_leader` says no.
    pub(crate) fn of(launch: &Launch, is_leader: impl Fn() -> bool + 'static) -> Option<Self> {
        let budget = launch.flags.kv_ssd_bytes?;
        (launch.kind.dialect().kv_on_disk == KvOnDisk::FilesWithoutLimit).then(|| {
            Self(actix::spawn(collect(
                launch.kv_dir.clone(),
                budget,
                is_leader,
            )))
        })
    }
}

impl Drop for KvDiskGc {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn collect(dir: PathBuf, budget: u64, is_leader: impl Fn() -> bool) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        if !is_leader() {
            continue;
        }
        let root = dir.clone();
        // Off the actors' thread: there may be a hundred thousand files.
        let pass = tokio::task::spawn_blocking(move || pass(&root, budget, MAX_REMOVED));
        match pass.await {
            Ok(Ok(Pass { found, removed })) if removed > 0 => {
                tracing::debug!(dir = %dir.display(), found, removed, "KV on disk");
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(dir = %dir.display(), %error, "KV on disk is not kept to its budget");
            }
            Err(_) => return, // the runtime ends
        }
    }
}

/// One file, the oldest of which compares least.
type Found = (SystemTime, u64, PathBuf);

/// Removes the oldest files below `root` until the rest fits into `budget`. Links are neither
/// followed nor removed.
fn pass(root: &Path, budget: u64, max_removed: usize) -> io::Result<Pass> {
    let mut oldest: BinaryHeap<Found> = BinaryHeap::new();
    let mut pass = Pass::default();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Neither of these looks through a link; the file may be gone by now.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else if metadata.is_file() && entry.file_name() != DESCRIPTION {
                pass.found += metadata.len();
                oldest.push((metadata.modified()?, metadata.len(), entry.path()));
                if oldest.len() > max_removed {
                    oldest.pop();
                }
            }
        }
    }
    for (_, bytes, path) in oldest.into_sorted_vec() {
        if pass.found - pass.removed <= budget {
            break;
        }
        match fs::remove_file(path) {
            Ok(()) => pass.removed += bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => pass.removed += bytes,
            Err(error) => return Err(error),
        }
    }
    Ok(pass)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::symlink};

    use super::*;

    /// A file of 10 bytes that was written `age` seconds after the first one.
    fn file(path: &Path, age: u64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [0; 10]).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(age);
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    }

    #[test]
    fn oldest_files_go_until_the_rest_fits() {
        let dir = tempfile::tempdir().unwrap();
        let block = |n: u64| dir.path().join(format!("m_r0/00{n}/0{n}_g0/{n}.bin"));
        for n in 0..5 {
            file(&block(n), 100 - n);
        }
        file(&dir.path().join("m/config.json"), 0);
        let done = pass(dir.path(), 25, MAX_REMOVED).unwrap();
        assert_eq!((done.found, done.removed), (50, 30));
        let left: Vec<_> = (0..5).filter(|n| block(*n).exists()).collect();
        assert_eq!(left, [0, 1]);
        assert!(dir.path().join("m/config.json").exists());
        assert_eq!(pass(dir.path(), 25, MAX_REMOVED).unwrap().removed, 0);
    }

    #[test]
    fn pass_removes_no_more_than_it_may_and_still_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..9 {
            file(&dir.path().join(format!("{n}.bin")), 100 - n);
        }
        assert_eq!(pass(dir.path(), 0, 4).unwrap().removed, 40);
        assert!(dir.path().join("4.bin").exists() && !dir.path().join("5.bin").exists());
    }

    #[test]
    fn links_lead_nowhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = outside.path().join("other.bin");
        file(&other, 1);
        symlink(outside.path(), dir.path().join("dir")).unwrap();
        symlink(&other, dir.path().join("0.bin")).unwrap();
        assert_eq!(pass(dir.path(), 0, MAX_REMOVED).unwrap(), Pass::default());
        assert!(other.exists());
    }
}
