//! Any answer in any pieces, and any chunks against a merge of trees.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    super::assemble::Assembly,
    assemble::{text_of, value_of},
};

/// A whole answer, as an engine would give it unstreamed.
fn answer() -> impl Strategy<Value = Value> {
    let call = (super::text(), super::text()).prop_map(|(name, arguments)| {
        json!({"id": format!("i{name}"), "type": "function", "function": {"name": name, "arguments": arguments}})
    });
    let choice = (
        super::text(),
        prop::option::of(super::text()),
        prop::collection::vec(call, 0..3),
        prop::option::of(prop::collection::vec(super::text(), 0..4)),
        prop::sample::select(vec!["stop", "length"]),
    );
    prop::collection::vec(choice, 1..4).prop_map(|choices| {
        let choices = choices.into_iter().enumerate().map(|(index, (content, reasoning, calls, tokens, reason))| {
            let logprobs = tokens.map(|tokens| {
                json!({"content": tokens.into_iter().map(|token| json!({"token": token})).collect::<Vec<_>>()})
            });
            json!({"index": index,
                "message": {"role": "assistant", "content": content, "reasoning": reasoning, "tool_calls": calls},
                "logprobs": logprobs, "finish_reason": reason})
        });
        json!({"id": "c", "object": "chat.completion", "created": 1, "choices": choices.collect::<Vec<_>>()})
    })
}

/// Cuts a text into pieces of one to `most` characters, as often empty ones between them.
fn pieces(text: &str, most: usize) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let pieces = chars.chunks(most).map(|piece| piece.iter().collect());
    let mut pieces: Vec<String> = pieces.collect();
    pieces.insert(pieces.len() / 2, String::new());
    pieces
}

/// The deltas of one choice, text first.
fn deltas(choice: &Value, most: usize) -> Vec<Value> {
    let (index, message) = (&choice["index"], &choice["message"]);
    let delta = |delta: Value| json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
    let first = json!({"role": "assistant", "content": null, "reasoning": null, "tool_calls": []});
    let mut all = vec![delta(first)];
    for name in ["reasoning", "content"] {
        let text = message[name].as_str();
        let pieces = text.into_iter().flat_map(|text| pieces(text, most));
        all.extend(pieces.map(|piece| delta(json!({name: piece}))));
    }
    for (at, call) in message["tool_calls"].as_array().unwrap().iter().enumerate() {
        let arguments = call["function"]["arguments"].as_str().unwrap();
        for piece in pieces(arguments, most) {
            let mut part = call.clone();
            part["index"] = json!(at);
            part["function"]["arguments"] = json!(piece);
            all.push(delta(json!({"tool_calls": [part]})));
        }
    }
    if let Some(tokens) = choice["logprobs"]["content"].as_array() {
        for some in tokens.chunks(most).chain([[].as_slice()]) {
            all.push(json!({"index": index, "delta": {}, "logprobs": {"content": some}, "finish_reason": null}));
        }
    }
    all.push(json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": choice["finish_reason"]}));
    all
}

/// The chunks of all choices, in an order that `picks` decides.
fn chunks(answer: &Value, most: usize, picks: &[prop::sample::Index]) -> Vec<Value> {
    let choices = answer["choices"].as_array().unwrap().iter();
    let mut left: Vec<_> = choices
        .map(|choice| deltas(choice, most).into_iter().peekable())
        .collect();
    let mut chunks = Vec::new();
    for pick in picks.iter().cycle() {
        left.retain_mut(|deltas| deltas.peek().is_some());
        if left.is_empty() {
            break;
        }
        let at = pick.index(left.len());
        let delta = left[at].next().unwrap();
        chunks.push(
            json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "choices": [delta]}),
        );
    }
    chunks
}

/// The rule of the module, on trees.
fn slow(chunks: &[Value]) -> Option<Value> {
    let mut choices: Vec<Map<String, Value>> = Vec::new();
    for chunk in chunks {
        let choice = chunk["choices"][0].as_object()?;
        let index = usize::try_from(choice["index"].as_u64()?).unwrap();
        while choices.len() <= index {
            choices.push(Map::new());
        }
        for (key, value) in choice {
            let key = if key == "delta" { "message" } else { key };
            let whole = choices[index].entry(key).or_insert(Value::Null);
            slow_merge(whole, value, key, key == "message")?;
        }
    }
    let list = choices.into_iter().map(Value::Object);
    Some(Value::Array(list.collect()))
}

