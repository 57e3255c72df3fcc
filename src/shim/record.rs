//! The state file: who runs here and how it ended, for the orchestrator that comes next.

use std::{io, path::PathBuf};

use kvwarden_actors::{
    files::{self, Durability, Readers},
    process::{
        shim::{ShimExit, ShimRecord, ShimSpec},
        tree::ProcessId,
    },
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

    fn write(&self) -> io::Result<()> {
        let content = serde_json::to_vec(&self.content)?;
        files::replace(&self.path, &content, Readers::Owner, Durability::Synced)
    }
}
