//! What is sent when: a pure function of the load and a seed.

use std::time::Duration;

use super::SplitMix;

/// Requests of one tenant in one run. An hour of 100 requests/s; beyond it a run is a mistake.
const MAX_REQUESTS: usize = 360_000;

/// A distribution of token counts.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(tag = "distribution", rename_all = "lowercase")]
pub enum Lengths {
    /// Every count in `min..=max` alike.
    Uniform {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// Log-normal, with what lies outside `min..=max` put on the bound.
    LogNormal {
        /// Half of the draws are below it.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
}

/// What one tenant sends.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Load {
    /// The tenant's name.
    pub tenant: String,
    /// Requests per second, Poisson arrivals.
    pub rate: f64,
    /// Prompt tokens.
    pub prompt: Lengths,
    /// Output tokens.
    pub output: Lengths,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shot {
    /// When it is sent, from the start of the run.
    pub at: Duration,
    /// How long its prompt is.
    pub prompt_tokens: u32,
    /// How much output it asks for.
    pub output_tokens: u32,
}

// === impl Lengths ===

impl Lengths {
    /// One draw; at least 1.
    pub fn draw(&self, rng: &mut SplitMix) -> u32 {
        let drawn = match *self {
            Self::Uniform { min, max } => min + rng.below((max - min).saturating_add(1)),
            Self::LogNormal {
                median,
                sigma,
                min,
                max,
            } => tokens(median * (sigma * rng.normal()).exp()).clamp(min, max),
        };
        drawn.max(1)
    }

    /// The same shape at another size: for engines on which the original would take hours.
    #[must_use]
    pub fn scaled(&self, by: f64) -> Self {
        let scale = |count: u32| tokens(f64::from(count) * by).max(1);
        match *self {
            Self::Uniform { min, max } => Self::Uniform {
                min: scale(min),
                max: scale(max),
            },
            Self::LogNormal {
                median,
                sigma,
                min,
                max,
            } => Self::LogNormal {
                median: median * by,
                sigma,
                min: scale(min),
                max: scale(max),
            },
        }
    }

    /// The same with no draw below `least`.
    #[must_use]
    pub fn at_least(&self, least: u32) -> Self {
        let mut raised = *self;
        let (Self::Uniform { min, max } | Self::LogNormal { min, max, .. }) = &mut raised;
        (*min, *max) = ((*min).max(least), (*max).max(least));
        raised
    }

    /// The mean of many draws.
    #[must_use]
    pub fn mean(&self) -> f64 {
        const DRAWS: u32 = 4096;
        let mut rng = SplitMix::named(0, "mean");
        let sum: f64 = (0..DRAWS).map(|_| f64::from(self.draw(&mut rng))).sum();
        sum / f64::from(DRAWS)
    }
}

// === impl Shot ===

impl Shot {
    /// One of this kind, at that moment.
    pub(super) fn draw(at: Duration, load: &Load, rng: &mut SplitMix) -> Self {
        Self {
            at,
            prompt_tokens: load.prompt.draw(rng),
            output_tokens: load.output.draw(rng),
        }
    }
}

/// Rounds to the nearest count.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and negative or huge draws end on the bounds anyway"
)]
fn tokens(count: f64) -> u32 {
    count.round() as u32
}

/// The requests of one tenant over `lasting`, in the order they are sent.
///
/// # Errors
/// When there would be more than a run can have.
pub fn plan(load: &Load, seed: u64, lasting: Duration) -> anyhow::Result<Vec<Shot>> {
    let Load { tenant, rate, .. } = load;
    let seconds = lasting.as_secs_f64();
    anyhow::ensure!(
        rate * seconds <= MAX_REQUESTS as f64,
        "{tenant}: {rate:.1} requests/s for {} s are more than {MAX_REQUESTS} requests",
        lasting.as_secs()
    );
    let mut rng = SplitMix::named(seed, tenant);
    let mut shots = Vec::new();
    if *rate <= 0.0 {
        return Ok(shots);
    }
    let mut at = 0.0;
    loop {
        at += rng.exponential(1.0 / rate);
        // Twice the expectation is out of reach of a Poisson process this long.
        if at >= seconds || shots.len() >= 2 * MAX_REQUESTS {
            return Ok(shots);
        }
        shots.push(Shot::draw(Duration::from_secs_f64(at), load, &mut rng));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn load(rate: f64) -> Load {
        Load {
            tenant: "noisy".to_owned(),
            rate,
            prompt: Lengths::Uniform { min: 10, max: 20 },
            output: Lengths::LogNormal {
                median: 700.0,
                sigma: 0.6,
                min: 50,
                max: 2000,
            },
        }
    }

    #[test]
    fn same_seed_is_the_same_plan_and_another_is_not() {
        let of = |seed| plan(&load(20.0), seed, MINUTE).unwrap();
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn arrivals_are_poisson_at_the_rate_asked_for() {
        let shots = plan(&load(50.0), 1, 10 * MINUTE).unwrap();
        let count = shots.len() as f64;
        // Three standard deviations of a Poisson count of 30,000.
        assert!((count - 30_000.0).abs() < 520.0, "{count}");
        // Gaps of a Poisson process vary as much as they last; those of a metronome not at all.
        let gaps = shots.windows(2).map(|pair| pair[1].at - pair[0].at);
        let gaps: Vec<f64> = gaps.map(|gap| gap.as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let variation = variance.sqrt() / mean;
        assert!((variation - 1.0).abs() < 0.03, "{variation}");
    }

    #[test]
    fn lognormal_lengths_have_their_median() {
        let shots = plan(&load(50.0), 1, 10 * MINUTE).unwrap();
        let mut outputs: Vec<_> = shots.iter().map(|shot| shot.output_tokens).collect();
        outputs.sort_unstable();
        let median = outputs[outputs.len() / 2];
        assert!((680..=720).contains(&median), "{median}");
    }

    #[test]
    fn endless_plan_is_refused() {
        assert!(plan(&load(1e6), 1, MINUTE).is_err());
        assert!(plan(&load(0.0), 1, MINUTE).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn lengths_stay_within_their_bounds(seed: u64, min in 1_u32..500, more in 0_u32..500) {
            let mut rng = SplitMix::new(seed);
            let max = min + more;
            let lengths = [
                Lengths::Uniform { min, max },
                Lengths::LogNormal { median: 200.0, sigma: 2.0, min, max },
            ];
            for lengths in lengths {
                for _ in 0..50 {
                    prop_assert!((min..=max).contains(&lengths.draw(&mut rng)));
                }
            }
        }
    }
}
