//! How far a request probably is whose answer comes whole, so that nothing is seen of it until then.
//!
//! Estimated by the model's [`Pace`]: when its prompt has been computed, how many tokens it has by
//! now, and how many it had if it is cut. Estimates steer and never settle: what is charged for an
//! answer that comes is its usage. `max_tokens` only bounds them from above, as it bounds the answer; a
//! request generates for as long as its engine holds it.
//!
//! Prompts go through the engine as through a server with one line, by as many full steps as they
//! fill and a little slower, so that what was let in too early drains. That bounds what comes in however
//! wrong the rest is. Where the engine says that requests wait inside it, no prompt is taken for
//! computed until they don't.
//!
//! Tokens are counted by one clock for all, which ticks once in a step: all sequences of an engine
//! decode together, and a pace that changes changes what comes and not what was.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    fair::TOLERATED_WAITING,
    pace::{Pace, real},
    settings::{Capacity, FairSettings, Mutant},
    types::{Arrival, Key, Outcome},
};

/// How much more time than a full step of them takes is given to prompts.
const SLOWER: f64 = 9.0 / 8.0;

/// For how long an engine is believed that requests wait inside it. It is asked once a second.
const BELIEVED: Duration = Duration::from_secs(3);

/// One request, by its slot.
#[derive(Clone, Copy, Debug)]
struct Run {
    prompt_tokens: u64,
    sequences: u64,
    /// Tokens it can generate, over all choices.
    most: u64,
    started: Instant,
    /// When the line in front of the engine has moved on to the next one's prompt.
    due: Instant,
    /// When its first token comes: not before its own chunks are through, one a step.
    first_token: Instant,
    /// Where the clock stands then.
    begun: f64,
    is_hidden: bool,
}

#[derive(Debug)]
pub(super) struct Progress {
    settings: FairSettings,
    capacity: Capacity,
    pace: Pace,
    /// Meaningful from a request's arrival to its end.
    runs: Vec<Run>,
    /// Those hidden whose prompts are being computed.
    due: BTreeSet<(Instant, Key)>,
    /// When the prompts dispatched so far have been computed.
    computed: Option<Instant>,
    /// Requests wait inside the engine, as it said lately.
    waits_until: Option<Instant>,
    /// Steps so far, and when they were counted.
    clock: (f64, Option<Instant>),
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(settings: FairSettings) -> Self {
        Self {
            settings,
            capacity: settings.capacity,
            pace: Pace::default(),
            runs: Vec::new(),
            due: BTreeSet::new(),
            computed: None,
            waits_until: None,
            clock: (0.0, None),
        }
    }

    /// Engines came or went.
    pub(super) fn allow(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    pub(super) fn arrived(&mut self, slot: u32, arrival: &Arrival, now: Instant) {
        let sequences = arrival.sequences();
        let most = arrival.max_tokens.unwrap_or(u64::MAX);
        let run = Run {
            prompt_tokens: arrival.prompt_tokens,
            sequences,
            most: most.saturating_mul(sequences),
            started: now,
            due: now,
            first_token: now,
            begun: 0.0,
            is_hidden: false,
        };
        let at = slot as usize;
        if self.runs.len() <= at {
            self.runs.resize(at + 1, run);
        }
        self.runs[at] = run;
    }

    /// It was dispatched, and so much of its prompt has to be computed; all, unless that is known.
    pub(super) fn started(&mut self, slot: u32, prefill: Option<u64>, now: Instant) {
        let prefill = prefill.unwrap_or(self.run(slot).prompt_tokens);
        let step = self.pace.step();
        let fills = real(prefill) / real(self.capacity.step_tokens.max(1));
        let line = self.computed.map_or(now, |computed| computed.max(now));
        let due = line + nanos(fills * self.pace.full_step() * SLOWER);
        self.computed = Some(due);
        // Half a step for the running one to end.
        let own = (real(self.chunks(prefill)) + 0.5) * step;
        let first_token = due.max(now + nanos(own));
        let ahead = first_token.saturating_duration_since(now);
        let begun = self.steps(now) + ahead.as_secs_f64() * 1e9 / step;
        let is_unknown = self.settings.lacks(Mutant::HiddenPrefill);
        let run = self.run_mut(slot);
        *run = Run {
            started: now,
            due: if is_unknown { now } else { due },
            first_token,
            begun,
            ..*run
        };
    }

    /// Nothing will be seen of it before its end.
    pub(super) fn hide(&mut self, key: Key) {
        let run = self.run_mut(key.index);
        run.is_hidden = true;
        let due = run.due;
        self.due.insert((due, key));
    }

    /// Something is seen of it after all, or it is over.
    pub(super) fn show(&mut self, key: Key) {
        let run = self.run_mut(key.index);
        if std::mem::take(&mut run.is_hidden) {
            let due = run.due;
            self.due.remove(&(due, key));
        }
    }

    /// One whose prompt has been computed by now.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Key> {
        let (due, key) = *self.due.first()?;
        if now < due.max(self.waits_until.unwrap_or(due)) {
            return None;
        }
        self.due.remove(&(due, key));
        Some(key)
    }

