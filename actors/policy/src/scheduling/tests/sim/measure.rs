//! What a run showed, counted the same way in every arm.

use std::{collections::BTreeMap, time::Duration};

/// Over which fairness is judged.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Report {
    /// From scheduled arrival to first token, per tenant. One that never came counts with the time it
    /// had waited at the end, a lower bound.
    pub(super) first_tokens: BTreeMap<&'static str, Vec<Duration>>,
    /// Prompt and output tokens after the warm-up.
    pub(super) tokens: u64,
    /// Cost of what a tenant received, per window.
    pub(super) service: BTreeMap<&'static str, Vec<u64>>,
    pub(super) refused: u64,
    pub(super) displaced: usize,
    pub(super) preempted: usize,
    /// Looks at the engine's own queue, and those that saw more than two.
    pub(super) looks: u64,
    pub(super) long_looks: u64,
    pub(super) steps: u64,
    pub(super) busy: Duration,
    pub(super) over_limit: u64,
    /// Tokens that hidden requests have at looks, and by how much estimates are off.
    pub(super) hidden: u64,
    pub(super) misjudged: u64,
}

// === impl Report ===

impl Report {
    pub(super) fn merge(&mut self, other: Self) {
        for (tenant, delays) in other.first_tokens {
            self.first_tokens.entry(tenant).or_default().extend(delays);
        }
        for (tenant, service) in other.service {
            self.service.entry(tenant).or_default().extend(service);
        }
        self.tokens += other.tokens;
        self.refused += other.refused;
        self.displaced += other.displaced;
        self.preempted += other.preempted;
        self.looks += other.looks;
        self.long_looks += other.long_looks;
        self.steps += other.steps;
        self.busy += other.busy;
        self.over_limit += other.over_limit;
        self.hidden += other.hidden;
        self.misjudged += other.misjudged;
    }

    pub(super) fn quiet_quantile(&self, percent: usize) -> f64 {
        let mut delays = self.first_tokens["quiet"].clone();
        delays.sort_unstable();
        // Nearest rank.
        let rank = (delays.len() * percent).div_ceil(100).max(1);
        delays[rank - 1].as_secs_f64() * 1e3
    }

    pub(super) fn judge(&mut self, estimate: u64, generated: u32) {
        self.hidden += u64::from(generated);
        self.misjudged += estimate.abs_diff(u64::from(generated));
    }

    /// Part of the looks at the engine that saw a queue in it.
    pub(super) fn waits(&self) -> f64 {
        to_f64(self.long_looks) / to_f64(self.looks.max(1))
    }

    /// Mean time of a step in milliseconds.
    pub(super) fn step_ms(&self) -> f64 {
        self.busy.as_secs_f64() * 1e3 / to_f64(self.steps.max(1))
    }

    pub(super) fn shares(&self, tenants: &[&str]) -> Vec<f64> {
        let total = |tenant: &&str| to_f64(self.service[*tenant].iter().sum());
        let all: f64 = tenants.iter().map(total).sum();
        tenants.iter().map(|tenant| total(tenant) / all).collect()
    }

    /// Jain's index over whole runs and the least over windows, of service per weight.
    pub(super) fn jain(&self, tenants: &[(&str, u32)]) -> (f64, f64) {
        let windows = self.service[tenants[0].0].len();
        let per_window = (0..windows).map(|window| {
            let of = |(tenant, weight): &(&str, u32)| {
                to_f64(self.service[*tenant][window]) / f64::from(*weight)
            };
            jain(&tenants.iter().map(of).collect::<Vec<_>>())
        });
        let overall = |(tenant, weight): &(&str, u32)| {
            to_f64(self.service[*tenant].iter().sum()) / f64::from(*weight)
        };
        let whole = jain(&tenants.iter().map(overall).collect::<Vec<_>>());
        (whole, per_window.fold(1.0, f64::min))
    }
}

/// (sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has all.
fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    #[expect(clippy::cast_precision_loss, reason = "a handful of tenants")]
    let count = values.len() as f64;
    sum * sum / (count * squares)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
pub(super) fn to_f64(count: u64) -> f64 {
    count as f64
}
