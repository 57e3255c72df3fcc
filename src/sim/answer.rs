//! What an answer says and counts, whichever way it is written.

use kvwarden_policy::simulation::engine::FinishReason;
use serde_json::{Value, json};

use super::{
    handle::{End, Progress},
    text::Story,
};

/// The end by the model's own choice.
const END_OF_TEXT: End = End::Finished(FinishReason::Stop);

/// Which of the two dialects an answer is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Chat,
    Completion,
}

/// Everything about an answer that is known before its first token.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) dialect: Dialect,
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created: u64,
    pub(super) stories: Vec<Story>,
    /// Tokens of all prompts, each counted once however many choices it has.
    pub(super) prompt_tokens: u32,
    /// Choices per prompt.
    pub(super) n: u32,
}

// === impl Answer ===

impl Answer {
    /// What a choice says from its `from`th token on.
    pub(super) fn text(&self, progress: &Progress, choice: usize, from: u32) -> String {
        let state = progress.choices[choice];
        // The last token of a natural end is the end-of-text token, which has no text.
        let silent = u32::from(state.end == Some(END_OF_TEXT));
        (from..state.generated - silent.min(state.generated))
            .map(|index| match progress.garbled {
                // What uninitialised weights tend to say.
                true => "!",
                false => self.stories[choice].token(index),
            })
            .collect()
    }

    pub(super) fn usage(&self, progress: &Progress) -> Value {
        let completion: u32 = progress.choices.iter().map(|c| c.generated).sum();
        let firsts = progress.choices.iter().step_by(self.n as usize);
        let cached: u32 = firsts.map(|c| c.cached_tokens).sum();
        json!({
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        })
    }
}
