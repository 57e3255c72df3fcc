//! Figures from samples. Pure, and knows no policy: every arm goes through the same functions.

#[cfg(test)]
mod fixture;
mod shares;
mod times;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

pub use self::{
    shares::{jain_over, shares},
    times::{Quantile, Seen, Times, nearest_rank},
};
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
        for sample in in_window(runs, window, &wanted) {
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
        let counted = || in_window(runs, window, &wanted);
        service.ttft = Times::of(first_tokens(counted()));
        service.end_to_end = Times::of(counted().filter_map(|sample| {
            let known = sample.end_to_end().map(Seen::known);
            known.or_else(|| so_far(sample))
        }));
        service.inter_token =
            Times::of(counted().filter_map(|sample| sample.inter_token().map(Seen::known)));
        let seconds = window.seconds() * runs.len().max(1) as f64;
        // Also those of requests from before the window.
        let all = runs.iter().copied().flatten();
        let (mut prompt, mut output) = (0.0, 0.0);
        for sample in all.filter(|sample| wanted(sample.tenant)) {
            let served = served(sample, window);
            prompt += served.0;
            output += served.1;
        }
        service.prompt_tokens_per_s = prompt / seconds;
        service.output_tokens_per_s = output / seconds;
        service
    }
}

/// Times to first token, those of requests that had none yet included. Refusals and failures have
/// none; they are counted as what they are.
pub fn first_tokens<'a>(samples: impl Iterator<Item = &'a Sample>) -> impl Iterator<Item = Seen> {
    samples.filter_map(|sample| {
        let known = sample.ttft().map(Seen::known);
        known.or_else(|| so_far(sample))
    })
}

/// What is known of a request that the run ended before: it took longer than this.
fn so_far(sample: &Sample) -> Option<Seen> {
    let had = Seen::known(sample.ended - sample.scheduled);
    (sample.outcome == Outcome::Unfinished).then_some(Seen {
        is_unfinished: true,
        ..had
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
    let prompt = if is_prompt_inside {
        sample.prompt()
    } else {
        0.0
    };
    (prompt, inside as f64 * sample.tokens_per_event())
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{
        fixture::{S, WINDOW, sample},
        *,
    };

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
    fn prompt_of_an_answer_without_an_end_was_served() {
        let cut_off = Sample {
            usage: None,
            ..sample(0, 2 * S, S, Outcome::Unfinished)
        };
        let service = Service::of(&[&[cut_off]], WINDOW, |_| true);
        // Ten tokens in ten seconds, and two events of a token each.
        assert!((service.prompt_tokens_per_s - 1.0).abs() < 1e-9);
        assert!((service.output_tokens_per_s - 0.2).abs() < 1e-9);
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
}
