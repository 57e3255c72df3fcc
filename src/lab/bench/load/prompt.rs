//! Prompts of a wanted length in tokens, without a tokenizer.
//!
//! A prompt is made of short common words, which are one token each in most vocabularies. How many
//! tokens the server counts for two probes of known length gives the ratio and the constant (BOS,
//! template), and later prompts are made by them.

use super::SplitMix;

/// Short and common: a token each, with the space before, for BPE vocabularies of English and for the
/// simulated engine.
const WORDS: [&str; 32] = [
    "the", "sea", "sun", "old", "dog", "ran", "far", "and", "cat", "sat", "on", "a", "big", "red",
    "hat", "by", "an", "oak", "one", "day", "we", "saw", "her", "new", "car", "at", "our", "inn",
    "for", "ten", "men", "who",
];

/// Makes prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prompts {
    tokens_per_word: f64,
    constant: f64,
}

impl Default for Prompts {
    fn default() -> Self {
        Self {
            tokens_per_word: 1.0,
            constant: 0.0,
        }
    }
}

// === impl Prompts ===

impl Prompts {
    /// From two probes: words sent, and tokens counted for them. Nonsense leaves the default.
    #[must_use]
    pub fn fitted(short: (u32, u64), long: (u32, u64)) -> Self {
        let tokens_per_word =
            (long.1 as f64 - short.1 as f64) / f64::from(long.0.saturating_sub(short.0));
        let constant = short.1 as f64 - tokens_per_word * f64::from(short.0);
        if !(0.1..=20.0).contains(&tokens_per_word) || constant < -1.0 {
            return Self::default();
        }
        Self {
            tokens_per_word,
            constant,
        }
    }

    /// A prompt of about this many tokens. No two begin alike, so no prefix cache helps.
    #[must_use]
    pub fn make(&self, tokens: u32, rng: &mut SplitMix) -> String {
        let words = (f64::from(tokens) - self.constant) / self.tokens_per_word;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates; a prompt has at least one word"
        )]
        let count = (words.round() as usize).max(1);
        let word = |_| WORDS[(rng.next_u64() >> 59) as usize];
        (0..count).map(word).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_as_long_as_the_server_will_count() {
        // 1.5 tokens a word and a BOS.
        let prompts = Prompts::fitted((10, 16), (110, 166));
        let text = prompts.make(61, &mut SplitMix::new(1));
        assert_eq!(text.split(' ').count(), 40);
    }

    #[test]
    fn nonsense_of_a_server_is_not_believed() {
        assert_eq!(Prompts::fitted((10, 0), (110, 0)), Prompts::default());
    }

    #[test]
    fn prompts_do_not_begin_alike() {
        let mut rng = SplitMix::new(1);
        let [one, two] = [(); 2].map(|()| Prompts::default().make(32, &mut rng));
        assert_ne!(one[..32], two[..32]);
    }
}
