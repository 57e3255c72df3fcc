//! Figures from samples. Pure, and knows no policy: every arm goes through the same functions.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::load::{Outcome, Sample};

/// Which part of a run counts. The same for every arm: a cut that differs makes any figure possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Requests planned before it are warm-up.
    #[serde(serialize_with = "seconds")]
    pub from: Duration,
    /// Requests are planned, and tokens counted, until it.
    #[serde(serialize_with = "seconds")]
    pub until: Duration,
}

/// A distribution of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// Requests that count.
    pub count: usize,
    /// Of these, how many never got that far before the run ended: they enter with the time they had.
    pub unfinished: usize,
    /// Median.
    pub p50: Quantile,
    /// 95th percentile.
    pub p95: Quantile,
    /// 99th percentile.
    pub p99: Quantile,
    /// Longest.
    pub max: Quantile,
}

/// A percentile, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantile {
    /// The value; none of nothing.
    pub ms: Option<f64>,
    /// It is really at least this, as an unfinished request ranks at or below it.
    pub at_least: bool,
}

/// One value of a distribution: known, or known to be longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Milliseconds.
    pub ms: f64,
    /// It went on when the run ended.
    pub is_unfinished: bool,
}

/// What a group of tenants got.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Service {
    /// Requests planned in the window.
    pub sent: usize,
    /// Whole answers.
    pub ok: usize,
    /// Refused, by code.
    pub refused: BTreeMap<String, usize>,
    /// Failed or cut, by reason.
    pub failed: BTreeMap<String, usize>,
    /// Neither when the run ended.
    pub unfinished: usize,
    /// Planned moment to first token.
    pub ttft: Times,
    /// Planned moment to the end, of whole answers and unfinished ones.
    pub end_to_end: Times,
    /// Mean time between the tokens of a request, over requests.
    pub inter_token: Times,
    /// Prompt tokens per second whose first output token came in the window.
    pub prompt_tokens_per_s: f64,
    /// Output tokens per second that came in the window.
    pub output_tokens_per_s: f64,
}

// === impl Window ===

impl Window {
    /// How long it is.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        (self.until - self.from).as_secs_f64()
    }

    fn holds(&self, at: Duration) -> bool {
        self.from <= at && at < self.until
    }
}

// === impl Service ===

impl Service {
    /// Refusals of every kind.
    #[must_use]
    pub fn refusals(&self) -> usize {
        self.refused.values().sum()
    }

    /// Prompt and output tokens per second.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        self.prompt_tokens_per_s + self.output_tokens_per_s
    }

    /// What these tenants got in each of the runs, pooled.
    #[must_use]
    pub fn of(runs: &[&[Sample]], window: Window, wanted: impl Fn(usize) -> bool) -> Self {
        let mut service = Self::default();
        let all = || runs.iter().copied().flatten().filter(|s| wanted(s.tenant));
        for sample in all().filter(|sample| window.holds(sample.scheduled)) {
            service.sent += 1;
            let slot = match &sample.outcome {
                Outcome::Ok => &mut service.ok,
                Outcome::Unfinished => &mut service.unfinished,
                Outcome::Refused { status, code } => {
                    let code = format!("{status} {code}").trim_end().to_owned();
                    service.refused.entry(code).or_default()
                }
                Outcome::Failed { why } | Outcome::Cut { why } => {
                    service.failed.entry(why.clone()).or_default()
                }
            };
            *slot += 1;
        }
        let counted = || all().filter(|sample| window.holds(sample.scheduled));
        service.ttft = Times::of(first_tokens(counted()));
        service.end_to_end = Times::of(counted().filter_map(|sample| {
            let unfinished = sample.outcome == Outcome::Unfinished;
            let so_far = unfinished.then(|| sample.ended - sample.scheduled);
            Some(Seen {
                ms: millis(sample.end_to_end().or(so_far)?),
                is_unfinished: unfinished,
            })
        }));
        service.inter_token = Times::of(counted().filter_map(|sample| {
            Some(Seen {
                ms: millis(sample.inter_token()?),
                is_unfinished: false,
            })
        }));
        let seconds = window.seconds() * runs.len().max(1) as f64;
        let (prompt, output) = all().fold((0.0, 0.0), |(prompt, output), sample| {
            let (p, o) = served(sample, window);
            (prompt + p, output + o)
        });
        service.prompt_tokens_per_s = prompt / seconds;
        service.output_tokens_per_s = output / seconds;
        service
    }
}

/// Times to first token, those of requests that had none yet included. Refusals and failures have
/// none; they are counted as what they are.
pub fn first_tokens<'a>(samples: impl Iterator<Item = &'a Sample>) -> impl Iterator<Item = Seen> {
    samples.filter_map(|sample| {
        let waited = sample.ended - sample.scheduled;
        let waiting = (sample.outcome == Outcome::Unfinished).then_some(waited);
        Some(Seen {
            ms: millis(sample.ttft().or(waiting)?),
            is_unfinished: sample.ttft().is_none(),
        })
    })
}

