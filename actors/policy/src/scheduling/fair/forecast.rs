//! How long a request would wait at the least, so that one whose client will have given up by then is
//! refused while it can still go elsewhere.
//!
//! Low on purpose, since a refusal can't be taken back and a request that waits in vain costs the
//! engine nothing: only what waits before it *in its own line* is counted, as if the engine served
//! nobody else, at the best speed seen lately. Whoever is within its share has no such line.

use std::time::{Duration, Instant};

use super::FairCore;
use crate::scheduling::{settings::Grains, types::Arrival};

/// How long the engine is watched for one figure: long enough for many steps.
const WINDOW: Duration = Duration::from_secs(1);

/// A forecast is divided by it: a few requests may be this much cheaper than usual.
const MARGIN: Grains = 2;

/// What the engine serves in a second while requests wait for it.
#[derive(Debug, Default)]
pub(super) struct Throughput {
    watched: Option<(Instant, Grains)>,
    per_second: Option<Grains>,
}

/// An exponentially weighted mean with 1/8; nothing until something was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean(Option<Grains>);

// === impl FairCore ===

impl FairCore {
    /// `None`: nothing is known, or nothing of its own waits before it.
    pub(in crate::scheduling) fn forecast(&self, arrival: &Arrival) -> Option<Duration> {
        let per_second = self.throughput.per_second.filter(|_| !arrival.is_retry)?;
        let leaf = self.tree.known_leaf(arrival)?;
        let usual = self.tree.node(self.tree.tenant_of(leaf)).usual.0?;
        let lanes = &self.tree.node(leaf).lanes;
        let ahead = lanes.ahead(arrival.class, self.length(arrival));
        let work = usual.saturating_mul(Grains::try_from(ahead).ok()?);
        let millis = work.saturating_mul(1000) / (per_second * MARGIN);
        u64::try_from(millis).ok().map(Duration::from_millis)
    }
}

// === impl Throughput ===

impl Throughput {
    /// `served` is counted from the beginning. A window in which the engine lacked work says how
    /// much was wanted and not how fast it is.
    pub(super) fn look(&mut self, served: Grains, is_saturated: bool, now: Instant) {
        let Some((since, before)) = self.watched.filter(|_| is_saturated) else {
            self.watched = is_saturated.then_some((now, served));
            return;
        };
        let elapsed = now.saturating_duration_since(since);
        if elapsed < WINDOW {
            return;
        }
        self.watched = Some((now, served));
        let millis = Grains::try_from(elapsed.as_millis()).unwrap_or(Grains::MAX);
        let seen = (served - before).saturating_mul(1000) / millis.max(1);
        // An engine that hangs, or gets its prompts refunded, says nothing either.
        if seen > 0 {
            let known = self.per_second.unwrap_or(seen);
            self.per_second = Some(seen.max((known * 7 + seen) / 8));
        }
    }
}

// === impl Mean ===

impl Mean {
    pub(super) fn learn(&mut self, seen: Grains) {
        self.0 = Some(self.0.map_or(seen, |known| (known * 7 + seen) / 8));
    }
}
