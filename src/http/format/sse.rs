//! Server-sent events as engines send them: one `data:` line an event, `[DONE]` at the end.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use kvwarden_policy::cost::Usage;
use memchr::memmem;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

/// An event larger than this is no event; the longest real ones (logprobs) stay under 1 MiB.
const MAX_EVENT: usize = 4 << 20;

/// Cuts a byte stream into whole events without changing a byte.
#[derive(Default)]
pub struct Splitter {
    pending: Bytes,
}

/// An event without an end.
#[derive(Debug, PartialEq, Eq)]
pub struct Oversized;

impl Splitter {
    /// Takes in what came. The usual chunk is one whole event and is not copied.
    ///
    /// # Errors
    /// When more than 4 MiB came without the end of an event.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), Oversized> {
        if self.pending.len() + chunk.len() > MAX_EVENT {
            return Err(Oversized);
        }
        if self.pending.is_empty() {
            self.pending = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.pending.len() + chunk.len());
            joined.extend_from_slice(&self.pending);
            joined.extend_from_slice(&chunk);
            self.pending = joined.freeze();
        }
        Ok(())
    }

    /// The next whole event, blank line included.
    pub fn next_event(&mut self) -> Option<Bytes> {
        let unix = memmem::find(&self.pending, b"\n\n").map(|at| at + 2);
        let dos = memmem::find(&self.pending, b"\r\n\r\n").map(|at| at + 4);
        let end = unix.into_iter().chain(dos).min()?;
        Some(self.pending.split_to(end))
    }
}

/// The text of an event's `data:` line; none for comments.
#[must_use]
pub fn data(event: &[u8]) -> Option<&[u8]> {
    event.split(|byte| *byte == b'\n').find_map(|line| {
        let data = line.strip_prefix(b"data:")?;
        Some(data.trim_ascii())
    })
}

/// What one event says.
#[derive(Debug)]
pub enum Event<'a> {
    /// A comment, a ping, or something we don't know; passed on.
    Other,
    /// `[DONE]`.
    Done,
    /// The engine failed.
    Failed(&'a RawValue),
    /// Part of the answer.
    Chunk(Chunk),
}

/// Part of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// It carries text, reasoning or a tool call, and is not just the role.
    pub has_token: bool,
    /// It only says who speaks. All engines send that with the first token, and a stream that ends
    /// there gave nothing.
    pub is_opening: bool,
    /// The usage it carries.
    pub usage: Option<Usage>,
    /// It carries usage and nothing else.
    pub is_usage_only: bool,
    /// The engine gave the request up. No client of OpenAI's knows that `finish_reason`, and all
    /// of them would take half an answer for a whole one.
    pub is_aborted: bool,
}

/// Reads one event.
#[must_use]
pub fn read(event: &[u8]) -> Event<'_> {
    let Some(data) = data(event) else {
        return Event::Other;
    };
    if data == b"[DONE]" {
        return Event::Done;
    }
    let Ok(wire) = serde_json::from_slice::<WireChunk>(data) else {
        return Event::Other;
    };
    if let Some(error) = wire.error {
        return Event::Failed(error);
    }
    let usage = wire.usage.map(Usage::from);
    Event::Chunk(Chunk {
        has_token: wire.choices.iter().any(WireChoice::has_token),
        is_opening: !wire.choices.is_empty() && wire.choices.iter().all(WireChoice::is_opening),
        is_usage_only: usage.is_some() && wire.choices.is_empty(),
        is_aborted: wire.choices.iter().any(WireChoice::is_aborted),
        usage,
    })
}

#[derive(Deserialize)]
struct WireChunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<WireChoice<'a>>,
    usage: Option<WireUsage>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireChoice<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delta: Option<WireDelta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct WireDelta<'a> {
    role: Option<IgnoredAny>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tool_calls: Option<Vec<&'a RawValue>>,
}

impl WireChoice<'_> {
    fn is_aborted(&self) -> bool {
        self.finish_reason.as_deref() == Some("abort")
    }

    fn is_opening(&self) -> bool {
        let has_role = self
            .delta
            .as_ref()
            .is_some_and(|delta| delta.role.is_some());
        has_role && self.finish_reason.is_none() && !self.has_token()
    }

    fn has_token(&self) -> bool {
        let is_text = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|t| !t.is_empty());
        is_text(&self.text)
            || self.delta.as_ref().is_some_and(|delta| {
                let texts = [&delta.content, &delta.reasoning_content, &delta.reasoning];
                texts.into_iter().any(is_text)
                    || delta
                        .tool_calls
                        .as_ref()
                        .is_some_and(|calls| !calls.is_empty())
            })
    }
}

/// `usage` as OpenAI spells it.
#[derive(Deserialize)]
pub struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

