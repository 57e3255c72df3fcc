//! Each reader against a slow one that is right at a glance, and both forms of engines' own answers.

mod assemble;
mod engines;
mod event;
mod json;
mod merge;
mod split;
mod sse;
mod usage;

use proptest::prelude::*;
use serde_json::{Map, Value};

/// Text of all lengths in UTF-8, and what JSON has to escape.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z ]{0,12}",
        1 => "[\\x00-\\x1f\"\\\\/é中😀]{0,4}",
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Halves, which serde_json reads as they are; it does not read all numbers to the last bit.
        (-1000_i32..1000).prop_map(|number| Value::from(f64::from(number) / 2.0)),
        text().prop_map(Value::from),
    ]
}

/// Keys that mean something here, and some that don't.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "choices", "usage", "error", "errors", "index", "delta", "message", "text", "role",
            "content", "finish_reason", "logprobs", "tool_calls", "prompt_tokens",
            "completion_tokens", "total_tokens", "object",
        ]).prop_map(str::to_owned),
        1 => text(),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Bytes that look like JSON more often than not.
fn json_like() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[\\[\\]{}\",:\\\\u0-9a-f.eE+\\- \nrtsln]{0,24}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..24),
        (value(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(value, at, byte)| {
            let mut text = value.to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            text
        }),
        value().prop_map(|value| serde_json::to_vec_pretty(&value).unwrap()),
    ]
}
