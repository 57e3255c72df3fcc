//! The workloads of the fairness goals: who sends what.
//!
//! Sizes are those the goals were set with: a quiet tenant with short chats at one request a second,
//! and one of several floods. An engine on a CPU gets the same shapes at an eighth of the size, since
//! the originals would take hours there.

use clap::ValueEnum;
use serde::Serialize;

use super::load::{Lengths, Load};

/// What floods the engine.
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
    /// Floods of different kinds, each enough to fill the engine alone: long prompts, long outputs,
    /// many tiny
    Unequal,
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

/// One who sends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Party {
    /// On which side.
    pub role: Role,
    /// Its part of the engine beside the others' parts.
    pub weight: u32,
    /// What it sends.
    #[serde(flatten)]
    pub load: Load,
}

/// Everybody who sends.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Workload {
    /// Quiet tenants first.
    pub parties: Vec<Party>,
}

/// The rate of Python KVWarden's noisy tenant, requests per second.
pub const HERO_RATE: f64 = 32.0;

/// The quiet tenant's rate, requests per second.
const QUIET_RATE: f64 = 1.0;

/// All quiet tenants together ask for at most this part of the capacity, or they would be a flood.
/// A prompt token counts like an output token, as it nearly is one where there is no GPU.
const QUIET_SHARE: f64 = 0.1;

/// Random prompts of so many words are never alike, and no prefix cache helps.
const UNLIKE: u32 = 6;

// === impl Shape ===

impl Shape {
    /// Name, prompt and output lengths of each kind of flood.
    fn kinds(self) -> Vec<(&'static str, Lengths, Lengths)> {
        let uniform = |min, max| Lengths::Uniform { min, max };
        let lognormal = |median, sigma, min, max| Lengths::LogNormal {
            median,
            sigma,
            min,
            max,
        };
        let (long_prompts, long_outputs) = (
            lognormal(2000.0, 0.5, 200, 3900),
            lognormal(700.0, 0.6, 50, 2000),
        );
        let (prompt, output) = match self {
            Self::Decode => (uniform(50, 200), long_outputs),
            Self::Prefill => (long_prompts, uniform(100, 128)),
            Self::Mixed => (
                lognormal(1200.0, 1.0, 30, 7000),
                lognormal(200.0, 0.7, 10, 1000),
            ),
            Self::Hero => (uniform(10, 20), uniform(60, 64)),
            Self::Short => (uniform(10, 60), uniform(120, 128)),
            Self::Unequal => {
                return vec![
                    ("prompts", long_prompts, uniform(20, 40)),
                    ("outputs", uniform(50, 200), long_outputs),
                    ("tiny", uniform(10, 30), uniform(8, 16)),
                ];
            }
        };
        vec![("noisy", prompt, output)]
    }

    /// How many of so many tenants are noisy: one, or all but one where floods compete.
    #[must_use]
    pub fn noisy_of(self, tenants: usize) -> usize {
        match self {
            Self::Unequal => tenants.saturating_sub(1).max(1),
            Self::Decode | Self::Prefill | Self::Mixed | Self::Hero | Self::Short => 1,
        }
    }

    /// So many floods, each at one request per second. Beyond the kinds there are, they repeat.
    #[must_use]
    pub fn floods(self, count: usize, scale: f64) -> Vec<Load> {
        let kinds = self.kinds();
        let flood = |number: usize| {
            let (name, prompt, output) = &kinds[number % kinds.len()];
            let again = number / kinds.len();
            Load {
                tenant: match again {
                    0 => (*name).to_owned(),
                    _ => format!("{name}-{}", again + 1),
                },
                rate: 1.0,
                prompt: prompt.scaled(scale),
                output: output.scaled(scale),
            }
        };
        (0..count).map(flood).collect()
    }
}

// === impl Workload ===

impl Workload {
    /// These floods, and `quiet` tenants beside them. `capacity` is what the engine can do in output
    /// tokens per second. `weights` are those of the floods, in order; absent ones are 1.
    #[must_use]
    pub fn new(
        floods: Vec<Load>,
        weights: &[u32],
        quiet: usize,
        capacity: f64,
        scale: f64,
    ) -> Self {
        let output = Lengths::Uniform { min: 60, max: 64 }.scaled(scale);
        let prompt = Lengths::Uniform { min: 10, max: 60 }.scaled(scale);
        let prompt = prompt.at_least(UNLIKE);
        let each = prompt.mean() + output.mean();
        let most = capacity / each * QUIET_SHARE / quiet.max(1) as f64;
        let load = |number: usize| Load {
            tenant: match quiet {
                1 => "quiet".to_owned(),
                _ => format!("quiet-{number}"),
            },
            rate: QUIET_RATE.min(most.max(0.05)),
            prompt,
            output,
        };
        let quiet = (1..=quiet).map(|number| Party {
            role: Role::Quiet,
            weight: 1,
            load: load(number),
        });
        let noisy = floods.into_iter().enumerate().map(|(at, load)| Party {
            role: Role::Noisy,
            weight: weights.get(at).copied().unwrap_or(1),
            load,
        });
        Self {
            parties: quiet.chain(noisy).collect(),
        }
    }

    /// The tenants of one side, with their indices.
    pub fn of(&self, role: Role) -> impl Iterator<Item = (usize, &Party)> {
        let parties = self.parties.iter().enumerate();
        parties.filter(move |(_, party)| party.role == role)
    }

    /// Whether the tenant with this index is on that side.
    #[must_use]
    pub fn is(&self, tenant: usize, role: Role) -> bool {
        self.parties
            .get(tenant)
            .is_some_and(|party| party.role == role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet_rate(floods: Vec<Load>, capacity: f64, scale: f64) -> f64 {
        let workload = Workload::new(floods, &[], 1, capacity, scale);
        workload.parties[0].load.rate
    }

    #[test]
    fn hero_keeps_the_shape_of_the_published_run() {
        let floods = Shape::Hero.floods(Shape::Hero.noisy_of(8), 1.0);
        let workload = Workload::new(floods, &[], 7, 5000.0, 1.0);
        assert_eq!(workload.of(Role::Quiet).count(), 7);
        assert!(workload.of(Role::Quiet).all(|(_, p)| p.load.rate <= 1.0));
        let published = Lengths::Uniform { min: 60, max: 64 };
        assert_eq!(workload.parties[7].load.output, published);
    }

    #[test]
    fn quiet_tenant_stays_quiet_on_a_slow_engine() {
        let rate = |capacity| quiet_rate(Shape::Decode.floods(1, 0.125), capacity, 0.125);
        // Requests of 15 tokens, and a tenth of the capacity.
        assert!((rate(30.0) - 0.2).abs() < 0.01, "{}", rate(30.0));
        assert!((rate(800.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn unequal_floods_are_of_every_kind_and_keep_their_weights() {
        let count = Shape::Unequal.noisy_of(5);
        let workload = Workload::new(Shape::Unequal.floods(count, 1.0), &[3, 2], 1, 1e4, 1.0);
        let noisy = workload.of(Role::Noisy);
        let seen: Vec<_> = noisy
            .map(|(at, party)| (at, party.load.tenant.as_str(), party.weight))
            .collect();
        let expected = [
            (1, "prompts", 3),
            (2, "outputs", 2),
            (3, "tiny", 1),
            (4, "prompts-2", 1),
        ];
        assert_eq!(seen, expected);
    }
}
