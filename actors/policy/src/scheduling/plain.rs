//! The disciplines we are measured against. Neither knows tokens; both stop at a number of requests.

use std::collections::BTreeMap;

use super::types::{Arrival, Counts};

/// Lower goes first: deficit, length class, place in line.
type Rank = (i64, u8, i64);

/// Requests in an order that is fixed when they come.
#[derive(Debug)]
pub(super) struct Plain {
    by_deficit: bool,
    max_in_flight: usize,
    running: usize,
    order: BTreeMap<Rank, u32>,
    /// By slot; meaningful for those that wait.
    ranks: Vec<Rank>,
}

// === impl Plain ===

impl Plain {
    /// By arrival.
    pub(super) fn fifo(max_in_flight: usize) -> Self {
        Self::new(false, max_in_flight)
    }

    /// By how many requests the tenant has in the server, then by `max_tokens`.
    ///
    /// This is what Python KVWarden calls DRR, to the letter (`priority_score() * 100 + bucket`,
    /// frozen at arrival), so that it can be compared with. It has neither rounds nor a deficit that
    /// carries over; for those see Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit
    /// Round-Robin" (1996).
    pub(super) fn drr(max_in_flight: usize) -> Self {
        Self::new(true, max_in_flight)
    }

    fn new(by_deficit: bool, max_in_flight: usize) -> Self {
        Self {
            by_deficit,
            max_in_flight: max_in_flight.max(1),
            running: 0,
            order: BTreeMap::new(),
            ranks: Vec::new(),
        }
    }

    pub(super) fn allow(&mut self, max_in_flight: usize) {
        self.max_in_flight = max_in_flight.max(1);
    }

    /// `counts` of its tenant include the request itself.
    pub(super) fn enqueue(&mut self, slot: u32, arrival: &Arrival, place: i64, counts: Counts) {
        let rank = if self.by_deficit {
            let active = i64::try_from(counts.waiting + counts.running).unwrap_or(i64::MAX);
            let score = active
                .saturating_mul(10)
                .saturating_add(i64::from(arrival.class));
            (score, bucket(arrival.max_tokens), place)
        } else {
            (0, 0, place)
        };
        let at = slot as usize;
        if self.ranks.len() <= at {
            self.ranks.resize(at + 1, (0, 0, 0));
        }
        self.ranks[at] = rank;
        self.order.insert(rank, slot);
    }

    pub(super) fn dequeue(&mut self, slot: u32) {
        self.order.remove(&self.ranks[slot as usize]);
    }

    pub(super) fn next(&mut self) -> Option<u32> {
        if self.running >= self.max_in_flight {
            return None;
        }
        let (_, slot) = self.order.pop_first()?;
        self.running += 1;
        Some(slot)
    }

    pub(super) fn finish(&mut self) {
        self.running = self.running.saturating_sub(1);
    }
}

/// Python KVWarden's length classes. It assumes 256 tokens where none are named.
fn bucket(max_tokens: Option<u64>) -> u8 {
    match max_tokens.unwrap_or(256) {
        0..=256 => 0,
        257..=1024 => 1,
        1025..=4096 => 2,
        4097.. => 3,
    }
}
