//! What every actor measures about itself.

use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

/// How busy an actor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Vitals {
    /// Messages handled.
    pub handled: u64,
    /// How long the latest pulse waited in the mailbox, in seconds where it is printed.
    #[serde(serialize_with = "seconds")]
    pub mailbox_wait: Duration,
}

impl Vitals {
    /// One more message.
    pub(crate) fn handled(&mut self) {
        self.handled += 1;
    }

    /// A pulse sent at `sent` arrived.
    pub(crate) fn pulse(&mut self, sent: Instant) {
        self.mailbox_wait = sent.elapsed();
    }
}

/// Durations are printed as seconds.
pub(crate) fn seconds<S: Serializer>(wait: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(wait.as_secs_f64())
}
