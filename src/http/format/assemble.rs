//! Puts a streamed answer together into the one a client gets that did not ask for a stream.
//!
//! Some engines compute an unstreamed answer to its end even if nobody waits for it any more
//! (llama.cpp always, SGLang for seconds). So those are always asked to stream.
//!
//! Every member of every chunk is merged by one rule:
//!
//! - `null` says nothing, and stays where nothing else was said.
//! - Text is continued by the next text ([`is_continued`]). Any other string is said once or again,
//!   never continued: a server that repeats a tool's name means one tool.
//! - Lists are continued by lists; an item with an `index` continues the item of that index.
//! - Objects are merged, member by member.
//! - Of a choice's other members, and of the chunk's own, the last word counts.
//!
//! Nothing else is certain, and what is not certain is an error: no client gets an answer with text
//! missing. Values stay as they were spelt, so that 20-digit seeds, `1.00` and halves of surrogate
//! pairs come out as they went in, and an answer takes about as much memory as it has bytes.

use std::{collections::BTreeMap, fmt::Write as _};

use kvwarden_policy::cost::Usage;

use super::{
    event,
    json::{self, Json, Kind, Malformed},
};

/// Highest index of a choice: a request has at most 128 of them.
const MAX_INDEX: u64 = 127;

/// Most members of an object, and most items with an index in a list. Each is looked for among those
/// before it, and a model that calls 1,024 tools at once repeats itself.
const MAX_MEMBERS: usize = 1024;

/// What a member takes beside its key and its value.
const OVERHEAD: usize = 64;

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

type Merged = Result<(), Unmergeable>;

/// It has more members than are looked through.
fn too_many(key: &str) -> Unmergeable {
    Unmergeable::Members(short(key))
}

/// An answer in the making.
#[derive(Default)]
pub struct Assembly {
    /// The chunk's own members, as they were spelt.
    head: Object,
    choices: BTreeMap<u64, Object>,
    length: usize,
}

/// Members in the order in which they were first said. Keys are as they are spelt.
#[derive(Default)]
struct Object(Vec<(Box<str>, Part)>);

/// A value in the making.
enum Part {
    Null,
    /// As it was spelt.
    Word(String),
    /// The inside of a string that goes on.
    Text(String),
    Object(Object),
    List(Vec<Items>),
}

enum Items {
    /// As they were spelt, with commas between them.
    Run(String),
    Indexed(u64, Part),
}

/// Where a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a choice, beside the message. The last word counts.
    Choice,
    /// In the message.
    Message,
    /// In llama.cpp's own form of the answer.
    Verbose,
}

impl Place {
    /// Only the last word counts for this member. Of llama.cpp's own form the rest is the same for all
    /// of an answer, lists of settings among them.
    fn replaces(self, key: &str) -> bool {
        self == Self::Verbose && !["content", "tokens", "completion_probabilities"].contains(&key)
    }
}

/// Strings that the next chunk continues: text of all kinds, and data that comes in pieces (audio).
fn is_continued(key: &str, place: Place) -> bool {
    event::is_text(key) || (key == "data" && place == Place::Message)
}

// === impl Assembly ===

impl Assembly {
    /// Adds what one event says.
    ///
    /// # Errors
    /// When it cannot be told what the answer is with it.
    pub fn add(&mut self, event: &[u8]) -> Merged {
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
    #[expect(
        clippy::len_without_is_empty,
        reason = "nobody asks whether an answer in the making is empty"
    )]
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
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
            choice.add_choice(&mut Json::of(raw), &mut self.length)
        })
    }

    /// The whole answer, with `usage` as it was counted over all choices.
    ///
    /// # Errors
    /// When it cannot be told what the answer is.
    pub fn finish(mut self, usage: Option<Usage>) -> Result<Vec<u8>, Unmergeable> {
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

/// The first member of that name of an object that was read before.
fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    // It ends with the first that is found; there is no other way for it to fail.
    let _ = Json::of(object).object(|json, key| {
        let value = json.value()?;
        if key == name {
            found = Some(value);
            return Err(Malformed);
        }
        Ok(())
    });
    found
}

/// Enough of a key for a log.
fn short(key: &str) -> String {
    key.chars().take(64).collect()
}

// === impl Object ===

