//! The thread that writes. While the database can't be written, what it has waits.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::metrics::counter::Counter;

use super::{
    Counts,
    queue::{Batch, Queue},
    store::{Store, StoreError},
};

/// How long rows gather before they are written at once.
const PACE: Duration = Duration::from_millis(250);

/// How often a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often rows that are too old are looked for.
const PRUNE: Duration = Duration::from_secs(3600);

pub(super) struct Writer {
    pub(super) path: PathBuf,
    /// How long what requests used is kept, if it is.
    pub(super) keep_usage: Option<Duration>,
    /// Bytes of lines that the event log keeps.
    pub(super) max_events: u64,
    pub(super) counts: Counts,
    pub(super) events_dropped: Counter,
    /// None while it can't be opened.
    pub(super) store: Option<Store>,
    /// What is being written: always the same until it is.
    pub(super) batch: Batch,
    pub(super) is_failing: bool,
    pub(super) pruned: Option<Instant>,
}

// === impl Writer ===

impl Writer {
    pub(super) fn run(mut self, queue: &Queue) {
        let mut is_over = false;
        while !is_over {
            is_over = if self.is_failing {
                queue.pause(RETRY)
            } else {
                queue.gather(PRUNE, PACE)
            };
            self.flush(queue);
        }
        if !self.is_failing {
            // What came while the last batch was written.
            self.flush(queue);
        }
        for left in [&self.batch, &queue.take()] {
            self.counts.dropped.inc_by(left.usage.len() as u64);
            self.events_dropped.inc_by(left.events.len() as u64);
        }
    }

    pub(super) fn flush(&mut self, queue: &Queue) {
        if self.batch.is_empty() {
            self.batch = queue.take();
        }
        match self.write() {
            Ok(()) => {
                let rows = self.batch.usage.len();
                self.counts.kept.inc_by(rows as u64);
                self.batch = Batch::default();
                self.prune();
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(path = %self.path.display(), "the journal is written again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "the journal waits until it can be written");
                }
            }
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let store = match &mut self.store {
            Some(store) => store,
            None => self.store.insert(Store::open(&self.path)?),
        };
        store.append(&self.batch.usage, &self.batch.events, self.max_events)
    }

    /// Removes what is too old. It is no part of the write, which would be done once more if this
    /// failed: rows that stay for an hour longer do no harm.
    fn prune(&mut self) {
        let is_due = |at: Instant| at.elapsed() >= PRUNE;
        if let (Some(store), Some(keep)) = (&self.store, self.keep_usage)
            && self.pruned.is_none_or(is_due)
        {
            self.pruned = Some(monotonic());
            if let Err(error) = store.forget_before(SystemTime::now() - keep) {
                let path = self.path.display();
                tracing::warn!(%path, %error, "usage that is too old stays for now");
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the pace is that of the disk")]
fn monotonic() -> Instant {
    Instant::now()
}
