//! Cuts an answer into the events of a stream, for a client that asked for one and an engine that
//! gave none.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    super::limits::MAX_ANSWER,
    json::{self, Json, Kind, Malformed},
};

/// Members of an answer that every chunk of it repeats.
const REPEATED: [&str; 4] = ["id", "created", "model", "system_fingerprint"];

/// Members of a choice that belong to its text. All others belong to its end.
const OF_THE_TEXT: [&str; 3] = ["logprobs", "token_ids", "prompt_token_ids"];

/// An object's members, as they are spelt.
type Members<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// The events of an answer: each choice, its end, the usage if it is wanted, and `[DONE]`. None if it
/// is no answer with choices, or has so many that what they repeat is more than may be held.
#[must_use]
pub fn as_events(answer: &[u8], with_usage: bool) -> Option<Vec<Bytes>> {
    read(answer, with_usage).ok().flatten()
}

fn read(answer: &[u8], with_usage: bool) -> Result<Option<Vec<Bytes>>, Malformed> {
    let mut json = Json::new(answer)?;
    let members = members(&mut json)?;
    json.end()?;
    let choices = choices(get(&members, "choices").unwrap_or("[]"))?;
    if choices.is_empty() {
        return Ok(None);
    }
    let head = head(&members);
    if head.len() * 2 * choices.len() > MAX_ANSWER {
        return Ok(None);
    }
    let mut events = Vec::with_capacity(2 * choices.len() + 2);
    for (at, choice) in choices.iter().enumerate() {
        let Some(text) = text_of(choice)? else {
            return Ok(None);
        };
        let is_last = at + 1 == choices.len();
        let rest = if is_last {
            rest(&members)
        } else {
            String::new()
        };
        events.push(event(&head, &text, ""));
        events.push(event(&head, &end_of(choice), &rest));
    }
    if let Some(usage) = get(&members, "usage").filter(|raw| with_usage && *raw != "null") {
        events.push(event(&head, "", &format!("\"usage\":{usage}")));
    }
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Ok(Some(events))
}

fn members<'a>(json: &mut Json<'a>) -> Result<Members<'a>, Malformed> {
    let mut members = Vec::new();
    json.object(|json, key| {
        members.push((key.clone(), json.value()?));
        Ok::<_, Malformed>(())
    })?;
    Ok(members)
}

fn get<'a>(members: &Members<'a>, name: &str) -> Option<&'a str> {
    let found = members.iter().find(|(key, _)| key == name);
    found.map(|(_, raw)| *raw)
}

fn choices(raw: &str) -> Result<Vec<Members<'_>>, Malformed> {
    let mut choices = Vec::new();
    Json::of(raw).list(|json| {
        choices.push(members(json)?);
        Ok::<_, Malformed>(())
    })?;
    Ok(choices)
}

/// What every chunk begins with.
fn head(members: &Members<'_>) -> String {
    let object = get(members, "object").unwrap_or("\"chat.completion\"");
    let object = if object == "\"chat.completion\"" {
        "\"chat.completion.chunk\""
    } else {
        object
    };
    let mut head = format!("\"object\":{object}");
    for (key, raw) in members.iter().filter(|(key, _)| REPEATED.contains(&&**key)) {
        push(&mut head, key, raw);
    }
    head
}

/// What else the answer says, which its last choice's end takes along, as with llama.cpp.
fn rest(members: &Members<'_>) -> String {
    let is_rest =
        |key: &str| !REPEATED.contains(&key) && !["object", "choices", "usage"].contains(&key);
    let mut rest = String::new();
    for (key, raw) in members {
        if is_rest(key) && !json::is_empty(raw) {
            push(&mut rest, key, raw);
        }
    }
    rest
}

/// A choice without its end; none if it has no text of either kind.
fn text_of(choice: &Members<'_>) -> Result<Option<String>, Malformed> {
    let mut out = index_of(choice);
    match (get(choice, "message"), get(choice, "text")) {
        (Some(message), _) if json::kind_of(message) == Kind::Object => {
            push(&mut out, "delta", &delta(message)?);
        }
        (None, Some(text)) => push(&mut out, "text", text),
        _ => return Ok(None),
    }
    for name in OF_THE_TEXT {
        if let Some(raw) = get(choice, name) {
            push(&mut out, name, raw);
        }
    }
    push(&mut out, "finish_reason", "null");
    Ok(Some(out))
}

fn end_of(choice: &Members<'_>) -> String {
    let mut out = index_of(choice);
    if get(choice, "message").is_some() {
        push(&mut out, "delta", "{}");
    } else {
        push(&mut out, "text", "\"\"");
    }
    for (key, raw) in choice {
        let is_of_the_text = ["index", "message", "text"].contains(&&**key);
        if !is_of_the_text && !OF_THE_TEXT.contains(&&**key) {
            push(&mut out, key, raw);
        }
    }
    out
}

fn index_of(choice: &Members<'_>) -> String {
    format!("\"index\":{}", get(choice, "index").unwrap_or("0"))
}

/// A message as a delta: with its tool calls numbered.
fn delta(message: &str) -> Result<String, Malformed> {
    let mut out = String::from("{");
    for (key, raw) in members(&mut Json::of(message))? {
        if key == "tool_calls" && json::kind_of(raw) == Kind::List {
            push(&mut out, &key, &numbered(raw)?);
        } else {
            push(&mut out, &key, raw);
        }
    }
    out.push('}');
    Ok(out)
}

fn numbered(calls: &str) -> Result<String, Malformed> {
    let mut out = String::from("[");
    let mut index = 0;
    Json::of(calls).list(|json| {
        if index > 0 {
            out.push(',');
        }
        out.push('{');
        let call = members(json)?;
        if get(&call, "index").is_none_or(|raw| raw == "null") {
            push(&mut out, "index", &index.to_string());
        }
        for (key, raw) in call
            .iter()
            .filter(|(key, raw)| key != "index" || *raw != "null")
        {
            push(&mut out, key, raw);
        }
        out.push('}');
        index += 1;
        Ok::<_, Malformed>(())
    })?;
    out.push(']');
    Ok(out)
}

/// Adds a member, and a comma in front of it unless it is the first.
fn push(out: &mut String, key: &str, raw: &str) {
    if !out.ends_with('{') && !out.is_empty() {
        out.push(',');
    }
    out.extend(["\"", key, "\":", raw]);
}

fn event(head: &str, choice: &str, rest: &str) -> Bytes {
    let choices = if choice.is_empty() {
        String::new()
    } else {
        format!("{{{choice}}}")
    };
    let comma = if rest.is_empty() { "" } else { "," };
    let text = format!("data: {{{head},\"choices\":[{choices}]{comma}{rest}}}");
    // JSON may have line ends between its members, never in its strings; an event has none.
    Bytes::from(text.replace(['\n', '\r'], " ") + "\n\n")
}
