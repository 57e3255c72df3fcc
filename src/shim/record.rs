//! The state file: who runs here and how it ended, for the orchestrator that comes next.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use kvwarden_actors::gpu::{
    shim::{ShimExit, ShimRecord, ShimSpec},
    tree::ProcessId,
};

/// The record and where it is kept.
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
    content: ShimRecord,
}

impl RecordFile {
    /// Writes the record before there is an engine, so that there never is one without a record.
    pub(super) fn create(spec: &ShimSpec) -> Result<Self, String> {
        let own = std::process::id().try_into().ok().and_then(ProcessId::of);
        let file = Self {
            path: spec.record.clone(),
            content: ShimRecord {
                model: spec.model.clone(),
                generation: spec.generation,
                token: spec.token.clone(),
                socket: spec.socket.clone(),
                log: spec.log.clone(),
                shim: own.ok_or("can't read /proc/self/stat: is /proc mounted?")?,
                engine: None,
                exit: None,
            },
        };
        let written = file.write();
        written.map_err(|error| format!("can't write {}: {error}", spec.record.display()))?;
        Ok(file)
    }

    pub(super) fn started(&mut self, pid: i32) -> io::Result<()> {
        self.content.engine = ProcessId::of(pid);
        self.write()
    }

    pub(super) fn ended(&mut self, exit: ShimExit) -> io::Result<()> {
        self.content.exit = Some(exit);
        self.write()
    }

    /// A reader sees the old record or the new one, also after a power cut: contents reach the
    /// disk before the name does, and the name before this returns.
    fn write(&self) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let mut fresh = self.path.clone().into_os_string();
        fresh.push(".new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&serde_json::to_vec(&self.content)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        File::open(dir)?.sync_all()
    }
}
