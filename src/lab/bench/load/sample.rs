//! What became of one request.

use std::time::Duration;

use kvwarden_policy::cost::Usage;
use serde::Serialize;
use serde_json::{Value, json};

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// The whole answer came.
    Ok,
    /// The server would not do it.
    Refused {
        /// HTTP status.
        status: u16,
        /// `error.code` of the body, or nothing.
        code: String,
    },
    /// No answer came, or none of the kind that was asked for.
    Failed {
        /// What went wrong.
        why: String,
    },
    /// The answer began and broke off.
    Cut {
        /// What the stream said, if it said anything.
        why: String,
    },
    /// The run ended first. Its latencies are known only to be longer than the time it had.
    Unfinished,
}

/// One request, all times from the start of the run.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Index of the tenant's load.
    pub tenant: usize,
    /// When its plan said to send it: latencies count from here.
    pub scheduled: Duration,
    /// How long its prompt was planned.
    pub prompt_tokens: u32,
    /// When it was sent.
    pub sent: Duration,
    /// When each event that carried text came. One event may hold several tokens.
    pub events: Vec<Duration>,
    /// When it was over, or given up.
    pub ended: Duration,
    /// Tokens as the engine counted them.
    pub usage: Option<Usage>,
    /// How it ended.
    pub outcome: Outcome,
    /// The server said that its engine is simulated.
    pub is_simulated: bool,
}

// === impl Sample ===

impl Sample {
    /// Planned moment to first non-empty token.
    #[must_use]
    pub fn ttft(&self) -> Option<Duration> {
        self.events.first().map(|at| *at - self.scheduled)
    }

    /// Planned moment to the end of the whole answer.
    #[must_use]
    pub fn end_to_end(&self) -> Option<Duration> {
        (self.outcome == Outcome::Ok).then(|| self.ended - self.scheduled)
    }

    /// Mean time between tokens of a whole answer.
    #[must_use]
    pub fn inter_token(&self) -> Option<Duration> {
        let between = self.usage?.completion_tokens.checked_sub(1)?;
        let between = u32::try_from(between).ok().filter(|count| *count > 0)?;
        let took = *self.events.last()? - *self.events.first()?;
        Some(took / between)
    }

    /// Tokens of its prompt: the engine's own count, or as planned while that is unknown.
    #[must_use]
    pub fn prompt(&self) -> f64 {
        let planned = f64::from(self.prompt_tokens);
        self.usage
            .map_or(planned, |usage| usage.prompt_tokens as f64)
    }

    /// Tokens an event stands for.
    #[must_use]
    pub fn tokens_per_event(&self) -> f64 {
        tokens_per_event(self.usage, self.events.len())
    }

    /// One line of the raw data, times in milliseconds.
    #[must_use]
    pub fn row(&self, tenant: &str) -> Value {
        let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let gap = self.events.windows(2).map(|pair| pair[1] - pair[0]).max();
        let mut row = json!({
            "tenant": tenant,
            "scheduled_ms": millis(self.scheduled),
            "send_lag_ms": millis(self.sent - self.scheduled),
            "ttft_ms": self.ttft().map(millis),
            "ended_ms": millis(self.ended - self.scheduled),
            "mean_itl_ms": self.inter_token().map(millis),
            "max_gap_ms": gap.map(millis),
            "prompt_tokens": self.usage.map(|usage| usage.prompt_tokens),
            "output_tokens": self.usage.map(|usage| usage.completion_tokens),
            "events": self.events.len(),
        });
        if let (Some(row), Ok(Value::Object(outcome))) =
            (row.as_object_mut(), serde_json::to_value(&self.outcome))
        {
            row.extend(outcome);
        }
        row
    }
}

/// The engine's own count spread evenly, or one while that is unknown.
pub(super) fn tokens_per_event(usage: Option<Usage>, events: usize) -> f64 {
    match usage {
        Some(usage) if events > 0 => usage.completion_tokens as f64 / events as f64,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn late() -> Sample {
        Sample {
            tenant: 0,
            scheduled: 100 * MS,
            prompt_tokens: 9,
            sent: 150 * MS,
            events: vec![170 * MS, 190 * MS],
            ended: 200 * MS,
            usage: Some(Usage {
                prompt_tokens: 9,
                cached_tokens: 0,
                completion_tokens: 5,
            }),
            outcome: Outcome::Ok,
            is_simulated: false,
        }
    }

    #[test]
    fn late_send_counts_in_every_latency() {
        assert_eq!(late().ttft(), Some(70 * MS));
        assert_eq!(late().end_to_end(), Some(100 * MS));
    }

    #[test]
    fn chunks_are_no_tokens() {
        // Five tokens in two chunks, 20 ms apart.
        assert_eq!(late().inter_token(), Some(5 * MS));
        assert!((late().tokens_per_event() - 2.5).abs() < 1e-9);
    }

    #[test]
    fn row_names_the_outcome() {
        let outcome = Outcome::Refused {
            status: 429,
            code: "requests_per_minute".to_owned(),
        };
        let row = Sample { outcome, ..late() }.row("noisy");
        assert_eq!(row["outcome"], "refused");
        assert_eq!(row["status"], 429);
        assert_eq!(row["ttft_ms"], 70.0);
    }
}
