//! How often a model is asked for, from its last few requests.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

/// How many requests count. Few follow drift, many resist noise; four do both well enough that
/// neither two nor sixteen do better.
const COUNTED: usize = 4;

/// The last requests of a model. Kept while it is out of memory, and across restarts: moments count
/// from the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    last: VecDeque<Duration>,
}

impl Rate {
    /// Counts a request.
    pub fn seen(&mut self, now: Duration) {
        if self.last.len() == COUNTED {
            self.last.pop_front();
        }
        self.last.push_back(now);
    }

    /// When the last request came.
    #[must_use]
    pub fn last_seen(&self) -> Option<Duration> {
        self.last.back().copied()
    }

    /// Requests per second: those counted over the time since the first of them, so that silence
    /// lowers it. A second at least, or a first request would be a flood.
    #[must_use]
    pub fn per_second(&self, now: Duration) -> f64 {
        let Some(first) = self.last.front() else {
            return 0.0;
        };
        let count = u32::try_from(self.last.len()).unwrap_or(u32::MAX);
        f64::from(count) / now.saturating_sub(*first).as_secs_f64().max(1.0)
    }
}
