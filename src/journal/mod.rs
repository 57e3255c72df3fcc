//! The journal: what each request used and, where it is asked for, the event log, in one database
//! that survives crashes.
//!
//! Whoever has something to write leaves it in a bounded queue and goes on; one thread writes both
//! kinds in the same transactions. A row counts as kept once its transaction is on disk, which takes
//! about a quarter of a second; a crash loses what came since. While the disk is full or the file
//! locked rows wait, and serving goes on; what finds the queue full is lost and counted. Two
//! processes of a takeover write to it at once. `kvwarden usage` and `kvwarden replay` read it, and
//! days that tenants have used up stay used up over a restart.
//!
//! | module | does |
//! |---|---|
//! | `usage`, [`events`] | what the actors and the HTTP side report becomes rows and lines |
//! | `queue`, `writer` | what waits for the disk, and the thread that writes it |
//! | `store` | the tables, and every statement of SQL |
//! | [`log`] | the format of the event log |

pub mod events;
pub mod log;
mod queue;
mod store;
mod usage;
mod writer;

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use kvwarden_actors::Ledger;
use kvwarden_policy::{
    quota::Day,
    simulation::swapping::{Request, World},
};
use prometheus_client::metrics::counter::Counter;

use self::{
    events::EventLog,
    queue::{Batch, Queue},
    usage::UsageLog,
    writer::Writer,
};
pub use store::{Column, Store, StoreError, Total};

/// The database's name in the state directory.
const FILE: &str = "usage.db";

/// What a database begins with.
const SQLITE: &[u8] = b"SQLite format 3\0";

/// What is written, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The database.
    pub path: PathBuf,
    /// How long what requests used is kept, if it is.
    pub keep_usage: Option<Duration>,
    /// Bytes of lines that the event log keeps, if there is one.
    pub max_events: Option<u64>,
    /// Where the event log is written as JSON lines in the end, if anywhere.
    pub export: Option<PathBuf>,
}

/// How many rows of usage came to be kept, and how many did not.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// On disk.
    pub kept: Counter,
    /// Lost.
    pub dropped: Counter,
}

/// The open journal of a server.
#[derive(Debug)]
pub struct Journal {
    settings: Settings,
    queue: Arc<Queue>,
    usage: Option<Arc<UsageLog>>,
    events: Option<Arc<EventLog>>,
    thread: JoinHandle<()>,
}

/// The database of a state directory.
#[must_use]
pub fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// Reads the event log of a database, or one that was exported.
///
/// # Errors
/// When it can't be read, or can't be replayed.
pub fn read_events(path: &Path) -> anyhow::Result<(World, Vec<Request>)> {
    let mut file = BufReader::new(File::open(path)?);
    if !file.fill_buf()?.starts_with(SQLITE) {
        return Ok(log::read(file)?);
    }
    let mut reader = log::Reader::default();
    Store::read(path)?.events(|line| anyhow::Ok(reader.take(line)?))?;
    Ok(reader.finish()?)
}

/// Writes the event log of a database as JSON lines, all of it or, on an error, nothing. Whom it
/// names are an operator's tenants, so the file is nobody else's.
///
/// # Errors
/// When the one can't be read or the other not be written.
pub fn export(database: &Path, file: &Path) -> anyhow::Result<()> {
    let store = Store::read(database);
    let store = store.with_context(|| format!("cannot read {}", database.display()))?;
    let write = || -> anyhow::Result<()> {
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut new = tempfile::NamedTempFile::new_in(dir.unwrap_or(Path::new(".")))?;
        let mut out = BufWriter::new(&mut new);
        store.events(|line| anyhow::Ok(writeln!(out, "{line}")?))?;
        out.flush()?;
        drop(out);
        new.persist(file)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

// === impl Journal ===

impl Journal {
    /// Goes on with the database, or begins it. One that can't be opened is tried again later: it
    /// keeps nobody from serving.
    ///
    /// # Errors
    /// When the system grants no thread, or the file to export to can't be written.
    pub fn open(
        settings: Settings,
        counts: Counts,
        events_dropped: Counter,
    ) -> anyhow::Result<Self> {
        if let Some(path) = &settings.export {
            drop(writable(path).with_context(|| format!("cannot write {}", path.display()))?);
        }
        let today = Day::of(SystemTime::now());
        let (store, spent) = match opened(&settings, today) {
            Ok((store, spent)) => (Some(store), spent),
            Err(error) => {
                let path = settings.path.display();
                tracing::error!(%path, %error, "nothing is kept, and days begin anew, until this is mended");
                (None, HashMap::new())
            }
        };
        let queue = Arc::new(Queue::default());
        let usage = settings.keep_usage.map(|_| UsageLog {
            queue: queue.clone(),
            dropped: counts.dropped.clone(),
            spent: (today, spent),
        });
        let events = settings.max_events;
        let events = events.map(|_| EventLog::new(queue.clone(), events_dropped.clone()));
        let writer = Writer {
            path: settings.path.clone(),
            keep_usage: settings.keep_usage,
            max_events: settings.max_events.unwrap_or_default(),
            counts,
            events_dropped,
            is_failing: store.is_none(),
            store,
            batch: Batch::default(),
            pruned: None,
        };
        let thread = thread::Builder::new().name("journal".to_owned());
        let waiting = queue.clone();
        Ok(Self {
            settings,
            queue,
            usage: usage.map(Arc::new),
            events: events.map(Arc::new),
            thread: thread.spawn(move || writer.run(&waiting))?,
        })
    }

    /// Where what requests use is written down; nowhere, where it is not kept.
    #[must_use]
    pub fn ledger(&self) -> Arc<dyn Ledger> {
        match &self.usage {
            Some(usage) => usage.clone(),
            None => Arc::new(()),
        }
    }

    /// The event log, if there is one.
    #[must_use]
    pub fn events(&self) -> Option<Arc<EventLog>> {
        self.events.clone()
    }

    /// Waits until everything is written, or could not be. What comes later is lost.
    pub fn close(self) {
        self.queue.close();
        if self.thread.join().is_err() {
            tracing::error!("the journal was not written to its end");
        }
    }

    /// Closes it and exports the event log where that is asked for: the last process to write does
    /// that, so after a takeover it is the successor.
    pub fn close_and_export(self) {
        let Settings { path, export, .. } = self.settings.clone();
        self.close();
        if let Some(file) = export
            && let Err(error) = self::export(&path, &file)
        {
            tracing::error!("the event log was not exported: {error:#}");
        }
    }
}

/// The database, and what tenants have used of a day.
fn opened(settings: &Settings, day: Day) -> Result<(Store, HashMap<String, u64>), StoreError> {
    let store = Store::open(&settings.path)?;
    let spent = store.spent_since(day.midnight())?;
    Ok((store, spent))
}

/// So that whoever gives a file is told at the start that it can't be written, and not in the end.
fn writable(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
