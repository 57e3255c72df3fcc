//! How evenly tenants that always want more were served.

use std::time::Duration;

use super::{Window, served};
use crate::lab::bench::load::Sample;

/// Jain's fairness index: 1 when all are equal, `1/n` when one has everything (Jain et al., 1984).
/// None of nothing.
fn jain(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    (squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

/// What a tenant was served within the window, by cost: a prompt token 1, an output token 2 (the
/// design's default prices). Tokens found in the prefix cache count whole; prompts here never are.
fn cost(samples: &[Sample], window: Window, tenant: usize) -> f64 {
    let own = samples.iter().filter(|sample| sample.tenant == tenant);
    let parts = own.map(|sample| served(sample, window));
    parts.map(|(prompt, output)| prompt + 2.0 * output).sum()
}

/// The mean over consecutive windows of Jain's index of what these tenants were served per weight.
/// None for fewer than two tenants.
#[must_use]
pub fn jain_over(
    samples: &[Sample],
    window: Window,
    step: Duration,
    tenants: &[(usize, u32)],
) -> Option<f64> {
    if tenants.len() < 2 || step.is_zero() {
        return None;
    }
    let mut indices = Vec::new();
    let mut from = window.from;
    while from + step <= window.until {
        let until = from + step;
        let share = |(tenant, weight): &(usize, u32)| {
            cost(samples, Window { from, until }, *tenant) / f64::from(*weight)
        };
        indices.extend(jain(&tenants.iter().map(share).collect::<Vec<_>>()));
        from = until;
    }
    let count = indices.len();
    (count > 0).then(|| indices.iter().sum::<f64>() / count as f64)
}

/// What each of these tenants was served of what they were served together, over its weight's part:
/// 1 is exactly what it is due.
#[must_use]
pub fn shares(runs: &[&[Sample]], window: Window, tenants: &[(usize, u32)]) -> Vec<f64> {
    let cost_of = |tenant| -> f64 { runs.iter().map(|run| cost(run, window, tenant)).sum() };
    let costs: Vec<f64> = tenants.iter().map(|(tenant, _)| cost_of(*tenant)).collect();
    let total: f64 = costs.iter().sum();
    let weights: f64 = tenants.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let due = tenants
        .iter()
        .map(|(_, weight)| total * f64::from(*weight) / weights);
    costs
        .iter()
        .zip(due)
        .map(|(cost, due)| if due > 0.0 { cost / due } else { 0.0 })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixture::{S, WINDOW, sample},
        *,
    };
    use crate::lab::bench::load::Outcome;

    #[test]
    fn jain_is_one_for_equals_and_a_share_for_a_monopoly() {
        assert_eq!(jain(&[3.0, 3.0, 3.0]), Some(1.0));
        assert_eq!(jain(&[5.0, 0.0, 0.0, 0.0]), Some(0.25));
        assert_eq!(jain(&[0.0, 0.0]), None);
    }

    #[test]
    fn jain_looks_at_each_window_by_itself() {
        // Equal over ten seconds, and a monopoly in each half.
        let samples = [
            sample(0, 2 * S, S, Outcome::Ok),
            sample(1, 7 * S, S, Outcome::Ok),
        ];
        let over = |step| jain_over(&samples, WINDOW, step, &[(0, 1), (1, 1)]).unwrap();
        assert!((over(10 * S) - 1.0).abs() < 1e-9);
        assert!((over(5 * S) - 0.5).abs() < 1e-9);
        assert_eq!(jain_over(&samples, WINDOW, S, &[(0, 1)]), None);
    }

    #[test]
    fn shares_are_judged_by_weight() {
        let samples = [2, 3, 4, 5].map(|at| sample((at > 2).into(), at * S, S, Outcome::Ok));
        let of = |weight| shares(&[&samples], WINDOW, &[(0, 1), (1, weight)]);
        assert_eq!(of(3), [1.0, 1.0]);
        assert_eq!(of(1), [0.5, 1.5]);
        let weighted = |weight| jain_over(&samples, WINDOW, 10 * S, &[(0, 1), (1, weight)]);
        assert!((weighted(3).unwrap() - 1.0).abs() < 1e-9 && weighted(1).unwrap() < 0.81);
    }
}
