//! What the members of a request tell, read in one walk, and the bounds on them.
//!
//! Nothing is refused for how it is spelt, since engines differ in that: a field that is only read for the
//! estimate goes on as it is, and its engine says what is wrong with it. Counts that have a bound are
//! read in every spelling in which an engine reads them.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{
    members::Members,
    names::shown,
    shape::Shape,
    spelling::{flag, text, whole},
};
use crate::http::{
    limits::{MAX_CHOICES, MAX_DEPTH, MAX_INPUTS, MAX_LOGPROBS, MAX_MESSAGES, MAX_MODEL},
    refusal::BadRequest,
};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The model's name.
    pub(super) model: Option<String>,
    /// The client wants a stream.
    pub(super) stream: bool,
    /// The client wants the stream's usage.
    pub(super) wants_usage: bool,
    /// The client's own partition of its tenant's prefix cache.
    pub(super) salt: Option<String>,
    /// Bytes of what the engine is given to read, without inline images.
    pub(super) prompt_bytes: u64,
    /// Inline images.
    pub(super) images: u64,
    prompts: Option<u64>,
    /// Of each prompt, by the name of the field that says most.
    choices: Option<(i64, &'static str)>,
    max_completion_tokens: Option<i64>,
    max_tokens: Option<i64>,
    n_predict: Option<i64>,
}

impl Reading {
    /// Reads all members.
    ///
    /// # Errors
    /// What is larger than a bound, and a model that is no name.
    pub(super) fn of(members: &Members<'_>) -> Result<Self, BadRequest> {
        let mut reading = Self::default();
        for (name, value) in members.iter() {
            let shape = Shape::of(value.get());
            // The body's own braces are a level too.
            if shape.depth >= MAX_DEPTH {
                let name = shown(name);
                let message =
                    format!("`{name}` is nested too deep: a request may have {MAX_DEPTH} levels");
                return Err(BadRequest::new(message).param(name));
            }
            if reading.is_prompt(name, value, &shape)? {
                reading.images += shape.images;
                reading.prompt_bytes += value.get().len() as u64 - shape.image_bytes;
            } else {
                reading.see(name, value, &shape)?;
            }
        }
        Ok(reading)
    }

    /// The engine reads it as text.
    fn is_prompt(
        &mut self,
        name: &str,
        value: &RawValue,
        shape: &Shape,
    ) -> Result<bool, BadRequest> {
        match name {
            "messages" => bounded(name, shape.items, MAX_MESSAGES)?,
            "input" | "content" => bounded(name, shape.texts, MAX_INPUTS)?,
            // A completion may bring several prompts; a list of numbers is one, in tokens.
            "prompt" if value.get().starts_with('[') => self.prompts = Some(shape.texts.max(1)),
            "prompt" | "tools" | "functions" | "documents" | "input_ids" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn see(&mut self, name: &str, value: &RawValue, shape: &Shape) -> Result<(), BadRequest> {
        match name {
            "model" => self.model = Some(model(value)?),
            "stream" => self.stream = flag(value).unwrap_or(false),
            "stream_options" => self.wants_usage = wants_usage(value),
            // Whatever JSON it is, it tells a partition from others.
            "cache_salt" => {
                let salt = text(value).unwrap_or(Cow::Borrowed(value.get()));
                self.salt = Some(salt.into_owned());
            }
            "max_completion_tokens" => self.max_completion_tokens = whole(value),
            "max_tokens" => self.max_tokens = whole(value),
            "n_predict" => self.n_predict = whole(value),
            "n" => self.see_choices("n", value),
            // llama.cpp's name for it.
            "n_cmpl" => self.see_choices("n_cmpl", value),
            // Those that are only tried are generated as well.
            "best_of" => self.see_choices("best_of", value),
            "logprobs" | "top_logprobs" | "prompt_logprobs" | "n_probs" => {
                check_logprobs(name, value)?;
            }
            "logprob_token_ids" => bounded(name, shape.items, MAX_LOGPROBS)?,
            _ => {}
        }
        Ok(())
    }

    /// The one that says most counts, unless one says nothing that can be.
    fn see_choices(&mut self, name: &'static str, value: &RawValue) {
        let Some(choices) = whole(value) else {
            return;
        };
        let is_most = |(most, _)| most >= 1 && (choices < 1 || choices > most);
        if self.choices.is_none_or(is_most) {
            self.choices = Some((choices, name));
        }
    }

    /// How many prompts there are.
    pub(super) fn prompts(&self) -> u32 {
        u32::try_from(self.prompts.unwrap_or(1)).unwrap_or(u32::MAX)
    }

    /// Choices over all prompts.
    ///
    /// # Errors
    /// When there are too many, or none.
    pub(super) fn choices(&self) -> Result<u32, BadRequest> {
        let (most, name) = self.choices.unwrap_or((1, "n"));
        let most = u64::try_from(most).unwrap_or(0);
        let total = most.saturating_mul(self.prompts.unwrap_or(1));
        match u32::try_from(total) {
            Ok(choices) if (1..=MAX_CHOICES).contains(&total) => Ok(choices),
            Ok(_) | Err(_) => {
                let message =
                    format!("`{name}` times the number of prompts must be 1 to {MAX_CHOICES}");
                Err(BadRequest::new(message).param(name))
            }
        }
    }

    /// Most tokens of one choice. None: no number was named, or a negative one, which bounds nothing.
    pub(super) fn max_tokens(&self) -> Option<u64> {
        let names = [self.max_completion_tokens, self.max_tokens, self.n_predict];
        let mut named = names.into_iter().flatten();
        let first = named.next()?;
        // At 0 SGLang goes by the next name and others do as told: the larger one is estimated.
        let wins = match first {
            0 => named.find(|tokens| *tokens != 0).unwrap_or(0),
            _ => first,
        };
        u64::try_from(wins).ok()
    }
}

fn model(value: &RawValue) -> Result<String, BadRequest> {
    let wrong = |what| BadRequest::new(format!("`model` {what}")).param("model");
    let model: String = serde_json::from_str(value.get()).map_err(|_| wrong("must be a string"))?;
    if model.len() > MAX_MODEL {
        return Err(wrong("is longer than any name"));
    }
    Ok(model)
}

fn wants_usage(options: &RawValue) -> bool {
    let options = Members::parse(options.get().as_bytes()).ok();
    let wants = options.and_then(|options| options.get("include_usage").and_then(flag));
    wants.unwrap_or(false)
}

fn bounded(name: &str, found: u64, limit: u64) -> Result<(), BadRequest> {
    if found <= limit {
        return Ok(());
    }
    Err(BadRequest::new(format!("`{name}` holds {found} items; {limit} may be sent")).param(name))
}

fn check_logprobs(name: &str, value: &RawValue) -> Result<(), BadRequest> {
    // A negative number is all that there are.
    let is_large = |told| u64::try_from(told).map_or(true, |told| told > MAX_LOGPROBS);
    if whole(value).is_some_and(is_large) {
        let message = format!("`{name}` may be 0 to {MAX_LOGPROBS}");
        return Err(BadRequest::new(message).param(name));
    }
    Ok(())
}
