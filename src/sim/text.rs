//! Made-up English, one token a word.
//!
//! Sentences follow one pattern of seven words and a full stop. All words have at most three
//! letters, so that each is one token for [`super::tokenizer`] too: `completion_tokens` and
//! tokenizing the answer agree.

use std::ops::RangeInclusive;

const OPENERS: [&str; 8] = [" The", " One", " Our", " Her", " His", " My", " Any", " No"];
const SUBJECTS: [&str; 12] = [
    " fox", " dog", " cat", " bee", " owl", " ant", " cow", " hen", " boy", " man", " cub", " elk",
];
const VERBS: [&str; 8] = [
    " ran", " sat", " lay", " hid", " ate", " dug", " fed", " sat",
];
const PLACES: [&str; 4] = [" by", " in", " at", " on"];
const ARTICLES: [&str; 4] = [" the", " a", " our", " my"];
const QUALITIES: [&str; 8] = [
    " old", " big", " red", " wet", " dry", " new", " odd", " raw",
];
const OBJECTS: [&str; 10] = [
    " sea", " sky", " oak", " bay", " ice", " den", " hut", " bed", " inn", " bus",
];
const SENTENCE: [&[&str]; 8] = [
    &OPENERS,
    &SUBJECTS,
    &VERBS,
    &PLACES,
    &ARTICLES,
    &QUALITIES,
    &OBJECTS,
    &["."],
];

/// After how many tokens a model stops by itself.
const NATURAL_LENGTH: RangeInclusive<u32> = 32..=256;

/// Names one answer: the same story always reads the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Story(u64);

// === impl Story ===

impl Story {
    /// The answer to a prompt. `take` tells apart answers that may differ: samples at a temperature
    /// above 0.
    pub(super) fn new(seed: u64, prompt: &[u32], take: u64) -> Self {
        let mut state = mix(seed) ^ mix(take);
        for id in prompt {
            state = mix(state ^ u64::from(*id));
        }
        Self(state)
    }

    /// The text of its `index`th token.
    pub(super) fn token(self, index: u32) -> &'static str {
        let words = SENTENCE[index as usize % SENTENCE.len()];
        let word = pick(words, mix(self.0.wrapping_add(u64::from(index))));
        if index == 0 { word.trim_start() } else { word }
    }

    /// After how many tokens it ends by itself, the last of which is the end-of-text token.
    pub(super) fn length(self) -> u32 {
        let span = NATURAL_LENGTH.end() - NATURAL_LENGTH.start() + 1;
        let offset = mix(!self.0) % u64::from(span);
        NATURAL_LENGTH.start() + u32::try_from(offset).unwrap_or(0)
    }
}

fn pick(words: &[&'static str], random: u64) -> &'static str {
    let index = random % words.len() as u64;
    words[usize::try_from(index).unwrap_or(0)]
}

/// SplitMix64's finalizer (Steele et al., OOPSLA'14): every bit depends on every bit.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tokenizer;

    fn read(story: Story) -> String {
        (0..48).map(|index| story.token(index)).collect()
    }

    #[test]
    fn the_same_story_reads_the_same() {
        let story = Story::new(1, &[2, 3], 0);
        assert_eq!(read(story), read(Story::new(1, &[2, 3], 0)));
        assert_ne!(read(story), read(Story::new(2, &[2, 3], 0)));
        assert_ne!(read(story), read(Story::new(1, &[2, 4], 0)));
        assert_ne!(read(story), read(Story::new(1, &[2, 3], 1)));
    }

    #[test]
    fn a_word_is_a_token() {
        for seed in 0..50 {
            let text = read(Story::new(seed, &[], 0));
            assert_eq!(tokenizer::encode(&text).len(), 48, "{text}");
        }
    }

    #[test]
    fn lengths_stay_in_their_range() {
        for seed in 0..500 {
            assert!(NATURAL_LENGTH.contains(&Story::new(seed, &[], 0).length()));
        }
    }
}
