//! What an event says. What counts as the end, a token, a ping, an error is decided here alone, by
//! what the SDKs take for it.
//!
//! Each event is read once, as it passes, so this builds nothing. What it does not know is part of
//! the answer, never a ping: a server that writes `content` in a way of its own is streaming all the
//! same.

use std::{borrow::Cow, ops::Range};

use kvwarden_policy::cost::Usage;
use serde_json::value::RawValue;

use super::{
    json::{self, Json, Kind, Malformed},
    sse,
};

/// What one event says.
#[derive(Debug)]
pub enum Event<'a> {
    /// A comment, a ping, or fields without data.
    Comment,
    /// `[DONE]`.
    Done,
    /// The engine failed.
    Failed(Cow<'a, RawValue>),
    /// Part of the answer, or what nobody here can read.
    Chunk(Chunk),
}

/// Part of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Tokens in it: none where nothing came, else at least one for each choice, and a fourth of the
    /// bytes of its text. An engine may put any number of tokens into one event.
    pub tokens: u32,
    /// It only says who speaks. All engines send that with the first token, and a stream that ends
    /// there gave nothing.
    pub is_opening: bool,
    /// The usage it carries, as far as it says how many tokens there were.
    pub usage: Option<Usage>,
    /// It carries a usage, whatever that says.
    pub has_usage: bool,
    /// It carries a usage and no choice.
    pub is_usage_only: bool,
    /// The engine gave the request up. No client of OpenAI's knows that `finish_reason`, and all
    /// of them would take half an answer for a whole one.
    pub is_aborted: bool,
    /// The choices it has something of.
    pub begun: Choices,
    /// The choices that end with it.
    pub finished: Choices,
}

/// Choices by their index. OpenAI's API has no more than 128 of them, and neither has a request here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices(u128);

/// The text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

/// Members whose string is text: the next chunk continues it, and its length tells how much came.
pub(super) fn is_text(key: &str) -> bool {
    matches!(
        key,
        "content"
            | "text"
            | "reasoning"
            | "reasoning_content"
            | "refusal"
            | "arguments"
            | "input"
            | "thinking"
            | "transcript"
            | "summary"
    )
}

/// Reads one event.
#[must_use]
pub fn read(event: &[u8]) -> Event<'_> {
    let data = data(event);
    if is_comment(&data) {
        return Event::Comment;
    }
    if is_done(&data) {
        return Event::Done;
    }
    let read = match data {
        Cow::Borrowed(data) => read_json(data).map(|read| read.event),
        Cow::Owned(data) => read_json(&data).map(|read| read.event.into_owned()),
    };
    read.unwrap_or(UNREADABLE)
}

/// Reads the events of one stream. Most differ from the one before in their text alone, so what the
/// others say was found out already: it takes two comparisons and a look at the text.
#[derive(Default)]
pub struct Reader {
    /// Of an event up to its text, and behind it; empty where none was like that.
    before: Vec<u8>,
    behind: Vec<u8>,
    /// What such an event says, but for the number of tokens.
    chunk: Chunk,
    /// Nothing in such an event adds up but the text: besides `choices` it has no list, which one event
    /// would begin and the next continue.
    adds_text_only: bool,
    /// The last event was as the one before.
    is_alike: bool,
}

