//! `/tokenize` in vLLM's form (`prompt` in; `count`, `max_model_len`, `tokens` out) on every engine.

use bytes::Bytes;
use kvwarden_actors::engine::Dialect;
use serde::Deserialize;
use serde_json::json;

use super::request::envelope::Members;

/// llama.cpp calls the prompt `content`, and without it answers with no tokens instead of an error.
pub(super) fn adapt(members: &mut Members<'_>, dialect: &Dialect) {
    if dialect.quirks.tokenizes_content {
        members.rename("prompt", "content");
    }
}

/// llama.cpp only lists the tokens.
#[must_use]
pub(super) fn answer(body: Bytes, dialect: &Dialect) -> Bytes {
    #[derive(Deserialize)]
    struct Tokens {
        tokens: Vec<u32>,
    }
    if !dialect.quirks.tokenizes_content {
        return body;
    }
    match serde_json::from_slice::<Tokens>(&body) {
        Ok(Tokens { tokens }) => {
            json!({ "count": tokens.len(), "max_model_len": null, "tokens": tokens })
                .to_string()
                .into()
        }
        Err(_) => body,
    }
}
