//! What an operator may set, and what the engine's size decides.

use std::time::Duration;

use super::types::{Bounds, Discipline};
use crate::cost::Usage;

/// Micro-tokens: what service is counted in. An `i128` of them never overflows (2^127 of them last
/// 10^24 years at 10^6 tokens a second), so no charge saturates and none is lost.
pub(super) type Grains = i128;

/// Grains per token.
pub(super) const TOKEN: Grains = 1_000_000;

/// From how many prompt tokens a request counts as long, unless the configuration says otherwise.
pub const LONG_PROMPT_TOKENS: u64 = 2048;

/// Everything a scheduler is told at its birth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who goes first.
    pub discipline: Discipline,
    /// How much may wait.
    pub bounds: Bounds,
    /// Requests that run at once under `Fifo` and `Drr`, which know no other limit.
    pub max_in_flight: usize,
    /// What `Fair` needs.
    pub fair: FairSettings,
}

/// What an engine can do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences for everyone (N).
    pub sequences: u64,
    /// Sequences beyond those, for tenants far below their share (R). The engine must be started
    /// with the sum.
    pub headroom: u64,
    /// Tokens of one step (B).
    pub step_tokens: u64,
    /// Tokens of one prompt that a step computes (C), `long_prefill_token_threshold` in vLLM; B where
    /// the engine has no such bound. Below B, a step full of long prompts has room for a short one.
    pub chunk_tokens: u64,
    /// Tokens its KV cache holds, if known; nothing is held back for it otherwise.
    pub kv_tokens: Option<u64>,
}

/// Settings of the fair discipline. All amounts in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairSettings {
    /// What the engine can do.
    pub capacity: Capacity,
    /// What tokens cost.
    pub price: Price,
    /// How far above the lowest sibling a tenant may be and still use headroom. It adds as much to
    /// the service gap, so it is small: one step.
    pub slack: u64,
    /// How far below its siblings a tenant starts that comes back; at most one request.
    pub credit: u64,
    /// Output assumed until a request has ended.
    pub assumed_output: u64,
    /// Percent of the expected output that is charged at dispatch; the rest is charged as it comes.
    ///
    /// VTC charges nothing ahead, and then whoever has short prompts takes most places that become
    /// free at once. Charging all of it ahead is worse: the charge comes as long before the service
    /// as an answer takes, and with answers of half a minute shares swing for minutes (Jain's index
    /// over 10 s falls to 0.90 in simulation; with a tenth it stays above 0.99).
    pub upfront_percent: u8,
    /// From how many prompt tokens a request counts as long.
    pub long_prompt_tokens: u64,
    /// How long a long request lets shorter ones of its own session pass.
    pub long_patience: Duration,
    /// How long a class waits behind higher ones before it gets every eighth turn.
    pub class_patience: Duration,
    /// What to leave out, so that tests can prove that they would notice.
    #[cfg(test)]
    pub(super) mutant: Option<Mutant>,
}

/// What one token costs, in micro-tokens of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// A prompt token that is computed.
    pub prompt: u32,
    /// A prompt token found in the prefix cache.
    pub cached: u32,
    /// A generated token.
    pub output: u32,
}

/// A part that tests can switch off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    TrueUp,
    Lift,
    HeadroomGuard,
    BlockedHead,
    /// Prompts whose end can't be seen count as computed at dispatch.
    HiddenPrefill,
    /// Tokens that can't be seen are charged when the answer comes.
    HiddenTokens,
}

// === impl Capacity ===

impl Capacity {
    /// N sequences for everyone and 6% beyond, rounded up so that even a small engine has one.
    #[must_use]
    pub fn of_engine(sequences: u64, step_tokens: u64, kv_tokens: Option<u64>) -> Self {
        Self {
            sequences: sequences.max(1),
            headroom: (sequences * 6).div_ceil(100),
            step_tokens: step_tokens.max(1),
            chunk_tokens: step_tokens.div_ceil(4).max(1),
            kv_tokens,
        }
    }

    /// That of so many engines of this size behind one queue; that of one if there is none.
    #[must_use]
    pub fn times(self, engines: usize) -> Self {
        let engines = engines.max(1) as u64;
        let times = |amount: u64| amount.saturating_mul(engines);
        Self {
            sequences: times(self.sequences),
            headroom: times(self.headroom),
            step_tokens: times(self.step_tokens),
            // One prompt is computed by one engine.
            chunk_tokens: self.chunk_tokens,
            kv_tokens: self.kv_tokens.map(times),
        }
    }

    /// Sequences the engine must be able to run.
    #[must_use]
    pub fn engine_sequences(&self) -> u64 {
        self.sequences + self.headroom
    }
}

// === impl FairSettings ===

impl FairSettings {
    /// The defaults for an engine of that size.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            price: Price::default(),
            slack: capacity.step_tokens,
            credit: 0,
            assumed_output: 256,
            upfront_percent: 10,
            long_prompt_tokens: LONG_PROMPT_TOKENS,
            long_patience: Duration::from_secs(2),
            class_patience: Duration::from_secs(5),
            #[cfg(test)]
            mutant: None,
        }
    }

    #[cfg(test)]
    pub(super) fn lacks(&self, part: Mutant) -> bool {
        self.mutant == Some(part)
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        reason = "the same call as in tests, where it is used"
    )]
    pub(super) const fn lacks(&self, _: Mutant) -> bool {
        false
    }
}

// === impl Price ===

impl Default for Price {
    /// An output token counts twice, as in VTC (Sheng et al., OSDI'24, section 4.1): a decode step
    /// reads all weights for one token per sequence. A cached token costs its KV space alone.
    fn default() -> Self {
        Self {
            prompt: 1_000_000,
            cached: 100_000,
            output: 2_000_000,
        }
    }
}

impl Price {
    pub(super) fn prompt(&self, tokens: u64) -> Grains {
        Grains::from(tokens) * Grains::from(self.prompt)
    }

    pub(super) fn output(&self, tokens: u64) -> Grains {
        Grains::from(tokens) * Grains::from(self.output)
    }

    pub(super) fn usage(&self, usage: &Usage) -> Grains {
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        self.prompt(usage.prompt_tokens - cached)
            + Grains::from(cached) * Grains::from(self.cached)
            + self.output(usage.completion_tokens)
    }
}
