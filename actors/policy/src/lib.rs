//! The decisions of kvwarden as pure functions.
//!
//! Nothing here knows an actor, a socket, a file or a clock: `now` is an argument, outcomes are
//! enums, and the same code runs in the server, in the simulated engine and in virtual-time tests.
//!
//! | folder | decides |
//! |---|---|
//! | [`scheduling`] | which waiting request goes next, and when; whether one may still wait |
//! | [`residency`] | which models are in memory, which make room for which, and when; and the books it goes by |
//! | [`lifecycle`] | what a model does next, given what happened to its engine |
//! | [`stall`] | when an engine that has work is suspected of doing none, and when that is certain |
//! | [`simulation`] | nothing: engines and swaps that are made up, for tests, benches and replays |
//!
//! | file | decides |
//! |---|---|
//! | [`bucket`] | whether a tenant may spend now, and when it may otherwise |
//! | [`quota`] | the same for a day's tokens |
//! | [`tier`] | which class a request's `service_tier` comes to |
//! | [`cost`] | what a request costs before and after it ran |
//! | [`routing`] | which of a model's engines a request goes to |
//! | [`backoff`] | when a failed engine may try again, and when it must not |
//! | [`failure`] | why an engine ended, from its exit status and last words |
//! | [`startup`] | when an engine that starts is given up |

pub mod backoff;
pub mod bucket;
pub mod cost;
pub mod failure;
mod id;
pub mod lifecycle;
pub mod quota;
pub mod residency;
pub mod routing;
pub mod scheduling;
pub mod simulation;
pub mod stall;
pub mod startup;
pub mod tier;

pub use id::{DeviceId, Generation, ModelId, TenantId};

/// Some instant to count from: tests have no other use for a clock.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the one clock of the tests")]
pub(crate) fn epoch() -> std::time::Instant {
    std::time::Instant::now()
}
