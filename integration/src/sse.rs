//! Server-sent events, as far as OpenAI's streams use them.

use serde_json::Value;

/// The `data:` of every event in a body; comments are left out.
#[must_use]
pub fn data(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body).replace("\r\n", "\n");
    let lines = text.split("\n\n").flat_map(str::lines);
    lines
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.trim().to_owned())
        .collect()
}

/// The chunks of a stream that ended as it should.
///
/// # Panics
/// If it does not end with `[DONE]`, or holds anything but JSON before that.
#[must_use]
pub fn chunks(body: &[u8]) -> Vec<Value> {
    let mut events = data(body);
    let last = events.pop();
    let shown = String::from_utf8_lossy(body);
    assert_eq!(
        last.as_deref(),
        Some("[DONE]"),
        "the stream ends as {shown}"
    );
    events.iter().map(|event| json(event)).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in event {text}"))
}

/// What the SDKs need to see that an answer is not whole: one error, and no `[DONE]` after it.
///
/// # Panics
/// If the body ends in any other way.
pub fn assert_one_error_at_the_end(body: &[u8]) {
    let events = data(body);
    let errors = events
        .iter()
        .filter(|event| event.starts_with("{\"error\""));
    let shown = String::from_utf8_lossy(body);
    assert_eq!(errors.count(), 1, "{shown}");
    let last: Value = events
        .last()
        .and_then(|event| serde_json::from_str(event).ok())
        .unwrap_or_default();
    assert!(last["error"]["message"].is_string(), "{shown}");
}

/// Whether the engine came to its end.
#[must_use]
pub fn is_whole(body: &[u8]) -> bool {
    body.trim_ascii_end().ends_with(b"data: [DONE]")
}

/// The text that chunks of a chat or of a completion add up to.
#[must_use]
pub fn text(chunks: &[Value]) -> String {
    let piece = |chunk: &Value| {
        let choice = chunk.pointer("/choices/0")?;
        let text = choice.get("text").or(choice.pointer("/delta/content"))?;
        text.as_str().map(str::to_owned)
    };
    chunks.iter().filter_map(piece).collect()
}
