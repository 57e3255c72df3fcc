//! One install of a thing at a time, across processes.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Stdio,
};

use super::{InstallError, error::at};

/// Held until this and every child that shares it are gone. The file itself stays: deleting it would
/// let two processes lock two files of one name.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Waits for its turn; `waiting` is called once if there is something to wait for.
    pub(super) fn take(path: &Path, waiting: impl FnOnce()) -> Result<Self, InstallError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(at(dir))?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(at(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(at(path))?;
            }
            Err(TryLockError::Error(source)) => return Err(at(path)(source)),
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// The lock as a child's standard input.
    pub(super) fn share(&self) -> Result<Stdio, InstallError> {
        Ok(self.file.try_clone().map_err(at(&self.path))?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, sync::mpsc, thread};

    use super::*;

    #[test]
    fn second_taker_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let first = Lock::take(&path, || panic!("nobody holds it")).unwrap();
        let (waits, is_waiting) = mpsc::channel();
        let second = thread::spawn(move || Lock::take(&path, || waits.send(()).unwrap()).map(drop));
        is_waiting.recv().unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn child_holds_the_lock_when_its_parent_has_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let lock = Lock::take(&path, || {}).unwrap();
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(lock.share().unwrap())
            .spawn()
            .unwrap();
        drop(lock);
        let probe = File::open(&path).unwrap();
        assert!(matches!(probe.try_lock(), Err(TryLockError::WouldBlock)));
        child.kill().unwrap();
        child.wait().unwrap();
        probe.try_lock().unwrap();
    }
}
