//! The line of one session: short prompts before long ones, within limits.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Length {
    Short,
    Long,
}

/// Where a request stands in its lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) slot: u32,
    pub(super) since: Instant,
}

/// Requests of one session by class, length and place. Short ones overtake long ones until the
/// first long one has waited for the patience; then arrival decides, so that a steady stream of
/// short ones can't starve it.
#[derive(Debug, Default)]
pub(super) struct Lanes(BTreeMap<(i32, Length), BTreeMap<i64, Waiting>>);

// === impl Lanes ===

impl Lanes {
    pub(super) fn insert(&mut self, class: i32, length: Length, place: i64, waiting: Waiting) {
        let lane = self.0.entry((class, length)).or_default();
        lane.insert(place, waiting);
    }

    pub(super) fn remove(&mut self, class: i32, length: Length, place: i64) {
        if let Some(lane) = self.0.get_mut(&(class, length)) {
            lane.remove(&place);
            if lane.is_empty() {
                self.0.remove(&(class, length));
            }
        }
    }

    /// How many would go before a newcomer.
    pub(super) fn ahead(&self, class: i32, length: Length) -> usize {
        let before =
            |other: &(i32, Length)| other.0 < class || (other.0 == class && other.1 <= length);
        let lanes = self.0.iter().filter(|(of, _)| before(of));
        lanes.map(|(_, lane)| lane.len()).sum()
    }

    /// Who is next in the class.
    pub(super) fn head(&self, class: i32, now: Instant, patience: Duration) -> Option<u32> {
        let first = |length| {
            let lane = self.0.get(&(class, length))?;
            lane.first_key_value()
        };
        let chosen = match (first(Length::Short), first(Length::Long)) {
            (Some(short), Some(long)) => {
                let waited = now.saturating_duration_since(long.1.since);
                if waited >= patience && long.0 < short.0 {
                    long
                } else {
                    short
                }
            }
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return None,
        };
        Some(chosen.1.slot)
    }
}
