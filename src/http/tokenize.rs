//! `/tokenize` in vLLM's form (`prompt` in; `count`, `max_model_len`, `tokens` out) on every engine.

use bytes::Bytes;
use kvwarden_actors::engine::Dialect;
use serde::Deserialize;
use serde_json::json;

use super::{refusal::BadRequest, request::envelope::Members};

/// llama.cpp calls the prompt `content`, and without it answers with no tokens instead of an error. Of a
/// conversation it only counts what its template made of it, which it tells on a route of its own.
///
/// # Errors
/// When it would count nothing.
pub(super) fn adapt(members: &mut Members<'_>, dialect: &Dialect) -> Result<(), BadRequest> {
    if !dialect.quirks.tokenizes_content {
        return Ok(());
    }
    members.rename("prompt", "content");
    if members.get("content").is_some() {
        return Ok(());
    }
    Err(match members.get("messages") {
        Some(_) => {
            let message = "this model's engine counts the tokens of a `prompt`, not of `messages`";
            BadRequest::new(message).param("messages")
        }
        None => BadRequest::new("`prompt` is missing").param("prompt"),
    })
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

#[cfg(test)]
mod tests {
    use kvwarden_actors::engine::EngineKind;

    use super::*;

    fn adapted(kind: EngineKind, body: &str) -> Result<String, BadRequest> {
        let mut members = Members::parse(body.as_bytes()).unwrap();
        // An attempt after another one finds what that one left.
        for _ in 0..2 {
            adapt(&mut members, kind.dialect())?;
        }
        Ok(String::from_utf8(members.to_bytes().to_vec()).unwrap())
    }

    #[test]
    fn llama_cpp_is_asked_in_its_own_words_and_only_for_what_it_counts() {
        let asked = |body| adapted(EngineKind::LlamaCpp, body);
        let content = Ok(r#"{"model":"m","content":"x"}"#.to_owned());
        assert_eq!(asked(r#"{"model":"m","prompt":"x"}"#), content);
        assert_eq!(asked(r#"{"model":"m","content":"x"}"#), content);
        for (body, param) in [
            (
                r#"{"messages":[{"role":"user","content":"x"}]}"#,
                "messages",
            ),
            ("{}", "prompt"),
            (r#"{"prompt":null}"#, "prompt"),
        ] {
            assert_eq!(asked(body).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn other_engines_are_asked_as_the_client_asked() {
        let body = r#"{"messages":[],"prompt":"x"}"#;
        for kind in [EngineKind::Vllm, EngineKind::Sglang, EngineKind::Attach] {
            assert_eq!(adapted(kind, body).as_deref(), Ok(body));
        }
    }
}