impl Reader {
    /// Reads the next event, as [`read`] does.
    pub fn read<'a>(&mut self, event: &'a [u8]) -> Event<'a> {
        let text = self.text_of(event);
        self.is_alike = text.is_some();
        if let Some(text) = text {
            return Event::Chunk(Chunk {
                tokens: tokens_in(text.len()),
                ..self.chunk
            });
        }
        self.before.clear();
        let Cow::Borrowed(data) = data(event) else {
            return read(event);
        };
        if is_comment(data) || is_done(data) {
            return read(event);
        }
        let Ok(read) = read_json(data) else {
            return UNREADABLE;
        };
        if let (Event::Chunk(chunk), OnlyText::One(text)) = (&read.event, read.text)
            && is_plain(text)
        {
            let begin = text.as_ptr().addr() - event.as_ptr().addr();
            self.before.extend_from_slice(&event[..begin]);
            self.behind.clear();
            self.behind.extend_from_slice(&event[begin + text.len()..]);
            self.chunk = *chunk;
            let both = self.before.iter().chain(&self.behind);
            self.adds_text_only = both.filter(|byte| **byte == b'[').count() == 1;
        }
        read.event
    }

    /// Where the text of the event that was read last stands, if that event is otherwise as the one
    /// before it, so that both say together what one of them says with both texts.
    #[must_use]
    pub fn more(&self, event: &[u8]) -> Option<Range<usize>> {
        let end = event.len().checked_sub(self.behind.len())?;
        (self.is_alike && self.adds_text_only).then_some(self.before.len()..end)
    }

    /// The text of an event that is otherwise as the one before.
    fn text_of<'a>(&self, event: &'a [u8]) -> Option<&'a str> {
        if self.before.is_empty() {
            return None;
        }
        let rest = event.strip_prefix(self.before.as_slice())?;
        let text = rest.strip_suffix(self.behind.as_slice())?;
        let text = std::str::from_utf8(text).ok()?;
        is_plain(text).then_some(text)
    }
}

/// It says something, and stands in JSON as it is.
fn is_plain(text: &str) -> bool {
    let is_plain = |byte: &u8| *byte >= b' ' && !matches!(byte, b'"' | b'\\');
    !text.is_empty() && text.as_bytes().iter().all(is_plain)
}

const UNREADABLE: Event<'static> = Event::Chunk(Chunk {
    tokens: 1,
    is_opening: false,
    usage: None,
    has_usage: false,
    is_usage_only: false,
    is_aborted: false,
    begun: Choices(0),
    finished: Choices(0),
});

/// Reads an answer that is no stream.
///
/// # Errors
/// When it is not JSON.
pub fn read_answer(answer: &[u8]) -> Result<Event<'_>, NotJson> {
    let read = read_json(answer).map_err(|Malformed| NotJson)?;
    Ok(read.event)
}

/// The data of an event, WHATWG HTML 9.2.6: that of several lines is joined by LF.
pub(super) fn data(event: &[u8]) -> Cow<'_, [u8]> {
    // The usual event is one such line.
    if let Some(line) = event.strip_prefix(b"data: ")
        && let Some(line) = line.strip_suffix(b"\n\n")
        && memchr::memchr2(b'\n', b'\r', line).is_none()
    {
        return Cow::Borrowed(line);
    }
    let mut lines = sse::lines(event).filter_map(sse::data_of);
    let Some(first) = lines.next() else {
        return Cow::Borrowed(b"");
    };
    let mut data = Cow::Borrowed(first);
    for line in lines {
        let data = data.to_mut();
        data.push(b'\n');
        data.extend_from_slice(line);
    }
    data
}

/// Data that says nothing. llama.cpp begins the stream of several prompts with `null`.
pub(super) fn is_comment(data: &[u8]) -> bool {
    matches!(data.trim_ascii(), b"" | b"null")
}

pub(super) fn is_done(data: &[u8]) -> bool {
    data.trim_ascii_start().starts_with(b"[DONE]")
}

// === impl Choices ===

impl Choices {
    /// Adds a choice. An index beyond the last counts as the last.
    pub(super) fn insert(&mut self, index: u64) {
        self.0 |= 1 << index.min(127);
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.0 |= others.0;
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The index of the only one.
    #[must_use]
    pub fn only(self) -> Option<u32> {
        (self.0.count_ones() == 1).then(|| self.0.trailing_zeros())
    }

    /// All of the others are among them.
    #[must_use]
    pub fn contain(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

// === impl Event ===

impl Event<'_> {
    fn into_owned(self) -> Event<'static> {
        match self {
            Self::Comment => Event::Comment,
            Self::Done => Event::Done,
            Self::Failed(error) => Event::Failed(Cow::Owned(error.into_owned())),
            Self::Chunk(chunk) => Event::Chunk(chunk),
        }
    }
}

/// What the members of a chunk or an answer say.
#[derive(Default)]
struct Members<'a> {
    chunk: Chunk,
    choices: u32,
    openings: u32,
    error: Option<&'a str>,
    /// The first of `errors`, as some gateways write it.
    errors: Option<&'a str>,
    /// The object says of itself that it is one, as older vLLMs write it.
    is_error: bool,
    text: OnlyText<'a>,
}

