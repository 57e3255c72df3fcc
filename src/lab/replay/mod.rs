//! A recorded or made-up list of requests, run through the planner and its rivals in virtual time.
//!
//! Nothing is loaded and nobody is served: `kvwarden_policy::simulation::swapping` decides and counts. So what comes
//! out is SIMULATED, whatever the log was.

mod picture;

use std::time::{Duration, Instant};

use kvwarden_policy::simulation::swapping::{Policy, PolicyName, Request, Sim, Tally, World};
use serde::Serialize;

/// What came of a log.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nothing here is a measurement of hardware.
    pub label: &'static str,
    /// What was replayed.
    pub source: String,
    /// How many requests.
    pub requests: usize,
    /// How many models.
    pub models: usize,
    /// From the first arrival to the last, in seconds.
    pub lasts_s: f64,
    /// What each policy did.
    pub policies: Vec<PolicyReport>,
}

/// What one policy did.
#[derive(Debug, Serialize)]
pub struct PolicyReport {
    /// Which.
    pub policy: &'static str,
    /// Seconds that requests stalled, together.
    pub stall_s: f64,
    /// The median request.
    pub p50_s: f64,
    /// All but one in a hundred stalled less.
    pub p99_s: f64,
    /// The one that stalled longest.
    pub max_s: f64,
    /// Starts from cold.
    pub starts: u64,
    /// Wakes from sleep.
    pub wakes: u64,
    /// Every stall, the shortest first.
    #[serde(skip)]
    pub stalls: Vec<Duration>,
}

// === impl Report ===

impl Report {
    /// Runs the requests under each policy.
    #[must_use]
    pub fn of(source: String, world: &World, requests: &[Request], names: &[PolicyName]) -> Self {
        let last = requests.last().map_or(Duration::ZERO, |last| last.at);
        let run = |name: &PolicyName| PolicyReport::of(world, requests, *name);
        Self {
            label: "SIMULATED",
            source,
            requests: requests.len(),
            models: world.models.len(),
            lasts_s: last.as_secs_f64(),
            policies: names.iter().map(run).collect(),
        }
    }

    /// The stalls of every policy as an SVG drawing.
    ///
    /// # Errors
    /// When it can't be drawn.
    pub fn svg(&self) -> anyhow::Result<String> {
        crate::lab::plot::svg(self)
    }

    /// The same as a PNG.
    ///
    /// # Errors
    /// When it can't be drawn.
    pub fn png(&self) -> anyhow::Result<Vec<u8>> {
        crate::lab::plot::png(self)
    }
}

// === impl PolicyReport ===

impl PolicyReport {
    fn of(world: &World, requests: &[Request], name: PolicyName) -> Self {
        let mut stalls = Vec::with_capacity(requests.len());
        let policy = Policy::new(name, world, requests);
        let Tally { starts, wakes, .. } = Sim::new(world, policy, epoch())
            .run(requests.iter().copied(), |served| stalls.push(served.stall));
        stalls.sort_unstable();
        let quantile = |share: f64| quantile(&stalls, share).as_secs_f64();
        Self {
            policy: name.as_str(),
            stall_s: stalls.iter().sum::<Duration>().as_secs_f64(),
            p50_s: quantile(0.5),
            p99_s: quantile(0.99),
            max_s: quantile(1.0),
            starts,
            wakes,
            stalls,
        }
    }
}

/// The nearest rank.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is within the list"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
}

#[expect(
    clippy::disallowed_methods,
    reason = "virtual time counts from some instant"
)]
fn epoch() -> Instant {
    Instant::now()
}
