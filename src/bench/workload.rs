//! The workloads of the fairness goals: who sends what.
//!
//! Sizes are those the goals were set with: a quiet tenant with short chats at one request a second,
//! and one of several floods. An engine on a CPU gets the same shapes at an eighth of the size, since
//! the originals would take hours there.

use clap::ValueEnum;
use serde::Serialize;

use super::load::{Lengths, Load};

/// What the noisy tenant floods the engine with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Long answers: prompts 50-200, answers log-normal, median 700 (50-2000)
    Decode,
    /// Long prompts: log-normal, median 2000 (200-3900), answers 100-128
    Prefill,
    /// Everything: prompts log-normal, median 1200 (30-7000), answers median 200 (10-1000)
    Mixed,
    /// Python KVWarden's published run: prompts 10-20, answers 60-64, 32 requests/s
    Hero,
    /// Many small ones: prompts 10-60, answers 120-128
    Short,
}

/// Which side of the experiment a tenant is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Stays within its share; what happens to it is the result.
    Quiet,
    /// Wants more than there is.
    Noisy,
}

/// Everybody who sends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// The loads, quiet tenants first.
    pub loads: Vec<(Role, Load)>,
}

/// The rate of Python KVWarden's noisy tenant, requests per second.
pub const HERO_RATE: f64 = 32.0;

/// The quiet tenant's rate, requests per second.
const QUIET_RATE: f64 = 1.0;

/// All quiet tenants together ask for at most this part of the capacity, in output tokens, or they
/// would be a flood.
const QUIET_SHARE: f64 = 0.1;

// === impl Shape ===

impl Shape {
    /// Prompt and output lengths of the flood.
    #[must_use]
    pub fn lengths(self) -> (Lengths, Lengths) {
        let uniform = |min, max| Lengths::Uniform { min, max };
        let lognormal = |median, sigma, min, max| Lengths::LogNormal {
            median,
            sigma,
            min,
            max,
        };
        match self {
            Self::Decode => (uniform(50, 200), lognormal(700.0, 0.6, 50, 2000)),
            Self::Prefill => (lognormal(2000.0, 0.5, 200, 3900), uniform(100, 128)),
            Self::Mixed => (
                lognormal(1200.0, 1.0, 30, 7000),
                lognormal(200.0, 0.7, 10, 1000),
            ),
            Self::Hero => (uniform(10, 20), uniform(60, 64)),
            Self::Short => (uniform(10, 60), uniform(120, 128)),
        }
    }

    /// The flood at `rate` requests per second.
    #[must_use]
    pub fn flood(self, rate: f64, scale: f64) -> Load {
        let (prompt, output) = self.lengths();
        Load {
            tenant: "noisy".to_owned(),
            rate,
            prompt: prompt.scaled(scale),
            output: output.scaled(scale),
        }
    }
}

// === impl Workload ===

impl Workload {
    /// One noisy tenant and `tenants - 1` quiet ones. `capacity` is what the engine can do of the
    /// flood's requests per second.
    #[must_use]
    pub fn new(flood: Load, tenants: usize, capacity: f64, scale: f64) -> Self {
        let quiet_tenants = tenants.saturating_sub(1).max(1);
        let output = Lengths::Uniform { min: 60, max: 64 }.scaled(scale);
        let capacity_in_quiet = capacity * flood.output.mean() / output.mean();
        let most = capacity_in_quiet * QUIET_SHARE / quiet_tenants as f64;
        let quiet = |number: usize| Load {
            tenant: match quiet_tenants {
                1 => "quiet".to_owned(),
                _ => format!("quiet-{number}"),
            },
            rate: QUIET_RATE.min(most.max(0.05)),
            prompt: Lengths::Uniform { min: 10, max: 60 }.scaled(scale),
            output,
        };
        let quiet = (1..=quiet_tenants).map(|number| (Role::Quiet, quiet(number)));
        Self {
            loads: quiet.chain([(Role::Noisy, flood)]).collect(),
        }
    }

    /// The loads of one side.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Load> {
        self.loads
            .iter()
            .filter(move |(own, _)| *own == role)
            .map(|(_, load)| load)
    }

    /// Whether the tenant with this index is on that side.
    #[must_use]
    pub fn is(&self, tenant: usize, role: Role) -> bool {
        self.loads.get(tenant).is_some_and(|(own, _)| *own == role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hero_keeps_the_shape_of_the_published_run() {
        let flood = Shape::Hero.flood(HERO_RATE, 1.0);
        let workload = Workload::new(flood, 8, 80.0, 1.0);
        assert_eq!(workload.of(Role::Quiet).count(), 7);
        assert!(workload.of(Role::Quiet).all(|quiet| quiet.rate <= 1.0));
        assert_eq!(
            workload.loads[7].1.output,
            Lengths::Uniform { min: 60, max: 64 }
        );
    }

    #[test]
    fn quiet_tenant_stays_quiet_on_a_slow_engine() {
        let rate = |capacity| {
            let workload = Workload::new(Shape::Decode.flood(2.0, 0.125), 2, capacity, 0.125);
            workload
                .of(Role::Quiet)
                .next()
                .map_or(0.0, |quiet| quiet.rate)
        };
        // A decode costs about thirteen quiet requests, of which a tenth are the quiet tenant's.
        assert!((rate(0.1) - 0.13).abs() < 0.02, "{}", rate(0.1));
        assert!((rate(8.0) - 1.0).abs() < 1e-9);
    }
}
