//! How long answers get: a mean to charge and to reserve by, and a high quantile for the spread. And
//! how much of prompts is computed.

use crate::cost::Usage;

/// Running statistics of output lengths, in tokens.
///
/// The mean is exponentially weighted with 1/8: it follows a change of habit within a dozen answers,
/// and one odd answer moves it by an eighth. It is kept in sixteenths and rounded to the nearest, so
/// it comes to rest within a quarter of a token of a constant input. The 90th percentile climbs by 9
/// parts when exceeded and sinks by 1 part otherwise, which balances where one in ten exceeds it
/// (stochastic approximation, Robbins and Monro 1951).
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    mean_16ths: u64,
    p90_16ths: u64,
}

/// The part of a tenant's prompts that the prefix cache does not have, in 1/1024: an exponentially
/// weighted mean with 1/8, as of lengths. All of it until one has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uncached(u64);

/// Longest answer that is learned from; far beyond any model's context, and 16 of it fit in a `u64`.
const LONGEST: u64 = 1 << 32;

// === impl Lengths ===

impl Lengths {
    /// Before anything was seen.
    pub(super) fn assume(tokens: u64) -> Self {
        let start = tokens.min(LONGEST) * 16;
        Self {
            mean_16ths: start,
            p90_16ths: start,
        }
    }

    pub(super) fn learn(&mut self, tokens: u64) {
        let seen = tokens.min(LONGEST) * 16;
        self.mean_16ths = (self.mean_16ths * 7 + seen + 4) / 8;
        let part = (self.p90_16ths / 256).max(1);
        if seen > self.p90_16ths {
            self.p90_16ths += 9 * part;
        } else {
            self.p90_16ths = self.p90_16ths.saturating_sub(part);
        }
    }

    /// The mean, rounded up: at least one token unless all answers were empty.
    pub(super) fn mean(&self) -> u64 {
        self.mean_16ths.div_ceil(16)
    }

    /// How far the 90th percentile is above the mean; 0 when it is below.
    pub(super) fn spread(&self) -> u64 {
        self.p90_16ths.saturating_sub(self.mean_16ths).div_ceil(16)
    }
}

// === impl Uncached ===

impl Default for Uncached {
    fn default() -> Self {
        Self(1024)
    }
}

impl Uncached {
    pub(super) fn learn(&mut self, usage: &Usage) {
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        let part = |tokens: u64| tokens.saturating_mul(1024).checked_div(usage.prompt_tokens);
        if let Some(seen) = part(usage.prompt_tokens - cached) {
            self.0 = (self.0 * 7 + seen.min(1024)).div_ceil(8);
        }
    }

    /// Rounded up: something is computed of every prompt.
    pub(super) fn of(self, prompt_tokens: u64) -> u64 {
        let tokens = u128::from(prompt_tokens) * u128::from(self.0);
        u64::try_from(tokens.div_ceil(1024)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_habit_is_learned_within_a_dozen_answers() {
        let mut lengths = Lengths::assume(256);
        for _ in 0..24 {
            lengths.learn(64);
        }
        assert!((64..=74).contains(&lengths.mean()), "{}", lengths.mean());
    }

    #[test]
    fn a_tenth_of_the_answers_exceeds_the_high_quantile() {
        let mut lengths = Lengths::assume(256);
        for round in 0..40_000_u64 {
            lengths.learn(round * 7919 % 1000);
        }
        let p90 = lengths.p90_16ths / 16;
        assert!((840..=960).contains(&p90), "{p90}");
    }
}
