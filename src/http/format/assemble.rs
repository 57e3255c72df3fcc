//! Puts a streamed answer together into the one a client gets that did not ask for a stream.
//!
//! Some engines compute an unstreamed answer to its end even if nobody waits for it any more
//! (llama.cpp always, SGLang for seconds). So those are always asked to stream.
//!
//! Every member of every chunk is merged by one rule:
//!
//! - `null` says nothing, and stays where nothing else was said.
//! - Text is continued by the next text. Any other string is said once or again,
//!   never continued: a server that repeats a tool's name means one tool.
//! - Lists are continued by lists; an item with an `index` continues the item of that index.
//! - Objects are merged, member by member.
//! - Of a choice's other members, and of the chunk's own, the last word counts.
//!
//! Nothing else is certain, and what is not certain is an error: no client gets an answer with text
//! missing. Values stay as they were spelt, so that 20-digit seeds, `1.00` and halves of surrogate
//! pairs come out as they went in, and an answer takes about as much memory as it has bytes.

use std::{collections::BTreeMap, fmt::Write as _, ops::Range};

use kvwarden_policy::cost::Usage;

use super::{
    super::limits::MAX_CHOICES,
    event,
    json::{self, Json, Kind, Malformed},
    merge::{Items, Object, Part, Place, member, short, write_key},
};

/// Highest index of a choice.
const MAX_INDEX: u64 = MAX_CHOICES - 1;

/// Members of a chunk that are the stream's own: padding against guesses by length, and how far the
/// prefill is.
const OF_THE_STREAM: [&str; 2] = ["obfuscation", "prompt_progress"];

/// Why it cannot be told what an answer is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmergeable {
    /// An event cannot be read.
    #[error("an event is not JSON")]
    NotJson,
    /// An event is JSON, and no chunk.
    #[error("an event is no chunk of an answer")]
    NotAChunk,
    /// A choice has none, or one beyond the last.
    #[error("a choice has the index {0}")]
    Index(String),
    /// None of the events had this choice, and a later one came.
    #[error("choice {0} is missing")]
    Missing(u64),
    /// It was said as one kind of value, and as another.
    #[error("`{0}` changes its type")]
    Kind(String),
    /// It was said twice, each time otherwise, and is no text that goes on.
    #[error("`{0}` is said twice")]
    Twice(String),
    /// More items than are looked through.
    #[error("there are more than 1,024 members or items beside `{0}`")]
    Members(String),
}

impl From<Malformed> for Unmergeable {
    fn from(_: Malformed) -> Self {
        Self::NotJson
    }
}

pub(super) type Merged = Result<(), Unmergeable>;

/// An answer in the making.
#[derive(Default)]
pub struct Assembly {
    /// The chunk's own members, as they were spelt.
    head: Object,
    choices: BTreeMap<u64, Object>,
    length: usize,
    /// Events that say more of the same, as one.
    alike: Alike,
}

/// An event in three parts, the one amid of which is text of several.
#[derive(Default)]
struct Alike {
    before: Vec<u8>,
    text: Vec<u8>,
    behind: Vec<u8>,
}

/// So much text of events that are alike waits to be added at once.
const MAX_ALIKE: usize = 16 << 10;

// === impl Assembly ===

impl Assembly {
    /// Adds what one event says.
    ///
    /// # Errors
    /// When it cannot be told what the answer is with it.
    pub fn add(&mut self, event: &[u8]) -> Merged {
        self.join()?;
        self.add_event(event)
    }

    /// Adds what an event says that is as the one before but for this text: to be read once for many.
    ///
    /// # Errors
    /// When it cannot be told what the answer is with it.
    pub fn add_more(&mut self, event: &[u8], text: Range<usize>) -> Merged {
        let alike = &mut self.alike;
        if alike.text.is_empty() {
            alike.before.extend_from_slice(&event[..text.start]);
            alike.behind.extend_from_slice(&event[text.end..]);
        }
        alike.text.extend_from_slice(&event[text]);
        if alike.text.len() > MAX_ALIKE {
            self.join()?;
        }
        Ok(())
    }

