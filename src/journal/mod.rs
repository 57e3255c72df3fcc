//! What tenants used, request by request, in a database that survives crashes.
//!
//! Whoever has a row leaves it in a bounded queue and goes on; a thread writes. A row counts as kept
//! once its transaction is on disk, which takes about [`PACE`]; a crash loses what came since. While
//! the disk is full or the file locked rows wait, and serving goes on; what finds the queue full is
//! lost and counted. `kvwarden usage` reads the file, and days that tenants have used up stay used
//! up over a restart.

pub mod events;
pub mod log;
mod store;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use kvwarden_actors::{Ledger, Spent};
use kvwarden_policy::{TenantId, quota::Day};
use prometheus_client::metrics::counter::Counter;

pub use store::{Column, Row, Store, StoreError, Total};

/// Rows on their way to the thread, which takes them at once unless the file is locked: seconds at the
/// most that one node serves. Their memory is held all the time.
const QUEUE: usize = 16 << 10;

/// Rows that wait for the disk.
const WAITING: usize = 1 << 18;

/// How long rows gather before they are written at once.
const PACE: Duration = Duration::from_millis(250);

/// How often a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often rows that are too old are looked for.
const PRUNE: Duration = Duration::from_secs(3600);

/// The database's name in the state directory.
const FILE: &str = "usage.db";

/// Takes rows, and never waits.
#[derive(Debug)]
pub struct UsageLog {
    rows: SyncSender<Entry>,
    dropped: Counter,
    /// What was used of the day that the node started on.
    spent: (Day, HashMap<String, u64>),
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How many rows came to be kept, and how many did not.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// On disk.
    pub kept: Counter,
    /// Lost.
    pub dropped: Counter,
}

#[derive(Debug)]
enum Entry {
    Row(Row),
    End,
}

/// The database of a state directory.
#[must_use]
pub fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

// === impl UsageLog ===

impl UsageLog {
    /// Goes on with the file, or begins it. One that can't be opened is tried again later: it keeps
    /// nobody from serving.
    ///
    /// # Errors
    /// When the system grants no thread.
    pub fn open(path: PathBuf, keep: Duration, counts: Counts) -> std::io::Result<Self> {
        let today = Day::of(SystemTime::now());
        let store = Store::open(&path);
        let spent = store.as_ref().map_err(ToString::to_string);
        let spent = spent.and_then(|store| {
            let spent = store.spent_since(today.midnight());
            spent.map_err(|error| error.to_string())
        });
        if let Err(error) = &spent {
            let path = path.display();
            tracing::error!(%path, error, "usage is not kept, and days begin anew, until this is mended");
        }
        let dropped = counts.dropped.clone();
        let writer = Writer {
            path,
            keep,
            counts,
            store: store.ok(),
            rows: Vec::new(),
            is_failing: spent.is_err(),
            pruned: None,
        };
        let (rows, queue) = sync_channel(QUEUE);
        let thread = thread::Builder::new().name("usage".to_owned());
        Ok(Self {
            rows,
            dropped,
            spent: (today, spent.unwrap_or_default()),
            thread: Mutex::new(Some(thread.spawn(move || writer.run(&queue))?)),
        })
    }

    /// Waits until all rows are written, or could not be. Those that come later are lost.
    pub fn close(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that is gone has ended already.
        let _ = self.rows.send(Entry::End);
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("usage was not written to its end");
        }
    }
}

impl Ledger for UsageLog {
    fn spent(&self, tenant: &TenantId, spent: &Spent) {
        let row = Row {
            at: SystemTime::now(),
            tenant: tenant.to_string(),
            model: spent.model.to_string(),
            usage: spent.usage,
            is_exact: spent.is_exact,
        };
        if self.rows.try_send(Entry::Row(row)).is_err() {
            self.dropped.inc();
        }
    }

    fn spent_on(&self, tenant: &TenantId, day: Day) -> u64 {
        let (of, spent) = &self.spent;
        let spent = spent.get(tenant.as_str()).filter(|_| *of == day);
        spent.copied().unwrap_or_default()
    }
}

struct Writer {
    path: PathBuf,
    keep: Duration,
    counts: Counts,
    /// None while it can't be opened.
    store: Option<Store>,
    rows: Vec<Row>,
    is_failing: bool,
    pruned: Option<Instant>,
}

// === impl Writer ===

impl Writer {
    fn run(mut self, queue: &Receiver<Entry>) {
        let mut is_over = false;
        while !is_over {
            is_over = self.gather(queue);
            self.flush();
        }
        if !self.rows.is_empty() {
            self.counts.dropped.inc_by(self.rows.len() as u64);
        }
    }

    /// Waits for a row, or to try again, and takes the rows that come soon after it while there is
    /// room for them.
    fn gather(&mut self, queue: &Receiver<Entry>) -> bool {
        let wait = if self.rows.is_empty() { PRUNE } else { RETRY };
        let mut until = monotonic() + wait;
        loop {
            let left = until.saturating_duration_since(monotonic());
            match queue.recv_timeout(left) {
                Ok(Entry::Row(row)) if self.rows.len() < WAITING => {
                    self.rows.push(row);
                    until = until.min(monotonic() + PACE);
                }
                Ok(Entry::Row(_)) => {
                    self.counts.dropped.inc();
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Ok(Entry::End) | Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn flush(&mut self) {
        match self.write() {
            Ok(()) => {
                self.counts.kept.inc_by(self.rows.len() as u64);
                self.rows.clear();
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(path = %self.path.display(), "usage is kept again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let (path, rows) = (self.path.display(), self.rows.len());
                    tracing::warn!(%path, %error, rows, "usage waits until it can be written");
                }
            }
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let store = match &mut self.store {
            Some(store) => store,
            None => self.store.insert(Store::open(&self.path)?),
        };
        store.append(&self.rows)?;
        let is_due = |at: Instant| at.elapsed() >= PRUNE;
        if self.pruned.is_none_or(is_due) {
            self.pruned = Some(monotonic());
            store.forget_before(SystemTime::now() - self.keep)?;
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "the pace is that of the disk")]
fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