/// The string of text in an event that has one choice and no other text.
#[derive(Clone, Copy, Default)]
enum OnlyText<'a> {
    #[default]
    None,
    One(&'a str),
    Many,
}

struct Read<'a> {
    event: Event<'a>,
    text: OnlyText<'a>,
}

fn read_json(text: &[u8]) -> Result<Read<'_>, Malformed> {
    let mut json = Json::new(text)?;
    let mut members = Members::default();
    let begin = json.place();
    if json.kind()? == Kind::Object {
        members.read(&mut json)?;
    } else {
        json.value()?;
        members.chunk.tokens = 1;
    }
    let whole = &json.text()[begin..json.place()];
    json.end()?;
    let Members {
        mut chunk,
        choices,
        openings,
        errors,
        is_error,
        text,
        ..
    } = members;
    let other = errors.or(is_error.then_some(whole));
    if let Some(error) = members.error.or(other.filter(|_| choices == 0)) {
        let raw: &RawValue = serde_json::from_str(error).map_err(|_| Malformed)?;
        let event = Event::Failed(Cow::Borrowed(raw));
        return Ok(Read { event, text });
    }
    chunk.is_opening = choices > 0 && openings == choices;
    chunk.is_usage_only = chunk.has_usage && choices == 0;
    let text = if choices == 1 { text } else { OnlyText::Many };
    let event = Event::Chunk(chunk);
    Ok(Read { event, text })
}

impl<'a> Members<'a> {
    fn read(&mut self, json: &mut Json<'a>) -> Result<(), Malformed> {
        json.object(|json, key| {
            match &**key {
                "choices" if json.kind()? == Kind::List => {
                    return json.list(|json| self.read_choice(json));
                }
                "usage" if json.kind()? == Kind::Object => {
                    self.chunk.has_usage = true;
                    self.chunk.usage = read_usage(json)?;
                }
                "error" => self.error = Some(json.value()?).filter(|raw| is_error(raw)),
                "object" => self.is_error |= json.value()? == r#""error""#,
                "errors" => {
                    let errors = Some(json.value()?).filter(|raw| !json::is_empty(raw));
                    self.errors = errors.map(first_item);
                }
                _ => {
                    json.value()?;
                }
            }
            Ok(())
        })
    }

    fn read_choice(&mut self, json: &mut Json<'a>) -> Result<(), Malformed> {
        self.choices += 1;
        if json.kind()? != Kind::Object {
            self.chunk.tokens += 1;
            return json.value().map(drop);
        }
        let (mut index, mut reason, mut said) = (0, None, Said::default());
        json.object(|json, key| {
            match &**key {
                "index" => index = count(json.value()?).unwrap_or(0),
                "finish_reason" => reason = Some(json.value()?).filter(|raw| !json::is_empty(raw)),
                "delta" | "message" if json.kind()? == Kind::Object => return said.read(json),
                "delta" | "message" | "text" => return said.read_value(json, "text"),
                "logprobs" | "token_ids" => said.has_any |= !json::is_empty(json.value()?),
                _ => {
                    json.value()?;
                }
            }
            Ok(())
        })?;
        self.chunk.begun.insert(index);
        if let Some(reason) = reason {
            self.chunk.finished.insert(index);
            self.chunk.is_aborted |= reason == r#""abort""#;
        }
        let is_opening = said.has_role && !said.has_any && reason.is_none();
        self.openings += u32::from(is_opening);
        self.chunk.tokens = self.chunk.tokens.saturating_add(said.tokens());
        self.text = said.text;
        Ok(())
    }
}