impl Object {
    fn get(&self, key: &str) -> Option<&Part> {
        self.0
            .iter()
            .find(|(known, _)| &**known == key)
            .map(|(_, part)| part)
    }

    fn get_mut(&mut self, key: &str) -> Option<&mut Part> {
        self.0
            .iter_mut()
            .find(|(known, _)| &**known == key)
            .map(|(_, part)| part)
    }

    /// The value of a member; `null` if it was not said yet.
    fn part(&mut self, key: &str, length: &mut usize) -> Result<&mut Part, Unmergeable> {
        let known = self.0.iter().position(|(known, _)| &**known == key);
        let at = known.unwrap_or(self.0.len());
        if known.is_none() {
            if at == MAX_MEMBERS {
                return Err(too_many(key));
            }
            *length += key.len() + OVERHEAD;
            self.0.push((key.into(), Part::Null));
        }
        Ok(&mut self.0[at].1)
    }

    /// Gives a member that value.
    fn set(&mut self, key: &str, part: Part) {
        match self.get_mut(key) {
            Some(known) => *known = part,
            None => self.0.push((key.into(), part)),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|part| !part.is_empty())
    }

    fn add_choice(&mut self, json: &mut Json<'_>, length: &mut usize) -> Merged {
        json.object(|json, key| match &**key {
            "delta" | "message" => {
                let message = self.part("message", length)?;
                message.merge(json, "message", Place::Message, length)
            }
            key => {
                let part = self.part(key, length)?;
                part.merge(json, key, Place::Choice, length)
            }
        })
    }

    fn merge(&mut self, json: &mut Json<'_>, place: Place, length: &mut usize) -> Merged {
        json.object(|json, key| {
            let part = self.part(key, length)?;
            if place.replaces(key) {
                part.say(json.value()?, length);
                return Ok(());
            }
            part.merge(json, key, place, length)
        })
    }

    /// What every message of a whole answer has, and none of what only a chunk has.
    fn complete_message(&mut self, keeps_index: bool) {
        if !self.has("role") {
            self.0.retain(|(key, _)| &**key != "role");
            let role = Part::Word("\"assistant\"".to_owned());
            self.0.insert(0, ("role".into(), role));
        }
        // llama.cpp opens with `null`, and says so in the end only beside what stands for a text.
        let instead = ["tool_calls", "function_call", "refusal", "audio"];
        if matches!(self.get("content"), None | Some(Part::Null)) {
            let has_other = instead.iter().any(|key| self.has(key));
            let empty = Part::Text(String::new());
            self.set("content", if has_other { Part::Null } else { empty });
        }
        if let Some(Part::List(calls)) = self.get_mut("tool_calls")
            && !keeps_index
        {
            for call in calls {
                if let Items::Indexed(_, Part::Object(call)) = call {
                    call.0.retain(|(key, _)| &**key != "index");
                }
            }
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (at, (key, part)) in self.0.into_iter().enumerate() {
            write_key(out, at, &key);
            part.write(out);
        }
        out.push(b'}');
    }
}

// === impl Part ===

impl Part {
    fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Word(word) => json::is_empty(word),
            Self::Text(text) => text.is_empty(),
            Self::Object(object) => object.0.is_empty(),
            Self::List(list) => list.is_empty(),
        }
    }

    /// It is what it was said to be last.
    fn say(&mut self, raw: &str, length: &mut usize) {
        match self {
            Self::Word(word) if word == raw => {}
            Self::Word(word) => {
                *length = *length - word.len() + raw.len();
                word.clear();
                word.push_str(raw);
            }
            Self::Null | Self::Text(_) | Self::Object(_) | Self::List(_) => {
                *length += raw.len();
                *self = Self::Word(raw.to_owned());
            }
        }
    }

    /// What comes next continues it.
    fn merge(
        &mut self,
        json: &mut Json<'_>,
        key: &str,
        place: Place,
        length: &mut usize,
    ) -> Merged {
        let kind = json.kind()?;
        if kind == Kind::Null {
            json.value()?;
            return Ok(());
        }
        if let Self::Null = self {
            *self = match kind {
                Kind::String if is_continued(key, place) => Self::Text(String::new()),
                Kind::Null | Kind::Bool | Kind::Number | Kind::String => {
                    self.say(json.value()?, length);
                    return Ok(());
                }
                Kind::List => Self::List(Vec::new()),
                Kind::Object => Self::Object(Object::default()),
            };
        }
        match (self, kind) {
            (Self::Text(text), Kind::String) => grow(text, json.string()?, length),
            (Self::Object(object), Kind::Object) => object.merge(json, place, length)?,
            (Self::List(list), Kind::List) => {
                json.list(|json| add_item(list, json.value()?, key, place, length))?;
            }
            (word @ Self::Word(_), Kind::Bool | Kind::Number | Kind::String) => {
                word.say_again(json.value()?, key, place, length)?;
            }
            _ => return Err(Unmergeable::Kind(short(key))),
        }
        Ok(())
    }

    /// A word where one was said before.
    fn say_again(&mut self, raw: &str, key: &str, place: Place, length: &mut usize) -> Merged {
        let Self::Word(word) = self else {
            return Ok(());
        };
        // Some servers leave a name empty when it was said, and some make up an id for each chunk.
        let is_idle = json::is_empty(raw) || (key == "id" && !json::is_empty(word));
        if word == raw || is_idle {
            return Ok(());
        }
        let is_string = |raw| json::kind_of(raw) == Kind::String;
        let may_be_text = is_string(word) || is_string(raw) || is_continued(key, place);
        if place == Place::Message && may_be_text && !json::is_empty(word) {
            return Err(Unmergeable::Twice(short(key)));
        }
        self.say(raw, length);
        Ok(())
    }

    fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Word(word) => out.extend_from_slice(word.as_bytes()),
            Self::Text(text) => {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
            }
            Self::Object(object) => object.write(out),
            Self::List(list) => {
                out.push(b'[');
                for (at, items) in list.into_iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    match items {
                        Items::Run(run) => out.extend_from_slice(run.as_bytes()),
                        Items::Indexed(_, part) => part.write(out),
                    }
                }
                out.push(b']');
            }
        }
    }
}

