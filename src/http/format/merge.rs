//! Values in the making: what a chunk says, added to what those before it said.
//!
//! They are kept as text, since a tree would take twenty times as much; only objects and the items of
//! lists that are told apart by an index are taken apart.

use super::{
    assemble::{Merged, Unmergeable},
    event,
    json::{self, Json, Kind, Malformed},
};

/// Most members of an object, and most items with an index in a list. Each is looked for among those
/// before it, and a model that calls 1,024 tools at once repeats itself.
const MAX_MEMBERS: usize = 1024;

/// What a member takes beside its key and its value.
const OVERHEAD: usize = 64;

/// Members in the order in which they were first said. Keys are as they are spelt.
#[derive(Default)]
pub(super) struct Object(pub(super) Vec<(Box<str>, Part)>);

/// A value in the making.
pub(super) enum Part {
    Null,
    /// As it was spelt.
    Word(String),
    /// The inside of a string that goes on.
    Text(String),
    Object(Object),
    List(Vec<Items>),
}

pub(super) enum Items {
    /// As they were spelt, with commas between them.
    Run(String),
    Indexed(u64, Part),
}

/// Where a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
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

/// It has more members than are looked through.
fn too_many(key: &str) -> Unmergeable {
    Unmergeable::Members(short(key))
}

/// The first member of that name of an object that was read before.
pub(super) fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
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
pub(super) fn short(key: &str) -> String {
    key.chars().take(64).collect()
}

// === impl Object ===

impl Object {
    pub(super) fn get(&self, key: &str) -> Option<&Part> {
        self.0
            .iter()
            .find(|(known, _)| &**known == key)
            .map(|(_, part)| part)
    }

    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Part> {
        self.0
            .iter_mut()
            .find(|(known, _)| &**known == key)
            .map(|(_, part)| part)
    }

    /// The value of a member; `null` if it was not said yet.
    pub(super) fn part(&mut self, key: &str, length: &mut usize) -> Result<&mut Part, Unmergeable> {
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
    pub(super) fn set(&mut self, key: &str, part: Part) {
        match self.get_mut(key) {
            Some(known) => *known = part,
            None => self.0.push((key.into(), part)),
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|part| !part.is_empty())
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

    pub(super) fn write(self, out: &mut Vec<u8>) {
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
    pub(super) fn say(&mut self, raw: &str, length: &mut usize) {
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
    pub(super) fn merge(
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
        // An empty text says no more, and no less, than `null`.
        if let (Self::Text(text), Kind::List | Kind::Object) = (&*self, kind)
            && text.is_empty()
        {
            *self = Self::Null;
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
            (Self::List(_) | Self::Object(_), Kind::String) if json.string()?.is_empty() => {}
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

    pub(super) fn write(self, out: &mut Vec<u8>) {
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

pub(super) fn write_key(out: &mut Vec<u8>, at: usize, key: &str) {
    if at > 0 {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}