    /// Adds what waits.
    fn join(&mut self) -> Merged {
        if self.alike.text.is_empty() {
            return Ok(());
        }
        let mut alike = std::mem::take(&mut self.alike);
        alike.before.append(&mut alike.text);
        alike.before.append(&mut alike.behind);
        self.add_event(&alike.before)
    }

    fn add_event(&mut self, event: &[u8]) -> Merged {
        let data = event::data(event);
        if event::is_comment(&data) || event::is_done(&data) {
            return Ok(());
        }
        let mut json = Json::new(&data)?;
        if json.kind()? != Kind::Object {
            return Err(Unmergeable::NotAChunk);
        }
        json.object(|json, key| match &**key {
            "choices" => self.add_choices(json),
            key if OF_THE_STREAM.contains(&key) => Ok(json.value().map(drop)?),
            "__verbose" => {
                let whole = self.head.part(key, &mut self.length)?;
                whole.merge(json, key, Place::Verbose, &mut self.length)
            }
            key => self.add_to_head(key, json.value()?),
        })?;
        Ok(json.end()?)
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length + self.alike.text.len()
    }

    fn add_to_head(&mut self, key: &str, raw: &str) -> Merged {
        /// Said with every chunk. SGLang names the request of each choice there, and an answer the
        /// first.
        const SAID_ONCE: [&str; 4] = ["id", "object", "created", "model"];
        let part = self.head.part(key, &mut self.length)?;
        let is_said = !matches!(part, Part::Null);
        if json::kind_of(raw) != Kind::Null && !(is_said && SAID_ONCE.contains(&key)) {
            part.say(raw, &mut self.length);
        }
        Ok(())
    }

    fn add_choices(&mut self, json: &mut Json<'_>) -> Merged {
        // They come here, wherever the first chunk has them.
        self.head.part("choices", &mut self.length)?;
        if json.kind()? != Kind::List {
            return match json.value()? {
                "null" => Ok(()),
                _ => Err(Unmergeable::NotAChunk),
            };
        }
        let mut position = 0;
        json.list(|json| {
            let raw = json.value()?;
            let index = index_of(raw, position)?;
            position += 1;
            let choice = self.choices.entry(index).or_default();
            add_choice(choice, raw, &mut self.length)
        })
    }

    /// The whole answer, with `usage` as it was counted over all choices.
    ///
    /// # Errors
    /// When it cannot be told what the answer is.
    pub fn finish(mut self, usage: Option<Usage>) -> Result<Vec<u8>, Unmergeable> {
        self.join()?;
        if self.choices.is_empty() {
            return Err(Unmergeable::Missing(0));
        }
        for (expected, index) in (0..).zip(self.choices.keys()) {
            if expected != *index {
                return Err(Unmergeable::Missing(expected));
            }
        }
        let is_chat = self.name_whole();
        if let (Some(usage), Some(Part::Word(told))) = (usage, self.head.get_mut("usage")) {
            *told = with_counts(told, usage);
        }
        let mut out = Vec::with_capacity(self.length + self.length / 16 + 256);
        let choices = std::mem::take(&mut self.choices);
        let mut choices = Some(choices);
        out.push(b'{');
        for (at, (key, part)) in self.head.0.into_iter().enumerate() {
            write_key(&mut out, at, &key);
            match choices.take_if(|_| &*key == "choices") {
                Some(choices) => write_choices(&mut out, choices, is_chat),
                None => part.write(&mut out),
            }
        }
        out.push(b'}');
        Ok(out)
    }

    /// Gives the answer the name of a whole one. Tells whether it is a chat.
    fn name_whole(&mut self) -> bool {
        let has_message = |choice: &Object| choice.get("message").is_some();
        let Some(Part::Word(object)) = self.head.get_mut("object") else {
            return self.choices.values().any(has_message);
        };
        if let Some(whole) = object.strip_suffix(".chunk\"") {
            *object = format!("{whole}\"");
        }
        object == "\"chat.completion\"" || self.choices.values().any(has_message)
    }
}