fn add_item(
    list: &mut Vec<Items>,
    raw: &str,
    key: &str,
    place: Place,
    length: &mut usize,
) -> Merged {
    if place == Place::Message && json::kind_of(raw) == Kind::Object {
        if let Some(index) = member(raw, "index").and_then(|raw| raw.parse().ok()) {
            let part = indexed(list, index, key, length)?;
            return part.merge(&mut Json::of(raw), key, place, length);
        }
        // It says by nothing which call it is a part of.
        let is_nameless = member(raw, "id").is_none_or(json::is_empty);
        if key == "tool_calls" && is_nameless && !list.is_empty() {
            return Err(Unmergeable::Twice(short(key)));
        }
    }
    match list.last_mut() {
        Some(Items::Run(run)) => {
            grow(run, ",", length);
            grow(run, raw, length);
        }
        Some(Items::Indexed(..)) | None => {
            *length += raw.len();
            list.push(Items::Run(raw.to_owned()));
        }
    }
    Ok(())
}

/// The item of that index, which is new if there was none.
fn indexed<'a>(
    list: &'a mut Vec<Items>,
    index: u64,
    key: &str,
    length: &mut usize,
) -> Result<&'a mut Part, Unmergeable> {
    let is_it = |items: &Items| matches!(items, Items::Indexed(at, _) if *at == index);
    let at = list.iter().rposition(is_it).unwrap_or(list.len());
    if at == MAX_MEMBERS {
        return Err(too_many(key));
    }
    if at == list.len() {
        *length += OVERHEAD;
        list.push(Items::Indexed(index, Part::Object(Object::default())));
    }
    match &mut list[at] {
        Items::Indexed(_, part) => Ok(part),
        Items::Run(_) => Err(too_many(key)),
    }
}

/// Long text grows by a quarter: twice the room would be held for an answer of 64 MB.
fn grow(text: &mut String, more: &str, length: &mut usize) {
    const LONG: usize = 1 << 20;
    *length += more.len();
    if text.capacity() - text.len() < more.len() && text.len() > LONG {
        text.reserve_exact(more.len() + text.len() / 4);
    }
    text.push_str(more);
}

fn write_key(out: &mut Vec<u8>, at: usize, key: &str) {
    if at > 0 {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
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
                message.complete_message(keeps_index);
            }
        }
        choice.write(out);
    }
    out.push(b']');
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
