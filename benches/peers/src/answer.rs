//! What the backend answers, byte by byte as vLLM would, framed for the wire.

use std::time::Duration;

use serde_json::{Value, json};

/// The text of each token.
pub(crate) const WORD: &str = " word";
/// Digits of the time in an answer's id, in microseconds.
const ID_DIGITS: usize = 16;
const ID: &str = "chatcmpl-";

/// What is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// Tokens of an answer.
    pub(crate) tokens: u32,
    /// Calls of tools instead of text.
    pub(crate) calls_tools: bool,
}

/// With a head, as one message.
pub(crate) fn framed(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The answer to who does not want a stream.
pub(crate) fn whole(plan: Plan) -> String {
    let message = match plan.calls_tools {
        false => json!({ "role": "assistant", "content": WORD.repeat(plan.tokens as usize) }),
        true => json!({ "role": "assistant", "content": null, "tool_calls": [called(plan)] }),
    };
    json!({
        "id": id(Duration::ZERO), "object": "chat.completion", "created": 1_790_000_000, "model": "m",
        "choices": [{ "index": 0, "message": message, "logprobs": null, "finish_reason": finish(plan) }],
        "usage": usage(plan),
    })
    .to_string()
}

/// What proves to kvwarden that an engine computes.
pub(crate) fn completion() -> String {
    json!({
        "id": id(Duration::ZERO), "object": "text_completion", "created": 1_790_000_000, "model": "m",
        "choices": [{ "index": 0, "text": WORD, "logprobs": null, "finish_reason": "length" }],
        "usage": { "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 },
    })
    .to_string()
}

/// The one model there is.
pub(crate) fn models() -> String {
    let model = json!({ "id": "m", "object": "model", "created": 1_790_000_000, "owned_by": "peers", "max_model_len": 131_072 });
    json!({ "object": "list", "data": [model] }).to_string()
}

/// Numbers of a text.
pub(crate) fn embedding() -> String {
    let numbers: Vec<f64> = (0..384).map(|n| f64::from(n) / 1024.0 - 0.18).collect();
    json!({
        "object": "list", "model": "m",
        "data": [{ "object": "embedding", "index": 0, "embedding": numbers }],
        "usage": { "prompt_tokens": 200, "total_tokens": 200 },
    })
    .to_string()
}

/// Tokens of a text, as vLLM counts them.
pub(crate) fn tokens() -> String {
    let tokens: Vec<u32> = (0..200).collect();
    json!({ "count": 200, "max_model_len": 131_072, "tokens": tokens, "token_strs": null })
        .to_string()
}

/// The head of a stream.
pub(crate) const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// The events of a stream, one HTTP chunk each.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) opening: Vec<u8>,
    pub(crate) token: Vec<u8>,
    pub(crate) closing: Vec<u8>,
}

impl Events {
    /// `since` is when the first event is due; it is in the id, so that whoever reads the stream knows
    /// when each event was.
    pub(crate) fn new(plan: Plan, with_usage: bool, since: Duration) -> Self {
        let id = id(since);
        let event = |value: Value| chunk(&format!("data: {value}\n\n"));
        let delta = |delta: Value, finish: Value| {
            event(json!({
                "id": id, "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "m",
                "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }],
            }))
        };
        let mut closing = delta(json!({}), finish(plan).into());
        if with_usage {
            closing.extend(event(json!({
                "id": id, "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "m",
                "choices": [], "usage": usage(plan),
            })));
        }
        closing.extend(chunk("data: [DONE]\n\n"));
        closing.extend(b"0\r\n\r\n");
        let token = match plan.calls_tools {
            false => json!({ "content": WORD }),
            true => json!({ "tool_calls": [{ "index": 0, "function": { "arguments": WORD } }] }),
        };
        let opening = match plan.calls_tools {
            false => json!({ "role": "assistant", "content": "" }),
            true => json!({ "role": "assistant", "content": null, "tool_calls": [opened()] }),
        };
        Self {
            opening: delta(opening, Value::Null),
            token: delta(token, Value::Null),
            closing,
        }
    }

    /// All of them at once.
    pub(crate) fn burst(&self, tokens: u32) -> Vec<u8> {
        let mut all = STREAM_HEAD.as_bytes().to_vec();
        all.extend(&self.opening);
        all.extend(self.token.repeat(tokens as usize));
        all.extend(&self.closing);
        all
    }
}

fn called(plan: Plan) -> Value {
    let arguments = WORD.repeat(plan.tokens as usize);
    json!({ "id": "call_0", "type": "function", "function": { "name": "look_up", "arguments": arguments } })
}

fn opened() -> Value {
    json!({
        "index": 0, "id": "call_0", "type": "function",
        "function": { "name": "look_up", "arguments": "" },
    })
}

fn finish(plan: Plan) -> &'static str {
    match plan.calls_tools {
        true => "tool_calls",
        false => "stop",
    }
}

fn usage(plan: Plan) -> Value {
    json!({
        "prompt_tokens": 200, "completion_tokens": plan.tokens, "total_tokens": 200 + plan.tokens,
        "prompt_tokens_details": null,
    })
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

fn id(since: Duration) -> String {
    format!("{ID}{:0ID_DIGITS$}", since.as_micros())
}

/// When the first event of a stream was due, from its first bytes.
pub(crate) fn due(beginning: &[u8]) -> Option<Duration> {
    let at = memchr::memmem::find(beginning, ID.as_bytes())? + ID.len();
    let digits = str::from_utf8(beginning.get(at..at + ID_DIGITS)?).ok()?;
    digits.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_says_when_it_was_due() {
        let plan = Plan {
            tokens: 2,
            calls_tools: false,
        };
        let events = Events::new(plan, true, Duration::from_micros(1234));
        assert_eq!(due(&events.opening), Some(Duration::from_micros(1234)));
        assert_eq!(due(b"data: {}"), None);
        let all = String::from_utf8(events.burst(2)).unwrap();
        assert_eq!(all.matches(WORD).count(), 2);
        assert_eq!(all.matches("data: ").count(), 6);
    }
}
