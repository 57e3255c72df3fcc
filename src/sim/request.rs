//! The bodies of generation requests, and what is wrong with them.

use serde::{Deserialize, de::DeserializeOwned};

use super::error::ApiError;

/// Choices one request may ask for, OpenAI's bound.
const MAX_CHOICES: u32 = 128;

/// Sequences one request may start, vLLM's bound.
const MAX_SEQUENCES: usize = 16_384;

/// vLLM's default for `/v1/completions`.
const COMPLETION_MAX_TOKENS: u32 = 16;

/// `/v1/chat/completions` and `/v1/completions`; what is not listed is ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Generate {
    pub(super) model: Option<String>,
    pub(super) messages: Option<Vec<Message>>,
    pub(super) prompt: Option<Input>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    n: Option<u32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    min_tokens: u32,
    #[serde(default)]
    pub(super) ignore_eos: bool,
    temperature: Option<f64>,
    seed: Option<i64>,
    #[serde(default)]
    pub(super) priority: i32,
    cache_salt: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
    pub(super) continuous_usage_stats: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    text: Option<String>,
}

/// One prompt or several, as text or as token ids.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Input {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

/// Which samples of one prompt are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampling {
    /// Temperature 0: all of them.
    Greedy,
    /// Those of requests with the same seed.
    Seeded(u64),
    /// None.
    Free,
}

/// A body, or what is wrong with its types.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let json = &mut serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(json).map_err(|error| ApiError::Body {
        message: format!("body.{}: {}", error.path(), error.inner()),
    })
}

pub(super) fn check_sequences(sequences: usize) -> Result<(), ApiError> {
    if sequences > MAX_SEQUENCES {
        let message = format!("A request may have {MAX_SEQUENCES} sequences, not {sequences}.");
        return Err(ApiError::value("n", message));
    }
    Ok(())
}

// === impl Generate ===

impl Generate {
    /// What the types don't say.
    pub(super) fn check(&self, prompts: usize) -> Result<(), ApiError> {
        if self.stream_options.is_some() && self.stream != Some(true) {
            let message = "Stream options can only be defined when `stream=True`.";
            return Err(ApiError::value("stream_options", message));
        }
        if self.cache_salt.as_deref() == Some("") {
            let message = "Parameter 'cache_salt' must be a non-empty string if provided.";
            return Err(ApiError::value("cache_salt", message));
        }
        if !(1..=MAX_CHOICES).contains(&self.choices()) {
            let message = format!("n must be between 1 and {MAX_CHOICES}.");
            return Err(ApiError::value("n", message));
        }
        check_sequences(prompts.saturating_mul(self.choices() as usize))?;
        if let Some(temperature) = self.temperature
            && temperature < 0.0
        {
            let message = format!("temperature must be non-negative, got {temperature}.");
            return Err(ApiError::value("temperature", message));
        }
        if self.asked_tokens() == Some(0) {
            let message = "max_tokens must be at least 1, got 0.";
            return Err(ApiError::value("max_tokens", message));
        }
        Ok(())
    }

    pub(super) fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    pub(super) fn salt(&self) -> Option<&str> {
        self.cache_salt.as_deref()
    }

    fn asked_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// How many tokens may be generated after this prompt.
    pub(super) fn max_tokens(&self, prompt: u32, max_model_len: u32) -> Result<u32, ApiError> {
        let asked = self.asked_tokens();
        // A chat without a bound may fill the context; then the prompt alone has to leave room.
        let wanted = match (asked, &self.messages) {
            (Some(tokens), _) => tokens,
            (None, Some(_)) => max_model_len.saturating_sub(prompt).max(1),
            (None, None) => COMPLETION_MAX_TOKENS,
        };
        let total = prompt.saturating_add(wanted);
        if total > max_model_len {
            let message = format!(
                "This model's maximum context length is {max_model_len} tokens. However, you \
                 requested {} output tokens and your prompt contains {prompt} input tokens, for a \
                 total of {total} tokens. Please reduce the length of the input prompt or the \
                 number of requested output tokens.",
                asked.unwrap_or(0),
            );
            return Err(ApiError::value("input_tokens", message));
        }
        Ok(wanted)
    }

    /// After how many tokens the model would stop by itself if it liked `natural`.
    pub(super) fn limit(&self, natural: u32) -> u32 {
        if self.ignore_eos {
            u32::MAX
        } else {
            natural.max(self.min_tokens)
        }
    }

    pub(super) fn sampling(&self) -> Sampling {
        // vLLM's default temperature is 1.
        match (self.temperature.unwrap_or(1.0), self.seed) {
            (t, _) if t < 1e-5 => Sampling::Greedy,
            (_, Some(seed)) => Sampling::Seeded(seed.cast_unsigned()),
            (_, None) => Sampling::Free,
        }
    }

    pub(super) fn usage_wanted(&self) -> (bool, bool) {
        let options = self.stream_options.as_ref();
        let at_end = options.and_then(|o| o.include_usage).unwrap_or(false);
        let always = options.and_then(|o| o.continuous_usage_stats);
        (at_end, at_end && always.unwrap_or(false))
    }
}

// === impl Message ===

impl Message {
    pub(super) fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts
                .iter()
                .filter_map(|part| part.text.as_deref())
                .collect(),
        }
    }
}