impl From<WireUsage> for Usage {
    fn from(wire: WireUsage) -> Self {
        let cached = wire
            .prompt_tokens_details
            .and_then(|details| details.cached_tokens);
        Self {
            prompt_tokens: wire.prompt_tokens,
            cached_tokens: cached.unwrap_or(0),
            completion_tokens: wire.completion_tokens.unwrap_or(0),
        }
    }
}

/// The usage in a whole (not streamed) answer.
#[must_use]
pub fn usage_of(answer: &[u8]) -> Option<Usage> {
    #[derive(Deserialize)]
    struct Answer {
        usage: Option<WireUsage>,
    }
    serde_json::from_slice::<Answer>(answer)
        .ok()?
        .usage
        .map(Usage::from)
}

/// Whether the engine gave up a request whose whole (not streamed) answer this is.
#[must_use]
pub fn is_aborted(answer: &[u8]) -> bool {
    let answer = serde_json::from_slice::<WireChunk>(answer);
    answer.is_ok_and(|answer| answer.choices.iter().any(WireChoice::is_aborted))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(event: &str) -> Chunk {
        let Event::Chunk(chunk) = read(event.as_bytes()) else {
            panic!("no chunk: {event}");
        };
        chunk
    }

    #[test]
    fn role_and_empty_content_are_no_first_token() {
        for delta in [
            r#"{"role":"assistant","content":""}"#,
            r#"{"role":"assistant","content":null}"#,
            r#"{"role":"assistant","content":"","reasoning_content":null}"#,
        ] {
            let event = format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n\n");
            assert!(!chunk(&event).has_token, "{event}");
            assert!(chunk(&event).is_opening, "{event}");
        }
        let refusal = r#"data: {"choices":[{"delta":{"role":"assistant","refusal":"no"}}]}"#;
        let unknown = r#"data: {"choices":[{"delta":{"refusal":"no"}}]}"#;
        assert!(chunk(refusal).is_opening && !chunk(unknown).is_opening);
    }

    #[test]
    fn text_reasoning_and_tool_calls_are_tokens() {
        for choice in [
            r#"{"delta":{"content":"\n"}}"#,
            r#"{"delta":{"reasoning_content":"hm"}}"#,
            r#"{"delta":{"tool_calls":[{"index":0}]}}"#,
            r#"{"text":"a"}"#,
        ] {
            assert!(
                chunk(&format!("data: {{\"choices\":[{choice}]}}\n\n")).has_token,
                "{choice}"
            );
        }
    }

    #[test]
    fn usage_chunk_of_each_engine_is_read() {
        let vllm = r#"data: {"choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        let used = Usage {
            prompt_tokens: 9,
            cached_tokens: 4,
            completion_tokens: 3,
        };
        assert_eq!(
            chunk(vllm),
            Chunk {
                usage: Some(used),
                is_usage_only: true,
                ..Chunk::default()
            }
        );
        let sglang = r#"data: {"choices":[{"text":"x"}],"usage":null}"#;
        assert_eq!(chunk(sglang).usage, None);
        let llamacpp =
            r#"data: {"choices":[{"text":""}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        assert!(!chunk(llamacpp).is_usage_only && chunk(llamacpp).usage.is_some());
    }

    #[test]
    fn request_given_up_by_the_engine_is_no_whole_answer() {
        assert!(chunk(r#"data: {"choices":[{"text":"","finish_reason":"abort"}]}"#).is_aborted);
        assert!(!chunk(r#"data: {"choices":[{"text":"","finish_reason":"stop"}]}"#).is_aborted);
        assert!(is_aborted(
            br#"{"choices":[{"message":{"content":"a"},"finish_reason":"abort"}]}"#
        ));
        assert!(!is_aborted(
            br#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#
        ));
    }

    #[test]
    fn comments_and_the_end_are_told_apart() {
        assert!(matches!(read(b": ping\n\n"), Event::Other));
        assert!(matches!(read(b"data: [DONE]\n\n"), Event::Done));
        assert!(matches!(
            read(b"data:{\"error\":{\"code\":503}}\r\n\r\n"),
            Event::Failed(_)
        ));
    }

    proptest! {
        #[test]
        fn events_come_out_whole_however_the_bytes_are_cut(
            events in prop::collection::vec("[a-z :{}\"]{0,20}", 1..20),
            cuts in prop::collection::vec(1_usize..9, 1..200),
        ) {
            let whole: String = events.iter().map(|e| format!("data: x{e}\n\n")).collect();
            let (mut splitter, mut out, mut rest) = (Splitter::default(), String::new(), whole.as_bytes());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                splitter.push(Bytes::copy_from_slice(now)).unwrap();
                while let Some(event) = splitter.next_event() {
                    prop_assert!(event.ends_with(b"\n\n"));
                    out.push_str(std::str::from_utf8(&event).unwrap());
                }
                rest = later;
            }
            prop_assert_eq!(out, whole);
        }
    }
}
