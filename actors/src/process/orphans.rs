//! Engines that an earlier kvwarden left running.
//!
//! [`survey`] goes through what shims wrote down: what nobody looks after any more is killed, what
//! nobody wants any more is stopped, and the rest goes to the Gpu actor, which gives each engine to
//! its model once that is prepared. Until somebody connects, an engine's own shim ends it when its
//! time is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use kvwarden_policy::{DeviceId, Generation, ModelId};
use tokio::time::timeout;

use super::{
    child::{Child, read_record},
    handover::Handover,
    leadership::Leadership,
    shim::ShimRecord,
    tree,
};

/// What an engine gets between SIGTERM and SIGKILL: it has no clients any more.
const GRACE: Duration = Duration::from_secs(5);

/// How long the start waits for what is killed. A process in the kernel's hands goes on dying after
/// it, and the memory that it holds counts as taken.
const SWEEP: Duration = Duration::from_secs(10);

/// An engine without a kvwarden.
#[derive(Clone, Debug)]
pub struct Orphan {
    pub(crate) path: PathBuf,
    pub(crate) record: ShimRecord,
    pub(crate) handover: Option<Handover>,
    pub(crate) leadership: Leadership,
}

/// Ends what is not wanted and returns what may be adopted: of each of the `configured` engines the
/// newest that lives. The caller must lead in this directory.
///
/// # Errors
/// The directory can't be read.
pub async fn survey(
    run_dir: &Path,
    configured: &BTreeSet<ModelId>,
    leadership: &Leadership,
) -> io::Result<Vec<Orphan>> {
    let mut adopted = BTreeMap::new();
    let (mut dead, mut surplus) = (Vec::new(), Vec::new());
    for orphan in read_all(run_dir, leadership)? {
        if !orphan.is_alive() {
            dead.push(orphan);
        } else if configured.contains(&orphan.engine()) {
            surplus.extend(adopted.insert(orphan.engine(), orphan));
        } else {
            surplus.push(orphan);
        }
    }
    let living = adopted.values().chain(&surplus);
    let living: BTreeSet<PathBuf> = living
        .map(|orphan| orphan.path.with_extension(""))
        .collect();
    for orphan in surplus {
        tracing::info!(engine = %orphan.engine(), "is not configured any more");
        actix::spawn(orphan.end());
    }
    let swept = timeout(SWEEP, async {
        for orphan in dead {
            orphan.end().await;
        }
    });
    if swept.await.is_err() {
        tracing::warn!("processes of an earlier engine are still dying");
    }
    // Whatever else lies here belongs to nothing that lives.
    for entry in fs::read_dir(run_dir)?.flatten() {
        if !living.contains(&entry.path().with_extension("")) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(adopted.into_values().collect())
}

/// Whether all that shims wrote down can be read. Nothing is changed.
///
/// # Errors
/// The directory can't be read, or a record in it is not understood.
pub fn inspect(run_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(run_dir)? {
        let path = entry?.path();
        // One that is gone by now is no loss.
        if path.extension().is_some_and(|ext| ext == "json")
            && read_record(&path).is_none()
            && path.exists()
        {
            let unread = format!("{} is not understood", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, unread));
        }
    }
    Ok(())
}

/// Every record there is, the oldest start first.
fn read_all(run_dir: &Path, leadership: &Leadership) -> io::Result<Vec<Orphan>> {
    let records = fs::read_dir(run_dir)?.flatten().filter_map(|entry| {
        let path = entry.path();
        let is_record = path.extension().is_some_and(|ext| ext == "json");
        let record = is_record.then(|| read_record(&path)).flatten()?;
        let handover = Handover::read(&path);
        Some(Orphan {
            path,
            record,
            handover,
            leadership: leadership.clone(),
        })
    });
    let mut all: Vec<Orphan> = records.collect();
    all.sort_by_key(Orphan::generation);
    Ok(all)
}

// === impl Orphan ===

impl Orphan {
    /// Which engine it is.
    #[must_use]
    pub fn engine(&self) -> ModelId {
        self.record.model.as_str().into()
    }

    /// Which start of it.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.record.generation)
    }

    /// Where it is, and how much of each of these devices it has; nowhere if that was not written
    /// down.
    pub(crate) fn place(&self) -> (Vec<DeviceId>, u64) {
        let place = |handover: &Handover| (handover.devices.clone(), handover.held());
        self.handover.as_ref().map(place).unwrap_or_default()
    }

    /// Somebody still looks after it.
    pub(crate) fn is_alive(&self) -> bool {
        self.record.shim.is_alive()
    }

    /// Stops the engine once no predecessor uses it, or what is left of it if its shim is gone.
    pub(crate) async fn end(self) {
        match Child::adopt(&self.path, self.record.clone()).await {
            Ok(mut child) => {
                self.leadership.until_unused(&self.engine()).await;
                child.stop(GRACE);
                while child.next_event().await.is_some() {}
            }
            Err(_) => drop(tree::kill_tree(&self.record.token).await),
        }
        forget(&self.path);
    }
}

/// Removes what is written down of an engine of which nothing is left.
pub(crate) fn forget(record: &Path) {
    for file in [record, &Handover::path(record)] {
        let _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use kvwarden_policy::failure::FailureClass;

    use super::*;
    use crate::process::{
        shim::ShimExit,
        tree::{ProcessId, TREE_TOKEN},
    };

    fn record(dir: &Path, name: &str, shim: ProcessId) -> PathBuf {
        let path = dir.join(format!("{name}.json"));
        let record = ShimRecord {
            model: "m".into(),
            generation: 3,
            token: format!("orphans-{name}"),
            socket: dir.join(format!("{name}.sock")),
            log: dir.join("m.log"),
            shim,
            engine: None,
            exit: Some(ShimExit {
                code: None,
                signal: None,
                class: FailureClass::Killed,
            }),
        };
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        path
    }

    #[actix_rt::test]
    async fn what_a_killed_shim_left_is_killed_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut left = Command::new("sleep")
            .arg("600")
            .env(TREE_TOKEN, "orphans-a")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut gone = ProcessId::of(left.id().try_into().unwrap()).unwrap();
        gone.start += 1;
        let path = record(dir.path(), "a", gone);
        fs::write(dir.path().join("b.handover"), "of nobody").unwrap();
        let reaper = std::thread::spawn(move || left.wait().unwrap());
        let found = survey(
            dir.path(),
            &BTreeSet::from(["m".into()]),
            &Leadership::sole(),
        )
        .await;
        assert_eq!(found.unwrap().len(), 0);
        assert!(!reaper.join().unwrap().success());
        assert!(!path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[actix_rt::test]
    async fn engine_that_is_looked_after_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let own = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        let path = record(dir.path(), "c", own);
        let found = survey(
            dir.path(),
            &BTreeSet::from(["m".into()]),
            &Leadership::sole(),
        )
        .await;
        let found = found.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].generation(), Generation(3));
        assert!(path.exists());
    }
}
