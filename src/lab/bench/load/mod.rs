//! An open-loop load generator for OpenAI-compatible servers.
//!
//! Requests go out when their plan says so, whether or not earlier ones were answered, and every
//! latency is counted from that planned moment. A generator that waits for answers, or counts from
//! the moment it got around to sending, hides exactly the waiting that overload causes ("coordinated
//! omission", Tene, *How NOT to Measure Latency*).
//!
//! What it never does: share a connection between tenants, honour `retry-after`, retry a refusal, or
//! report a run in which its own process was too busy to keep its plan.
//!
//! ```text
//!  Load ──plan()──▶ [Shot] ──run()──▶ one task per tenant, one per request ──▶ [Sample], Lag
//! ```
//!
//! Everything runs on the thread that calls it, inside a `LocalSet` (an actix system has one).

mod client;
mod closed;
mod lag;
mod plan;
mod probe;
mod prompt;
mod run;
mod sample;
#[cfg(test)]
mod tests;

pub use kvwarden_policy::simulation::rng::SplitMix;

pub use self::{
    client::{Dialect, Target},
    closed::{Pace, closed_loop},
    lag::Lag,
    plan::{Lengths, Load, Shot, plan},
    probe::probe,
    prompt::Prompts,
    run::{Limits, Live, Run, RunError, run},
    sample::{Outcome, Sample},
};
