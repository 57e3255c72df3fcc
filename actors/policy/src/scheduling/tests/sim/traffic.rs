//! Who sends what, when: Poisson arrivals of requests with random lengths, repeatable by seed.

use std::time::Duration;

use crate::simulation::steps::{A100_8B, H100_8B, Preset};

/// SplitMix64 (Steele et al., OOPSLA'14): enough for a simulation, and the same on every machine.
pub(super) struct Dice(u64);

#[derive(Clone, Copy)]
pub(super) enum Length {
    Between(u32, u32),
    /// Median, sigma, least, most.
    LogNormal(f64, f64, u32, u32),
}

/// One tenant's traffic.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub(super) tenant: &'static str,
    pub(super) weight: u32,
    pub(super) per_second: f64,
    pub(super) prompt: Length,
    pub(super) output: Length,
    /// It says it wants that many tokens; otherwise it says what it takes.
    pub(super) claims: Option<u64>,
    /// Otherwise its answers come whole.
    pub(super) streams: bool,
    pub(super) from: Duration,
}

pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) preset: Preset,
    pub(super) sources: Vec<Source>,
    pub(super) lasts: Duration,
    /// Cut from the start of every arm.
    pub(super) warm_up: Duration,
}

pub(super) struct Request {
    pub(super) source: usize,
    pub(super) at: Duration,
    pub(super) prompt: u32,
    pub(super) output: u32,
}

pub(super) const QUIET: Source = Source {
    tenant: "quiet",
    weight: 1,
    per_second: 1.0,
    prompt: Length::Between(10, 60),
    output: Length::Between(60, 64),
    claims: None,
    streams: true,
    from: Duration::ZERO,
};

// === impl Dice ===

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let bits = (self.next() >> 11) as f64;
        (bits + 1.0) / 9_007_199_254_740_992.0
    }

    fn length(&mut self, length: Length) -> u32 {
        match length {
            Length::Between(least, most) => {
                let offset = self.next() % u64::from(most - least + 1);
                least + u32::try_from(offset).unwrap()
            }
            Length::LogNormal(median, sigma, least, most) => {
                // Box and Muller.
                let radius = (-2.0 * self.unit().ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
                let length = median * (sigma * normal).exp();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped to bounds that are u32"
                )]
                let length = length.clamp(f64::from(least), f64::from(most)) as u32;
                length
            }
        }
    }
}

// === impl Workload ===

impl Workload {
    /// All arrivals in order. Each source has dice of its own, so that it sends the same whoever
    /// else sends.
    pub(super) fn requests(&self, only: Option<&str>, seed: u64) -> Vec<Request> {
        let mut all = Vec::new();
        for (source, spec) in self.sources.iter().enumerate() {
            if only.is_some_and(|tenant| tenant != spec.tenant) {
                continue;
            }
            let mut dice = Dice::new(seed.wrapping_mul(1000) + source as u64);
            let mut at = spec.from;
            loop {
                at += Duration::from_secs_f64(-dice.unit().ln() / spec.per_second);
                if at >= self.lasts {
                    break;
                }
                all.push(Request {
                    source,
                    at,
                    prompt: dice.length(spec.prompt),
                    output: dice.length(spec.output),
                });
            }
        }
        all.sort_by_key(|request| request.at);
        all
    }

    /// The same requests, but these tenants ask for whole answers.
    pub(super) fn whole(mut self, tenants: &[&str]) -> Self {
        for source in &mut self.sources {
            source.streams = !tenants.contains(&source.tenant);
        }
        self
    }

    fn quiet_and(name: &'static str, preset: Preset, flood: (f64, Length, Length)) -> Self {
        let (per_second, prompt, output) = flood;
        let noisy = Source {
            tenant: "noisy",
            per_second,
            prompt,
            output,
            ..QUIET
        };
        Self {
            name,
            preset,
            sources: vec![QUIET, noisy],
            lasts: Duration::from_secs(150),
            warm_up: Duration::from_secs(15),
        }
    }

    /// Python KVWarden's published shape, which does not saturate the GPU.
    pub(super) fn hero() -> Self {
        let flood = (32.0, Length::Between(10, 20), Length::Between(60, 64));
        Self::quiet_and("hero 32 rps", A100_8B, flood)
    }

    pub(super) fn short_flood() -> Self {
        let flood = (160.0, Length::Between(10, 60), Length::Between(120, 128));
        Self::quiet_and("short flood", A100_8B, flood)
    }

    pub(super) fn long_prompts() -> Self {
        let prompt = Length::LogNormal(2000.0, 0.5, 200, 3900);
        let flood = (12.0, prompt, Length::Between(100, 128));
        Self::quiet_and("long prompts", A100_8B, flood)
    }

    pub(super) fn long_decodes() -> Self {
        let output = Length::LogNormal(700.0, 0.6, 50, 2000);
        let flood = (20.0, Length::Between(50, 200), output);
        Self::quiet_and("long decodes", A100_8B, flood)
    }

    pub(super) fn mixed() -> Self {
        let prompt = Length::LogNormal(1200.0, 1.0, 30, 7000);
        let output = Length::LogNormal(200.0, 0.7, 10, 1000);
        Self::quiet_and("mixed", H100_8B, (60.0, prompt, output))
    }

    pub(super) fn all() -> [Self; 5] {
        [
            Self::hero(),
            Self::short_flood(),
            Self::long_prompts(),
            Self::long_decodes(),
            Self::mixed(),
        ]
    }

    /// Three tenants who always want more than they get and are as different as can be.
    pub(super) fn heterogeneous(weights: [u32; 3]) -> Self {
        Self::unequal(weights, A100_8B)
    }

    /// The same where the KV cache is what is short: the others fill it, and tiny ones always fit.
    pub(super) fn short_of_cache() -> Self {
        let mut workload = Self::unequal([1; 3], H100_8B);
        let [prompts, outputs, tiny] = &mut workload.sources[..] else {
            unreachable!("there are three");
        };
        (prompts.per_second, outputs.per_second) = (30.0, 60.0);
        tiny.per_second = 1000.0;
        workload
    }

    fn unequal(weights: [u32; 3], preset: Preset) -> Self {
        let source = |tenant, weight, per_second, prompt, output| Source {
            tenant,
            weight,
            per_second,
            prompt,
            output,
            ..QUIET
        };
        let [prompts, outputs, tiny] = weights;
        let long = Length::LogNormal(2000.0, 0.5, 200, 3900);
        let outputs_long = Length::LogNormal(700.0, 0.6, 50, 2000);
        Self {
            name: "heterogeneous",
            preset,
            sources: vec![
                source("prompts", prompts, 12.0, long, Length::Between(20, 40)),
                source(
                    "outputs",
                    outputs,
                    20.0,
                    Length::Between(50, 200),
                    outputs_long,
                ),
                source(
                    "tiny",
                    tiny,
                    300.0,
                    Length::Between(10, 30),
                    Length::Between(8, 16),
                ),
            ],
            lasts: Duration::from_secs(150),
            warm_up: Duration::from_secs(15),
        }
    }
}