fn slow_merge(whole: &mut Value, more: &Value, key: &str, is_message: bool) -> Option<()> {
    const TEXTS: [&str; 4] = ["content", "text", "reasoning", "arguments"];
    match (&mut *whole, more) {
        (_, Value::Null) => {}
        (Value::Null, Value::Object(_)) => {
            *whole = json!({});
            slow_merge(whole, more, key, is_message)?;
        }
        (Value::Null, Value::Array(_)) => {
            *whole = json!([]);
            slow_merge(whole, more, key, is_message)?;
        }
        (Value::Null, _) => *whole = more.clone(),
        (Value::String(text), Value::String(more)) if TEXTS.contains(&key) => text.push_str(more),
        (Value::Object(object), Value::Object(more)) => {
            for (key, value) in more {
                slow_merge(
                    object.entry(key).or_insert(Value::Null),
                    value,
                    key,
                    is_message,
                )?;
            }
        }
        (Value::Array(list), Value::Array(more)) => {
            for item in more {
                let index = item
                    .get("index")
                    .and_then(Value::as_u64)
                    .filter(|_| is_message);
                let known = list.iter_mut().find(|known| {
                    index.is_some() && known.get("index").and_then(Value::as_u64) == index
                });
                match known {
                    Some(known) => slow_merge(known, item, key, is_message)?,
                    None => list.push(item.clone()),
                }
            }
        }
        (Value::String(text), Value::Array(_) | Value::Object(_))
            if TEXTS.contains(&key) && text.is_empty() =>
        {
            *whole = Value::Null;
            slow_merge(whole, more, key, is_message)?;
        }
        (Value::Array(_) | Value::Object(_), Value::String(text)) if text.is_empty() => {}
        (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => {
            return None;
        }
        (Value::String(_), _) if TEXTS.contains(&key) => return None,
        (known, more) if known == more => {}
        (_, Value::String(more)) if more.is_empty() => {}
        (Value::String(known), _) if known.is_empty() => *whole = more.clone(),
        (known, _)
            if is_message && (known.is_string() || more.is_string() || TEXTS.contains(&key)) =>
        {
            return None;
        }
        _ => *whole = more.clone(),
    }
    Some(())
}

fn delta_value() -> impl Strategy<Value = Value> {
    let leaf = || super::scalar();
    let keys = || {
        prop::sample::select(vec![
            "content",
            "reasoning",
            "arguments",
            "name",
            "list",
            "a",
            "index",
        ])
    };
    let object = move |value: BoxedStrategy<Value>| {
        prop::collection::btree_map(keys().prop_map(str::to_owned), value, 0..4)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    };
    leaf().boxed().prop_recursive(4, 16, 4, move |inner| {
        prop_oneof![
            object(inner.clone()),
            prop::collection::vec(inner, 0..3).prop_map(Value::from)
        ]
    })
}

proptest! {
    #[test]
    fn an_answer_comes_out_whole_however_its_text_is_cut(
        answer in answer(),
        most in 1_usize..9,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 1..30),
    ) {
        let chunks = chunks(&answer, most, &picks);
        prop_assert_eq!(&value_of(&chunks)["choices"], &answer["choices"]);
    }

    #[test]
    fn any_chunks_are_merged_as_trees_are(
        said in prop::collection::vec((0..2_u64, delta_value(), delta_value(), delta_value()), 1..5),
    ) {
        let first = json!({"choices": [{"index": 0, "text": ""}]});
        let chunks: Vec<Value> = [first].into_iter().chain(said.into_iter().map(|(index, text, delta, other)| {
            json!({"choices": [{"index": index, "text": text, "delta": {"x": delta}, "other": other}]})
        })).collect();
        let built = text_of(&chunks);
        match slow(&chunks) {
            None => prop_assert!(built.is_err(), "{built:?}"),
            Some(right) => {
                let mut built: Value = serde_json::from_str(&built.unwrap()).unwrap();
                let mut right = right;
                for choice in right.as_array_mut().unwrap().iter_mut().chain(built["choices"].as_array_mut().unwrap()) {
                    let choice = choice.as_object_mut().unwrap();
                    choice.shift_remove("finish_reason");
                    if let Some(Value::Object(message)) = choice.get_mut("message") {
                        message.retain(|key, _| key == "x");
                    }
                    choice.retain(|key, value| key != "message" || *value != json!({}));
                }
                prop_assert_eq!(&built["choices"], &right);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(events in prop::collection::vec(super::json_like(), 1..4)) {
        let mut assembly = Assembly::default();
        let event = |data: &Vec<u8>| [b"data: ", data.as_slice()].concat();
        if events.iter().all(|data| assembly.add(&event(data)).is_ok())
            && let Ok(answer) = assembly.finish(None)
        {
            let answer = serde_json::from_slice::<&serde_json::value::RawValue>(&answer);
            prop_assert!(answer.is_ok());
        }
    }
}