/// What a delta says.
#[derive(Default)]
struct Said<'a> {
    has_role: bool,
    has_any: bool,
    text_bytes: usize,
    text: OnlyText<'a>,
}

impl<'a> Said<'a> {
    fn read(&mut self, json: &mut Json<'a>) -> Result<(), Malformed> {
        json.object(|json, key| match &**key {
            "role" => {
                self.has_role |= !json::is_empty(json.value()?);
                Ok(())
            }
            key => self.read_value(json, key),
        })
    }

    fn read_value(&mut self, json: &mut Json<'a>, key: &str) -> Result<(), Malformed> {
        match json.kind()? {
            Kind::Null => return json.value().map(drop),
            Kind::Bool | Kind::Number => {
                self.has_any = true;
                json.value()?;
            }
            Kind::String => {
                let text = json.string()?;
                self.has_any |= !text.is_empty();
                if is_text(key) {
                    self.text_bytes += json::decoded_len(text);
                    self.text = match self.text {
                        OnlyText::None => OnlyText::One(text),
                        OnlyText::One(_) | OnlyText::Many => OnlyText::Many,
                    };
                }
            }
            Kind::List => json.list(|json| {
                self.has_any = true;
                self.read_value(json, key)
            })?,
            Kind::Object => json.object(|json, key| {
                self.has_any = true;
                self.read_value(json, key)
            })?,
        }
        Ok(())
    }

    fn tokens(&self) -> u32 {
        if self.has_any {
            tokens_in(self.text_bytes)
        } else {
            0
        }
    }
}

/// Tokens in so many bytes of text, if there are any.
fn tokens_in(bytes: usize) -> u32 {
    u32::try_from(bytes / 4).unwrap_or(u32::MAX).max(1)
}

/// Some servers write an error that is none beside their choices. The SDKs take what is true in
/// their language for one.
fn is_error(raw: &str) -> bool {
    !matches!(raw, "null" | "false" | "0" | r#""""#)
}

fn first_item(raw: &str) -> &str {
    let mut first = raw;
    if json::kind_of(raw) == Kind::List {
        // The last to be read is kept, and the list ends with the first.
        let _ = Json::of(raw).list(|json| {
            first = json.value()?;
            Err(Malformed)
        });
    }
    first
}

/// `usage` as OpenAI spells it, or none where it does not say how many tokens there were: of an
/// answer whose usage is unknown the text that came is counted.
fn read_usage(json: &mut Json<'_>) -> Result<Option<Usage>, Malformed> {
    let (mut prompt, mut completion, mut total, mut cached) = (None, None, None, None);
    json.object(|json, key| {
        match &**key {
            "prompt_tokens" => prompt = count(json.value()?),
            "completion_tokens" => completion = count(json.value()?),
            "total_tokens" => total = count(json.value()?),
            "prompt_tokens_details" if json.kind()? == Kind::Object => {
                json.object(|json, key| {
                    let value = json.value()?;
                    if key == "cached_tokens" {
                        cached = count(value);
                    }
                    Ok(())
                })?;
            }
            _ => {
                json.value()?;
            }
        }
        Ok(())
    })?;
    let rest = |of: Option<u64>| Some(total?.saturating_sub(of?));
    let (prompt, completion) = (prompt.or(rest(completion)), completion.or(rest(prompt)));
    Ok(prompt
        .zip(completion)
        .map(|(prompt_tokens, completion_tokens)| Usage {
            prompt_tokens,
            cached_tokens: cached.unwrap_or(0).min(prompt_tokens),
            completion_tokens,
        }))
}

/// A number of tokens, however it is spelt. `null` and -1 are none.
pub(super) fn count(raw: &str) -> Option<u64> {
    raw.parse().ok().or_else(|| {
        let number = raw.parse::<f64>().ok().filter(|number| *number >= 0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not below zero, and what is too large becomes the largest"
        )]
        number.map(|number| number as u64)
    })
}