/// Requests of these runs that the window holds.
pub fn in_window<'a>(
    runs: &[&'a [Sample]],
    window: Window,
    wanted: impl Fn(usize) -> bool,
) -> impl Iterator<Item = &'a Sample> {
    runs.iter()
        .copied()
        .flatten()
        .filter(move |sample| wanted(sample.tenant) && window.holds(sample.scheduled))
}

/// Prompt and output tokens of a request that were served within the window. A prompt counts as
/// served with its first output token.
fn served(sample: &Sample, window: Window) -> (f64, f64) {
    let inside = sample.events.iter().filter(|at| window.holds(**at)).count();
    let is_prompt_inside = sample.events.first().is_some_and(|at| window.holds(*at));
    let prompt = sample.usage.map_or(0, |usage| usage.prompt_tokens);
    (
        if is_prompt_inside { prompt as f64 } else { 0.0 },
        inside as f64 * sample.tokens_per_event(),
    )
}

// === impl Times ===

impl Times {
    /// Nearest-rank percentiles (no interpolation: every figure is a request that happened).
    pub fn of(seen: impl Iterator<Item = Seen>) -> Self {
        let mut all: Vec<Seen> = seen.collect();
        all.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        Self {
            count: all.len(),
            unfinished: all.iter().filter(|seen| seen.is_unfinished).count(),
            p50: quantile(&all, 50),
            p95: quantile(&all, 95),
            p99: quantile(&all, 99),
            max: quantile(&all, 100),
        }
    }
}

/// The `percent`th percentile of values in ascending order.
fn quantile(sorted: &[Seen], percent: usize) -> Quantile {
    let rank = (sorted.len() * percent).div_ceil(100);
    let Some(at) = rank.checked_sub(1) else {
        return Quantile::default();
    };
    Quantile {
        ms: Some(sorted[at].ms),
        at_least: sorted[..=at].iter().any(|seen| seen.is_unfinished),
    }
}

/// Jain's fairness index: 1 when all are equal, `1/n` when one has everything (Jain et al., 1984).
/// None of nothing.
#[must_use]
pub fn jain(shares: &[f64]) -> Option<f64> {
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

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use kvwarden_policy::cost::Usage;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const WINDOW: Window = Window {
        from: S,
        until: Duration::from_secs(11),
    };

    fn sample(tenant: usize, at: Duration, ttft: Duration, outcome: Outcome) -> Sample {
        Sample {
            tenant,
            scheduled: at,
            sent: at,
            events: vec![at + ttft, at + ttft + S / 10],
            ended: at + ttft + S / 10,
            usage: Some(Usage {
                prompt_tokens: 10,
                cached_tokens: 0,
                completion_tokens: 20,
            }),
            outcome,
            is_simulated: false,
        }
    }

    fn known(values: impl IntoIterator<Item = u32>) -> Vec<Seen> {
        let seen = |ms| Seen {
            ms: f64::from(ms),
            is_unfinished: false,
        };
        values.into_iter().map(seen).collect()
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let times = Times::of(known((1..=200).rev()).into_iter());
        let values = [times.p50, times.p95, times.p99, times.max].map(|q| q.ms.unwrap());
        assert_eq!(values, [100.0, 190.0, 198.0, 200.0]);
        assert_eq!(Times::of([].into_iter()).p99, Quantile::default());
        assert_eq!(Times::of(known([7]).into_iter()).p50.ms, Some(7.0));
    }

    #[test]
    fn unfinished_request_makes_percentiles_lower_bounds() {
        let mut seen = known(1..=100);
        seen[97].is_unfinished = true;
        let times = Times::of(seen.into_iter());
        assert!(!times.p50.at_least && !times.p95.at_least);
        assert!(times.p99.at_least && times.max.at_least);
    }

    #[test]
    fn request_that_never_got_a_token_counts_with_the_time_it_had() {
        let mut waiting = sample(0, 2 * S, S, Outcome::Unfinished);
        waiting.events.clear();
        waiting.ended = 12 * S;
        let service = Service::of(&[&[waiting]], WINDOW, |_| true);
        assert_eq!(
            service.ttft.p99,
            Quantile {
                ms: Some(10_000.0),
                at_least: true
            }
        );
        assert_eq!((service.unfinished, service.ok), (1, 0));
    }

    #[test]
    fn warm_up_and_other_tenants_do_not_count() {
        let samples = [
            sample(0, S / 2, 9 * S, Outcome::Ok),
            sample(0, 3 * S, S / 5, Outcome::Ok),
            sample(1, 3 * S, 5 * S, Outcome::Ok),
        ];
        let service = Service::of(&[&samples], WINDOW, |tenant| tenant == 0);
        assert_eq!((service.sent, service.ttft.p99.ms), (1, Some(200.0)));
        // Tokens count by when they came, also those of a request from before the window.
        assert!((service.output_tokens_per_s - 4.0).abs() < 1e-9);
    }

    #[test]
    fn refusals_are_counted_by_code() {
        let refused = Outcome::Refused {
            status: 429,
            code: "requests_per_minute".to_owned(),
        };
        let samples = [2, 3].map(|at| sample(0, at * S, S, refused.clone()));
        let service = Service::of(&[&samples], WINDOW, |_| true);
        assert_eq!(service.refused["429 requests_per_minute"], 2);
    }

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