fn add_choice(choice: &mut Object, raw: &str, length: &mut usize) -> Merged {
    Json::of(raw).object(|json, key| match &**key {
        "delta" | "message" => {
            let message = choice.part("message", length)?;
            message.merge(json, "message", Place::Message, length)
        }
        key => {
            let part = choice.part(key, length)?;
            part.merge(json, key, Place::Choice, length)
        }
    })
}

fn index_of(choice: &str, position: u64) -> Result<u64, Unmergeable> {
    if json::kind_of(choice) != Kind::Object {
        return Err(Unmergeable::NotAChunk);
    }
    let Some(spelt) = member(choice, "index").filter(|raw| *raw != "null") else {
        return Ok(position);
    };
    let index = spelt.parse().ok().filter(|index| *index <= MAX_INDEX);
    index.ok_or_else(|| Unmergeable::Index(short(spelt)))
}

fn write_choices(out: &mut Vec<u8>, choices: BTreeMap<u64, Object>, is_chat: bool) {
    out.push(b'[');
    for (index, mut choice) in choices {
        if index > 0 {
            out.push(b',');
        }
        choice.set("index", Part::Word(index.to_string()));
        if choice.get("finish_reason").is_none() {
            choice.set("finish_reason", Part::Null);
        }
        // Of the engines whose answers are put together, SGLang alone numbers the tool calls of a
        // whole answer.
        let keeps_index = choice.get("matched_stop").is_some();
        if is_chat {
            if matches!(choice.get("message"), None | Some(Part::Null)) {
                choice.set("message", Part::Object(Object::default()));
            }
            if let Some(Part::Object(message)) = choice.get_mut("message") {
                complete_message(message, keeps_index);
            }
        }
        choice.write(out);
    }
    out.push(b']');
}

/// What every message of a whole answer has, and none of what only a chunk has.
fn complete_message(message: &mut Object, keeps_index: bool) {
    if !message.has("role") {
        message.0.retain(|(key, _)| &**key != "role");
        let role = Part::Word("\"assistant\"".to_owned());
        message.0.insert(0, ("role".into(), role));
    }
    // llama.cpp opens with `null`, and says so in the end only beside what stands for a text.
    let instead = ["tool_calls", "function_call", "refusal", "audio"];
    if matches!(message.get("content"), None | Some(Part::Null)) {
        let has_other = instead.iter().any(|key| message.has(key));
        let empty = Part::Text(String::new());
        message.set("content", if has_other { Part::Null } else { empty });
    }
    if let Some(Part::List(calls)) = message.get_mut("tool_calls")
        && !keeps_index
    {
        for call in calls {
            if let Items::Indexed(_, Part::Object(call)) = call {
                call.0.retain(|(key, _)| &**key != "index");
            }
        }
    }
}

/// A usage with these counts, as it is but for those that differ.
fn with_counts(told: &str, usage: Usage) -> String {
    let mut out = String::with_capacity(told.len() + 32);
    let mut copied = 0;
    let mut json = Json::of(told);
    // What cannot be read stays as it is.
    let _ = json.object(|json, key| {
        let count = match &**key {
            "prompt_tokens" => Some(usage.prompt_tokens),
            "completion_tokens" => Some(usage.completion_tokens),
            "total_tokens" => Some(usage.total()),
            _ => None,
        };
        let begin = json.place();
        let raw = json.value()?;
        if let Some(count) = count.filter(|count| event::count(raw) != Some(*count)) {
            out.push_str(&told[copied..begin]);
            // Writing to a string can't fail.
            let _ = write!(out, "{count}");
            copied = begin + raw.len();
        }
        Ok::<_, Malformed>(())
    });
    out.push_str(&told[copied..]);
    out
}
