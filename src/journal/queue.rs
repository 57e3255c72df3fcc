//! What waits to be written. Whoever has something leaves it here and never waits for the disk.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{log::Line, store::Row};

/// Rows of usage, and as many lines of events, that wait for the disk: minutes at the most that one
/// node serves. Each kind has a limit of its own, so that a flood of refusals costs no row of usage.
const WAITING: usize = 1 << 18;

/// What is written in one transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What requests used.
    pub(super) usage: Vec<Row>,
    /// Lines of the event log.
    pub(super) events: Vec<Line>,
}

/// Between those that have something and the thread that writes.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batch: Batch,
    is_over: bool,
}

// === impl Batch ===

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.usage.is_empty() && self.events.is_empty()
    }
}

// === impl Queue ===

impl Queue {
    /// Whether there was room for it.
    #[must_use]
    pub(super) fn push_usage(&self, row: Row) -> bool {
        self.push(|batch| push(&mut batch.usage, row))
    }

    /// Whether there was room for it.
    #[must_use]
    pub(super) fn push_event(&self, line: Line) -> bool {
        self.push(|batch| push(&mut batch.events, line))
    }

    fn push(&self, push: impl FnOnce(&mut Batch) -> bool) -> bool {
        let mut state = self.state();
        if state.is_over {
            return false;
        }
        let is_first = state.batch.is_empty();
        let is_taken = push(&mut state.batch);
        drop(state);
        if is_first {
            self.changed.notify_one();
        }
        is_taken
    }

    /// Nothing is taken from now on.
    pub(super) fn close(&self) {
        self.state().is_over = true;
        self.changed.notify_one();
    }

    /// Waits at most `at_most` for something, and then `pace` for what comes soon after it. Whether it
    /// is over.
    pub(super) fn gather(&self, at_most: Duration, pace: Duration) -> bool {
        let idle = |state: &mut State| state.batch.is_empty() && !state.is_over;
        let waited = self.changed.wait_timeout_while(self.state(), at_most, idle);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.rest(state, pace)
    }

    /// Waits that long, or until it is over. Whether it is.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        self.rest(self.state(), pause)
    }

    fn rest(&self, state: MutexGuard<'_, State>, pause: Duration) -> bool {
        let goes_on = |state: &mut State| !state.is_over;
        let waited = self.changed.wait_timeout_while(state, pause, goes_on);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_over
    }

    /// All that waits.
    pub(super) fn take(&self) -> Batch {
        std::mem::take(&mut self.state().batch)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push<T>(waiting: &mut Vec<T>, one: T) -> bool {
    let has_room = waiting.len() < WAITING;
    if has_room {
        waiting.push(one);
    }
    has_room
}
