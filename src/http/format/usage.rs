//! Takes the usage out of a stream whose client did not ask for it. We ask for it, to know what a request
//! used.
//!
//! An engine that is asked for usage says with it what it says with the end of a choice otherwise:
//! llama.cpp its timings, vLLM its fingerprint. Here that goes back to the end of the choice, and the
//! stream is the one that the engine gives to who does not ask. A chunk without choices would be none of
//! it: many clients read `choices[0]` of every chunk.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;

use super::{
    super::limits::{MAX_ANSWER, MAX_CHOICES},
    event::{self, Chunk},
    json::{self, Json, Kind, Malformed},
    sse,
};

/// What every chunk of an answer says.
const ENVELOPE: [&str; 5] = ["id", "object", "created", "model", "choices"];

/// A stream on its way to such a client.
#[derive(Default)]
pub struct Unasked {
    /// The end of a choice, until it is seen whether something comes to be said with it. Engines send the
    /// two at once.
    end: Option<Bytes>,
    /// How often something was said with an end.
    completed: u64,
}

// === impl Unasked ===

impl Unasked {
    /// What goes on to the client when `event` comes.
    pub fn pass(&mut self, event: Bytes, chunk: &Chunk) -> [Option<Bytes>; 2] {
        let end = self.end.take();
        let left = if chunk.has_usage {
            without_usage(&event)
        } else {
            Some(event)
        };
        if chunk.is_usage_only {
            return self.complete(end, left);
        }
        if chunk.finished.is_empty() {
            return [end, left];
        }
        self.end = left;
        [end, None]
    }

    /// What was said with a usage is said with the end, which is held on: a usage may come again, of each
    /// choice at most. What comes more often, or is more than may be held, is not held.
    fn complete(&mut self, end: Option<Bytes>, more: Option<Bytes>) -> [Option<Bytes>; 2] {
        let (Some(held), Some(said)) = (&end, &more) else {
            self.end = end;
            return [None, more];
        };
        self.completed += 1;
        if self.completed <= MAX_CHOICES && held.len() + said.len() <= MAX_ANSWER {
            self.end = with_more(held, said);
        }
        if self.end.is_some() {
            return [None, None];
        }
        [end, more]
    }

    /// What is held, which comes before anything else that goes on.
    pub fn held(&mut self) -> Option<Bytes> {
        self.end.take()
    }
}

/// The event without its usage, all else as it was. None if nothing is left that says something.
#[must_use]
pub fn without_usage(event: &Bytes) -> Option<Bytes> {
    let data = event::data(event);
    let Ok(Some(found)) = find_usage(&data) else {
        return Some(event.clone());
    };
    if !found.has_more {
        return None;
    }
    Some(with_data_changed(event, data, found.cut, ""))
}

/// The end of a choice, and with it what `more` says beside what every chunk says. None if it cannot be
/// said with it.
fn with_more(end: &Bytes, more: &Bytes) -> Option<Bytes> {
    let (data, more) = (event::data(end), event::data(more));
    let mut known = Vec::new();
    let mut json = Json::new(&data).ok()?;
    let read = json.object(|json, key| {
        known.push(key.clone());
        json.value().map(drop)
    });
    read.ok()?;
    let brace = json.place() - 1;
    let mut added = String::new();
    let read = Json::new(&more).ok()?.object(|json, key| {
        let raw = json.value()?;
        if !json::is_empty(raw) && !ENVELOPE.contains(&&**key) && !known.contains(key) {
            added.extend([",\"", key, "\":", raw]);
        }
        Ok::<_, Malformed>(())
    });
    read.ok()?;
    let added = added.replace(['\n', '\r'], " ");
    drop(known);
    Some(with_data_changed(end, data, brace..brace, &added))
}

/// An event, a part of whose data is something else.
fn with_data_changed(event: &Bytes, data: Cow<'_, [u8]>, cut: Range<usize>, by: &str) -> Bytes {
    let mut out = Vec::with_capacity(event.len() + by.len());
    match data {
        Cow::Borrowed(data) => {
            let begin = data.as_ptr().addr() - event.as_ptr().addr();
            out.extend_from_slice(&event[..begin + cut.start]);
            out.extend_from_slice(by.as_bytes());
            out.extend_from_slice(&event[begin + cut.end..]);
        }
        Cow::Owned(mut data) => {
            data.splice(cut, by.bytes());
            write_lines(&mut out, event, &data);
        }
    }
    out.into()
}

/// The event's other lines, and `data` in place of its own.
fn write_lines(out: &mut Vec<u8>, event: &[u8], data: &[u8]) {
    let is_other = |line: &&[u8]| !line.is_empty() && sse::data_of(line).is_none();
    for line in sse::lines(event).filter(is_other) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    for line in data.split(|byte| *byte == b'\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// Where an event's usage stands.
struct Found {
    /// It, and the comma that is not needed without it.
    cut: Range<usize>,
    /// Something else is said.
    has_more: bool,
}

fn find_usage(data: &[u8]) -> Result<Option<Found>, Malformed> {
    let mut json = Json::new(data)?;
    if json.kind()? != Kind::Object {
        return Ok(None);
    }
    let (mut cut, mut has_more) = (None, false);
    // Where the member begins that comes next: behind the last one's comma.
    let (mut begin, mut last_end) = (json.place() + 1, None);
    json.object(|json, key| {
        let raw = json.value()?;
        let end = json.place();
        if key == "usage" {
            // The last member takes the comma in front of it along, any other the one behind.
            let is_last = data.get(end) == Some(&b'}');
            cut = Some(match last_end {
                Some(last_end) if is_last => last_end..end,
                _ if is_last => begin..end,
                _ => begin..end + 1,
            });
        } else {
            let is_said = !json::is_empty(raw);
            has_more |= is_said && (key == "choices" || !ENVELOPE.contains(&&**key));
            last_end = Some(end);
        }
        begin = end + 1;
        Ok::<_, Malformed>(())
    })?;
    json.end()?;
    Ok(cut.map(|cut| Found { cut, has_more }))
}
