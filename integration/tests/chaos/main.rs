//! Faults by the dozen against the real binary: goals R1-R9, each with its count.
//!
//! The counts here are short. `KVWARDEN_CHAOS=full` runs the long ones, which take hours:
//!
//! ```text
//! KVWARDEN_CHAOS=full cargo test --release -p kvwarden-integration --test chaos -- --nocapture
//! ```

mod hang_ups;
mod kills;
mod slow_clients;
mod soak;
mod streams;

use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

/// How often a fault is tried: `short` in the plain tests, `full` when the long run is asked for.
fn rounds(short: u32, full: u32) -> u32 {
    match std::env::var("KVWARDEN_CHAOS").as_deref() {
        Ok("full") => full,
        _ => short,
    }
}

fn slowest(times: &[Duration]) -> Duration {
    percentile(times, 100)
}

/// The least time that so many in a hundred do not exceed.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100);
    times
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}
