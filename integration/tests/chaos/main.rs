//! Faults by the dozen against the real binary: goals R1-R9 with their counts, and S4 and L5, which
//! are goals about the same.
//!
//! The counts here are short. `KVWARDEN_CHAOS=full` runs the long ones, which take an hour or more on
//! a machine that does nothing else. Each test prints a line with its figures; times are printed and
//! never asserted.
//!
//! ```text
//! cargo build --release -p kvwarden
//! KVWARDEN_BIN=$PWD/target/release/kvwarden KVWARDEN_CHAOS=full \
//!     cargo test --release -p kvwarden-integration --test chaos -- --nocapture --test-threads=1
//! ```

mod crashes;
mod faults;
mod hang_ups;
mod kills;
mod real_engines;
mod reloads;
mod slow_clients;
mod soak;
mod streams;
mod swaps;
mod takeover;

use std::time::Duration;

use kvwarden_integration::{Footprint, eventually_within};
use nix::unistd::Pid;

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

/// Waits until a process has no more files and sockets open than once before.
///
/// # Panics
/// If that takes a minute.
fn closed_again(pid: Pid, before: Footprint) -> Footprint {
    // Engines are asked for their metrics, and for that a connection comes and goes.
    const PASSING: usize = 3;
    eventually_within(Duration::from_secs(60), "all to be closed", || {
        let now = Footprint::of(pid);
        (now.descriptors <= before.descriptors + PASSING).then_some(now)
    })
}

/// By how many per cent more memory is held than before.
fn growth(before: Footprint, after: Footprint) -> f64 {
    100.0 * (after.resident as f64 / before.resident as f64 - 1.0)
}
