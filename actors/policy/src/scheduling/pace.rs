//! How long a step of an engine takes, as answers tell that come whole.
//!
//! Such an answer says how long it took and how many tokens it has, and nothing on its way. An engine
//! computes a chunk of a prompt in a step and generates a token of each sequence in a step, so an
//! answer takes as many steps as its prompt has chunks and its output has tokens. What a step takes is
//! the time of the latest answers divided by their steps. Who makes up long limits or hangs up teaches
//! nothing: only usage counts. Streams show it sooner; as long as any run, theirs is taken.

use std::time::Duration;

/// Part of what was seen that is forgotten at a look that sees more: half a second of a steady flow,
/// and a handful of answers when they are rare.
const FORGOTTEN: f64 = 1.0 / 5.0;

/// Part of the way from a full step back to the usual one that a look takes: a minute in all, longer
/// than most answers.
const RELAXED: f64 = 1.0 / 600.0;

/// A step until anything was seen, in nanoseconds, and one full of prompts.
const ASSUMED: f64 = 30e6;
const ASSUMED_FULL: f64 = 100e6;

/// By how much a full step is found longer when requests wait inside the engine, and up to how many
/// usual ones.
const STRETCH: f64 = 9.0 / 8.0;
const LONGEST: f64 = 8.0;

/// Floating point, since all of it is estimates, and none is added up for longer than it is remembered.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Nanoseconds of answers and their steps.
    time: f64,
    steps: f64,
    has_news: bool,
    /// What streams show of a step.
    seen: Option<f64>,
    /// The longest step lately: one full of prompts, if there were enough of them.
    full: Option<f64>,
}

// === impl Pace ===

impl Pace {
    /// An answer of so many steps took so long.
    pub(super) fn learn(&mut self, took: Duration, steps: u64) {
        self.time += took.as_secs_f64() * 1e9;
        self.steps += real(steps.max(1));
        self.has_news = true;
    }

    /// To be called every 100 ms, with what streams have shown since a moment ago, if any ran. Nothing
    /// is forgotten while nothing is learned.
    pub(super) fn look(&mut self, seen: Option<Duration>) {
        self.seen = seen.map(|step| step.as_secs_f64() * 1e9);
        if let Some(step) = self.known() {
            let full = self.full.unwrap_or(step);
            self.full = Some(step.max(full + (step - full) * RELAXED));
        }
        if std::mem::take(&mut self.has_news) {
            self.time *= 1.0 - FORGOTTEN;
            self.steps *= 1.0 - FORGOTTEN;
        }
    }

    /// Requests wait inside the engine: it computes less in its time than was thought.
    pub(super) fn is_overrun(&mut self) {
        let most = self.step() * LONGEST;
        self.full = self.full.map(|full| (full * STRETCH).min(most));
    }

    /// A step now, in nanoseconds.
    pub(super) fn step(&self) -> f64 {
        self.known().unwrap_or(ASSUMED)
    }

    /// A step that is full of prompts.
    pub(super) fn full_step(&self) -> f64 {
        self.full.unwrap_or(ASSUMED_FULL)
    }

    fn known(&self) -> Option<f64> {
        let told = (self.steps > 0.0).then(|| self.time / self.steps);
        self.seen.or(told).map(|step| step.max(1.0))
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate, and no model generates 2^53 tokens"
)]
pub(super) fn real(count: u64) -> f64 {
    count as f64
}
