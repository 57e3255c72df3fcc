//! Faults by the dozen against the real binary: goals R1-R9, each with its count.
//!
//! The counts here are short. `KVWARDEN_CHAOS=full` runs the long ones, which take hours:
//!
//! ```text
//! KVWARDEN_CHAOS=full cargo test --release -p kvwarden-integration --test chaos -- --nocapture
//! ```

mod crashes;
mod faults;

/// How often a fault is tried: `short` in the plain tests, `full` when the long run is asked for.
fn rounds(short: u32, full: u32) -> u32 {
    match std::env::var("KVWARDEN_CHAOS").as_deref() {
        Ok("full") => full,
        _ => short,
    }
}
