//! What a stream's usage adds up to, however an engine tells it.
//!
//! Most tell one sum at the end. llama.cpp tells that of each choice with its last chunk, or behind it; and
//! who asked for it hears it with every chunk, as far as that choice got, and the sum at the end. Which of
//! these it is shows in what comes, so a server of which nothing is known is counted right as well.

use kvwarden_policy::cost::Usage;

use super::super::format::event::Chunk;

/// The usage of one answer.
#[derive(Debug)]
pub(super) struct Tally {
    asked: Asked,
    /// The last of each choice, where it comes with its choice.
    by_choice: Vec<(u32, Usage)>,
    /// How often it came without a choice, what that adds up to, and the last of it.
    alone: u32,
    sum: Usage,
    last: Usage,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Asked {
    /// Choices, over all prompts.
    pub choices: u32,
    /// Choices of each prompt. They share its tokens.
    pub of_each_prompt: u32,
}

// === impl Tally ===

impl Tally {
    pub(super) fn new(asked: Asked) -> Self {
        Self {
            asked,
            by_choice: Vec::new(),
            alone: 0,
            sum: Usage::default(),
            last: Usage::default(),
        }
    }

    /// Adds what a chunk says.
    pub(super) fn add(&mut self, usage: Usage, chunk: &Chunk) {
        let Some(choice) = chunk.begun.only() else {
            self.alone += 1;
            self.sum = plus(self.sum, usage);
            self.last = usage;
            return;
        };
        match self
            .by_choice
            .iter_mut()
            .find(|(known, _)| *known == choice)
        {
            Some((_, told)) => *told = usage,
            None => self.by_choice.push((choice, usage)),
        }
    }

    /// Every choice has told, if each tells for itself.
    pub(super) fn is_whole(&self) -> bool {
        let told = u32::try_from(self.by_choice.len()).unwrap_or(u32::MAX);
        self.alone.max(told) >= self.asked.choices
    }

    /// What it adds up to so far.
    pub(super) fn total(&self) -> Option<Usage> {
        let Asked {
            choices,
            of_each_prompt,
        } = self.asked;
        match self.alone {
            0 if self.by_choice.is_empty() => None,
            0 => Some(self.of_choices()),
            // More than one, and one for each choice at most: each tells for itself.
            2.. if self.alone <= choices => {
                let shared = u64::from(of_each_prompt.max(1));
                Some(Usage {
                    prompt_tokens: self.sum.prompt_tokens.div_ceil(shared),
                    cached_tokens: self.sum.cached_tokens / shared,
                    completion_tokens: self.sum.completion_tokens,
                })
            }
            1.. => Some(self.last),
        }
    }

    /// Choices come prompt by prompt.
    fn of_choices(&self) -> Usage {
        let prompt_of = |choice: u32| choice / self.asked.of_each_prompt.max(1);
        let mut total = Usage::default();
        for (at, (choice, usage)) in self.by_choice.iter().enumerate() {
            let mut before = self.by_choice[..at].iter();
            let is_known = before.any(|(other, _)| prompt_of(*other) == prompt_of(*choice));
            let own = Usage {
                completion_tokens: usage.completion_tokens,
                ..Usage::default()
            };
            total = plus(total, if is_known { own } else { *usage });
        }
        total
    }
}

fn plus(a: Usage, b: Usage) -> Usage {
    Usage {
        prompt_tokens: a.prompt_tokens.saturating_add(b.prompt_tokens),
        cached_tokens: a.cached_tokens.saturating_add(b.cached_tokens),
        completion_tokens: a.completion_tokens.saturating_add(b.completion_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::format::event, *};

    /// Prompt and output of an answer whose events say these: choice or none, prompt, output.
    fn total(choices: u32, of_each_prompt: u32, told: &[(Option<u32>, u64, u64)]) -> (u64, u64) {
        let mut tally = Tally::new(Asked {
            choices,
            of_each_prompt,
        });
        for (choice, prompt, output) in told {
            let choices = choice.map(|index| format!(r#"{{"index":{index},"text":"x"}}"#));
            let event = format!(
                r#"data: {{"choices":[{}],"usage":{{"prompt_tokens":{prompt},"completion_tokens":{output}}}}}"#,
                choices.unwrap_or_default()
            );
            let event::Event::Chunk(chunk) = event::read(event.as_bytes()) else {
                panic!("{event}");
            };
            tally.add(chunk.usage.unwrap(), &chunk);
        }
        let total = tally.total().unwrap();
        (total.prompt_tokens, total.completion_tokens)
    }

    #[test]
    fn one_sum_at_the_end_is_the_usage() {
        assert_eq!(total(1, 1, &[(None, 7, 3)]), (7, 3));
        assert_eq!(total(3, 3, &[(None, 7, 9)]), (7, 9));
        // A server that says it twice has not done it twice.
        assert_eq!(total(1, 1, &[(None, 7, 3), (None, 7, 3)]), (7, 3));
    }

    #[test]
    fn prompts_are_charged_once_each_and_choices_all() {
        let four = [301, 10, 20, 30].map(|prompt| prompt);
        let told: Vec<_> = (0..4).map(|i| (Some(i), four[i as usize], 2)).collect();
        assert_eq!(total(4, 1, &told), (361, 8));
        // Two prompts of two choices, in any order.
        let told = [
            (Some(3), 20, 5),
            (Some(0), 10, 1),
            (Some(2), 20, 4),
            (Some(1), 10, 2),
        ];
        assert_eq!(total(4, 2, &told), (30, 12));
    }

    #[test]
    fn choices_that_tell_behind_their_last_chunk_are_added_up() {
        assert_eq!(total(3, 3, &[(None, 9, 6); 3]), (9, 18));
        assert_eq!(total(3, 3, &[(None, 9, 6); 2]), (6, 12), "one was cut");
    }

    #[test]
    fn what_comes_with_every_chunk_is_the_latest_of_its_choice_until_the_sum() {
        let with_chunks = [(Some(0), 9, 1), (Some(1), 9, 1), (Some(0), 9, 2)];
        assert_eq!(total(2, 2, &with_chunks), (9, 3));
        let with_sum = [&with_chunks[..], &[(None, 9, 4)]].concat();
        assert_eq!(total(2, 2, &with_sum), (9, 4));
    }
}
