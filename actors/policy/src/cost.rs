//! What a request costs: estimated before it runs, known once the engine reported its usage.

use serde::{Deserialize, Serialize};

/// What the HTTP side read off a request without understanding its prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestSize {
    /// Bytes of the prompt, messages and tools included, inline images not.
    pub prompt_bytes: u64,
    /// Inline images.
    pub images: u64,
    /// Bytes of the whole request: the memory it takes while it waits.
    pub body_bytes: u64,
    /// Most output tokens of one choice, if the client named a number.
    pub max_tokens: Option<u64>,
    /// How many choices are generated.
    pub choices: u32,
}

/// What a request used, as its engine counted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens that came out of the prefix cache.
    pub cached_tokens: u64,
    /// Generated tokens, over all choices.
    pub completion_tokens: u64,
}

impl Usage {
    /// Prompt and output together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// Output assumed for a request that names no `max_tokens`, until it ends and its usage is known.
/// Low on purpose: a reservation that is too small is settled, one that is too large refuses work.
const ASSUMED_OUTPUT: u64 = 256;

/// Tokens assumed for an image, whose bytes say little: LLaVA makes 576 of any, Qwen2-VL about 1,300
/// of a megapixel.
const IMAGE: u64 = 1024;

/// Turns prompt bytes into tokens by a ratio that follows what the engine reports, so that no
/// tokenizer has to be bundled.
///
/// The ratio is an exponentially weighted mean with weight 1/16, in 1/1024 token per byte. It
/// starts at one token per four bytes, the usual figure for English text.
#[derive(Clone, Debug)]
pub struct PromptEstimator {
    tokens_per_kib: u64,
}

impl Default for PromptEstimator {
    fn default() -> Self {
        Self {
            tokens_per_kib: 256,
        }
    }
}

impl PromptEstimator {
    /// Estimated tokens of a prompt; at least one.
    #[must_use]
    pub fn tokens(&self, size: &RequestSize) -> u64 {
        let text = size.prompt_bytes.saturating_mul(self.tokens_per_kib) / 1024;
        text.saturating_add(size.images.saturating_mul(IMAGE))
            .max(1)
    }

    /// Learns from one finished request. Tiny prompts are skipped, as their chat template outweighs
    /// their text, and so are images, which are no text. One request moves the ratio by a sixteenth,
    /// within [1/64, 4] tokens per byte.
    pub fn learn(&mut self, size: &RequestSize, prompt_tokens: u64) {
        const TOO_SMALL: u64 = 64;
        if size.prompt_bytes < TOO_SMALL || size.images > 0 || prompt_tokens == 0 {
            return;
        }
        let seen = (prompt_tokens.saturating_mul(1024) / size.prompt_bytes).clamp(16, 4096);
        self.tokens_per_kib = (self.tokens_per_kib * 15 + seen).div_ceil(16);
    }

    /// Tokens to reserve for a request before it runs.
    #[must_use]
    pub fn reservation(&self, size: &RequestSize) -> u64 {
        let output = size.max_tokens.unwrap_or(ASSUMED_OUTPUT);
        let choices = u64::from(size.choices.max(1));
        self.tokens(size)
            .saturating_add(output.saturating_mul(choices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(prompt_bytes: u64) -> RequestSize {
        RequestSize {
            prompt_bytes,
            ..RequestSize::default()
        }
    }

    #[test]
    fn estimate_converges_to_what_the_engine_reports() {
        let mut estimator = PromptEstimator::default();
        for _ in 0..200 {
            estimator.learn(&text(1000), 500);
        }
        assert!(
            (490..=510).contains(&estimator.tokens(&text(1000))),
            "{}",
            estimator.tokens(&text(1000))
        );
    }

    #[test]
    fn one_odd_request_hardly_moves_the_estimate() {
        let mut estimator = PromptEstimator::default();
        estimator.learn(&text(100_000), 1);
        assert!(estimator.tokens(&text(1024)) >= 240);
        estimator.learn(&text(64), u64::MAX);
        assert!(estimator.tokens(&text(1024)) <= 500);
    }

    #[test]
    fn absurd_sizes_saturate() {
        let size = RequestSize {
            prompt_bytes: u64::MAX,
            images: u64::MAX,
            body_bytes: u64::MAX,
            max_tokens: Some(u64::MAX),
            choices: 9,
        };
        assert_eq!(PromptEstimator::default().reservation(&size), u64::MAX);
    }

    #[test]
    fn an_image_counts_as_such_and_teaches_nothing_about_text() {
        let mut estimator = PromptEstimator::default();
        let with_image = RequestSize {
            images: 2,
            ..text(400)
        };
        assert_eq!(estimator.tokens(&with_image), 100 + 2 * IMAGE);
        estimator.learn(&with_image, 2700);
        assert_eq!(estimator.tokens(&text(400)), 100);
    }
}