    /// When the next one's prompt has been computed.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (due, _) = *self.due.first()?;
        Some(due.max(self.waits_until.unwrap_or(due)))
    }

    /// Tokens it has generated, over all choices; `None` if that is seen.
    pub(super) fn generated(&self, slot: u32, now: Instant) -> Option<u64> {
        let run = self.run(slot);
        if !run.is_hidden {
            return None;
        }
        let steps = self.steps(now) - run.begun;
        if steps < 0.0 || now < run.first_token || self.settings.lacks(Mutant::HiddenTokens) {
            return Some(0);
        }
        // One comes with the end of the prompt.
        let each = whole(steps).saturating_add(1);
        Some(each.saturating_mul(run.sequences).min(run.most))
    }

    /// It is over. Tells what it came to, the estimate in place of what was not seen.
    pub(super) fn ended(&mut self, key: Key, outcome: &Outcome, now: Instant) -> Outcome {
        let estimated = self.generated(key.index, now);
        self.show(key);
        match *outcome {
            Outcome::Completed(usage) if estimated.is_some() => {
                let run = *self.run(key.index);
                let cached = usage.cached_tokens.min(usage.prompt_tokens);
                let chunks = self.chunks(usage.prompt_tokens - cached);
                let each = usage.completion_tokens.div_ceil(run.sequences);
                let took = now.saturating_duration_since(run.started);
                self.advance(now);
                self.pace.learn(took, chunks + each.saturating_sub(1));
                *outcome
            }
            Outcome::Cancelled { generated } => Outcome::Cancelled {
                generated: generated.max(estimated.unwrap_or(0)),
            },
            Outcome::Completed(_) | Outcome::FailedBeforeFirstToken => *outcome,
        }
    }

    /// To be called every 100 ms, with the step that streams have shown since a moment ago.
    pub(super) fn look(&mut self, seen_step: Option<Duration>, now: Instant) {
        self.advance(now);
        self.pace.look(seen_step);
    }

    /// The engine says that so many requests wait inside it.
    pub(super) fn engine_waiting(&mut self, waiting: Option<u64>, now: Instant) {
        let is_overrun = waiting.is_some_and(|waiting| waiting > TOLERATED_WAITING);
        self.waits_until = is_overrun.then(|| now + BELIEVED);
        if is_overrun {
            self.pace.is_overrun();
        }
    }

    fn chunks(&self, prompt_tokens: u64) -> u64 {
        let chunk = self.capacity.chunk_tokens.max(1);
        prompt_tokens.div_ceil(chunk).max(1)
    }

    fn steps(&self, now: Instant) -> f64 {
        let (steps, counted) = self.clock;
        let since = counted.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        steps + since.as_secs_f64() * 1e9 / self.pace.step()
    }

    /// To be called before the pace changes.
    fn advance(&mut self, now: Instant) {
        self.clock = (self.steps(now), Some(now));
    }

    fn run(&self, slot: u32) -> &Run {
        &self.runs[slot as usize]
    }

    fn run_mut(&mut self, slot: u32) -> &mut Run {
        &mut self.runs[slot as usize]
    }
}

/// No estimate is longer than an hour, and every clock can hold that.
fn nanos(nanos: f64) -> Duration {
    const LONGEST: f64 = 3600e9;
    Duration::from_nanos(whole(nanos.clamp(0.0, LONGEST)))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates"
)]
fn whole(count: f64) -> u64 {
    count as u64
}
