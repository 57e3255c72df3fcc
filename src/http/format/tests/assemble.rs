use bytes::Bytes;
use kvwarden_policy::cost::Usage;
use serde_json::{Value, json};

use super::super::{
    assemble::{Assembly, Unmergeable},
    event::Reader,
};

/// The answer, which is the same whether each event is added by itself or those alike as one.
pub(super) fn assembled(events: &[Bytes]) -> Result<Vec<u8>, Unmergeable> {
    let singly = || {
        let mut assembly = Assembly::default();
        for event in events {
            assembly.add(event)?;
        }
        assembly.finish(None)
    };
    let as_one = || {
        let (mut assembly, mut reader) = (Assembly::default(), Reader::default());
        for event in events {
            let _ = reader.read(event);
            match reader.more(event) {
                Some(text) => assembly.add_more(event, text),
                None => assembly.add(event),
            }?;
        }
        assembly.finish(None)
    };
    let (singly, as_one) = (singly(), as_one());
    assert_eq!(singly, as_one);
    singly
}

/// What becomes of these data, as text.
pub(super) fn text_of<T: ToString>(chunks: &[T]) -> Result<String, Unmergeable> {
    let event = |chunk: &T| Bytes::from(format!("data: {}\n\n", chunk.to_string()));
    let events: Vec<Bytes> = chunks.iter().map(event).collect();
    Ok(String::from_utf8(assembled(&events)?).unwrap())
}

pub(super) fn value_of<T: ToString>(chunks: &[T]) -> Value {
    serde_json::from_str(&text_of(chunks).unwrap()).unwrap()
}

/// The message that these deltas make.
fn message(deltas: &[Value]) -> Result<Value, Unmergeable> {
    let chunk = |delta: &Value| json!({"choices": [{"index": 0, "delta": delta}]});
    let chunks: Vec<Value> = deltas.iter().map(chunk).collect();
    let whole: Value = serde_json::from_str(&text_of(&chunks)?).unwrap();
    Ok(whole["choices"][0]["message"].clone())
}

fn call(index: u64, more: &Value) -> Value {
    let mut call = json!({"index": index});
    call.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({"tool_calls": [call]})
}

#[test]
fn chat_deltas_become_one_message() {
    let chunk = |delta: Value, reason: Option<&str>| json!({"id": "c1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]});
    let answer = value_of(&[
        chunk(json!({"role": "assistant", "content": null}), None),
        chunk(json!({"content": "Hel"}), None),
        chunk(json!({"content": "lo"}), Some("stop")),
        json!({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
    ]);
    assert_eq!(
        answer,
        json!({"id": "c1", "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    );
}

#[test]
fn a_role_and_a_content_are_always_there() {
    let no_role = json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "中"}}]});
    let choice = json!({"index": 0, "message": {"role": "assistant", "content": "中"}, "finish_reason": null});
    assert_eq!(value_of(&[no_role])["choices"], json!([choice]));
    let only_role = message(&[json!({"role": "assistant", "content": null})]).unwrap();
    assert_eq!(only_role, json!({"role": "assistant", "content": ""}));
    let no_delta = json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "finish_reason": "stop"}]});
    let choice = json!({"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ""}});
    assert_eq!(value_of(&[no_delta])["choices"], json!([choice]));
    let text = json!({"object": "text_completion", "choices": [{"index": 0, "text": ""}]});
    assert_eq!(
        value_of(&[text])["choices"],
        json!([{"index": 0, "text": "", "finish_reason": null}])
    );
    let called = message(&[
        json!({"role": "assistant", "content": null}),
        call(
            0,
            &json!({"id": "t", "function": {"name": "f", "arguments": "{}"}}),
        ),
    ]);
    assert_eq!(called.unwrap()["content"], Value::Null);
}

#[test]
fn choices_logprobs_and_tool_calls_stay_apart() {
    let answer = value_of(&[
        json!({"choices": [{"index": 1, "text": "b", "logprobs": {"tokens": ["b"], "token_logprobs": [-1.50]}}]}),
        json!({"choices": [{"index": 0, "text": "a", "logprobs": null}]}),
        json!({"choices": [{"index": 1, "text": "B", "logprobs": {"tokens": ["B"], "token_logprobs": []}}]}),
        json!({"choices": [{"index": 1, "text": "", "logprobs": null, "finish_reason": "stop"}]}),
    ]);
    assert_eq!(
        answer["choices"],
        json!([
            {"index": 0, "text": "a", "logprobs": null, "finish_reason": null},
            {"index": 1, "text": "bB", "logprobs": {"tokens": ["b", "B"], "token_logprobs": [-1.5]}, "finish_reason": "stop"},
        ])
    );
    let calls = message(&[
        call(
            0,
            &json!({"id": "t", "type": "function", "function": {"name": "f", "arguments": "{\"a\""}}),
        ),
        call(
            1,
            &json!({"id": "u", "type": "function", "function": {"name": "g", "arguments": "{}"}}),
        ),
        call(
            0,
            &json!({"id": null, "function": {"name": null, "arguments": ":1}"}}),
        ),
    ]);
    assert_eq!(
        calls.unwrap()["tool_calls"],
        json!([
            {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
            {"id": "u", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ])
    );
}

#[test]
fn what_is_repeated_does_not_double() {
    let part = |arguments: &str| {
        call(
            0,
            &json!({"id": "t", "type": "function", "function": {"name": "f", "arguments": arguments}}),
        )
    };
    let anew = call(
        0,
        &json!({"id": "made up anew", "type": "", "function": {"name": "", "arguments": "}"}}),
    );
    let calls = message(&[part("{"), part(" "), anew]).unwrap();
    assert_eq!(
        calls["tool_calls"],
        json!([{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{ }"}}])
    );
    let thought = |text: &str| json!({"role": "assistant", "reasoning_details": [{"type": "reasoning.text", "text": text, "format": "x", "index": 0}]});
    assert_eq!(
        message(&[thought("h"), thought("h")]).unwrap()["reasoning_details"],
        json!([{"type": "reasoning.text", "text": "hh", "format": "x", "index": 0}])
    );
    let cited = json!({"citations": ["a", "b"], "choices": [{"index": 0, "text": "x"}]});
    assert_eq!(value_of(&[&cited, &cited])["citations"], json!(["a", "b"]));
}

#[test]
fn sglang_numbers_its_tool_calls_in_both_forms() {
    let chunk = json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "matched_stop": null,
        "delta": call(0, &json!({"id": "t", "function": {"name": "f", "arguments": ""}}))}]});
    let calls = &value_of(&[chunk])["choices"][0]["message"]["tool_calls"];
    assert_eq!(
        calls,
        &json!([{"index": 0, "id": "t", "function": {"name": "f", "arguments": ""}}])
    );
}

#[test]
fn nulls_and_empty_lists_stay_where_nothing_else_was_said() {
    let told = message(&[
        json!({"role": "assistant", "content": "", "refusal": null, "annotations": [], "reasoning": null}),
        json!({"content": "a", "reasoning": "b", "tool_calls": null}),
    ]);
    assert_eq!(
        told.unwrap(),
        json!({"role": "assistant", "content": "a", "refusal": null, "annotations": [], "reasoning": "b", "tool_calls": null})
    );
    let answer = value_of(&[
        json!({"service_tier": null, "choices": [{"index": 0, "text": "a", "stop_reason": null}]}),
        json!({"choices": [{"index": 0, "text": "", "stop_reason": 7, "finish_reason": "stop"}]}),
        json!({"choices": [{"index": 0, "text": "", "stop_reason": "x", "finish_reason": null}]}),
    ]);
    let choice = json!({"index": 0, "text": "a", "stop_reason": "x", "finish_reason": "stop"});
    assert_eq!(answer, json!({"service_tier": null, "choices": [choice]}));
}

#[test]
fn values_stay_as_they_were_spelt() {
    let answer = text_of(&[
        r#"{"seed":12345678901234567890123,"choices":[{"index":0,"text":"\ud83d","p":1.00}]}"#,
        r#"{"seed":12345678901234567890123,"choices":[{"index":0,"text":"\ude00\/\u00e9","p":1e0}]}"#,
    ]);
    assert_eq!(
        answer.unwrap(),
        r#"{"seed":12345678901234567890123,"choices":[{"index":0,"text":"\ud83d\ude00\/\u00e9","p":1e0,"finish_reason":null}]}"#
    );
}

#[test]
fn what_is_the_streams_own_is_left_out_and_llamacpps_own_form_is_whole() {
    let answer = value_of(&[
        json!({"choices": [{"index": 0, "text": "a"}], "obfuscation": "xyz", "prompt_progress": {"total": 3},
            "__verbose": {"content": "a", "tokens": [1], "stop": false, "settings": {"samplers": ["k"]}}}),
        json!({"choices": [{"index": 0, "text": "b"}],
            "__verbose": {"content": "b", "tokens": [2], "stop": true, "settings": {"samplers": ["k"]}}}),
    ]);
    assert_eq!(
        answer,
        json!({"choices": [{"index": 0, "text": "ab", "finish_reason": null}],
            "__verbose": {"content": "ab", "tokens": [1, 2], "stop": true, "settings": {"samplers": ["k"]}}})
    );
}

#[test]
fn an_empty_text_is_no_other_kind_of_content() {
    let part = json!({"type": "thinking", "thinking": "hm "});
    let list = |items: &[&Value]| json!({"role": "assistant", "content": items});
    let told = message(&[
        json!({"role": "assistant", "content": ""}),
        list(&[&part]),
        list(&[&part]),
        json!({"content": ""}),
    ]);
    assert_eq!(told.unwrap(), list(&[&part, &part]));
}

#[test]
fn what_cannot_be_merged_for_certain_is_an_error() {
    let kind = |key: &str| Err(Unmergeable::Kind(key.to_owned()));
    let twice = |key: &str| Err(Unmergeable::Twice(key.to_owned()));
    let call = |name: &str| call(0, &json!({"function": {"name": name}}));
    for (deltas, right) in [
        (
            [
                json!({"content": [{"type": "text"}]}),
                json!({"content": "a"}),
            ],
            kind("content"),
        ),
        (
            [json!({"content": "a"}), json!({"content": {"a": 1}})],
            kind("content"),
        ),
        (
            [json!({"content": "a"}), json!({"content": 1})],
            kind("content"),
        ),
        (
            [json!({"content": 1}), json!({"content": 2})],
            twice("content"),
        ),
        ([call("get_"), call("weather")], twice("name")),
        (
            [json!({"phase": "a"}), json!({"phase": "b"})],
            twice("phase"),
        ),
        (
            [
                json!({"tool_calls": [{"id": "t"}]}),
                json!({"tool_calls": [{"function": {"arguments": "{}"}}]}),
            ],
            twice("tool_calls"),
        ),
    ] {
        assert_eq!(message(&deltas), right, "{deltas:?}");
    }
    let first = r#"{"choices":[{"index":0,"text":"a"}]}"#;
    for (event, right) in [
        (r#"{"choices":[{"index":0,"te"#, Unmergeable::NotJson),
        ("hello", Unmergeable::NotJson),
        ("[1]", Unmergeable::NotAChunk),
        (r#"{"choices":{"0":{}}}"#, Unmergeable::NotAChunk),
        (r#"{"choices":["a"]}"#, Unmergeable::NotAChunk),
        (
            r#"{"choices":[{"index":128,"text":"a"}]}"#,
            Unmergeable::Index("128".to_owned()),
        ),
        (
            r#"{"choices":[{"index":-1,"text":"a"}]}"#,
            Unmergeable::Index("-1".to_owned()),
        ),
        (
            r#"{"choices":[{"index":2,"text":"a"}]}"#,
            Unmergeable::Missing(1),
        ),
    ] {
        assert_eq!(text_of(&[first, event]), Err(right), "{event}");
    }
    assert_eq!(text_of::<&str>(&[]), Err(Unmergeable::Missing(0)));
    let spoken = text_of(&[
        first,
        "null",
        "[DONE]",
        r#"{"choices":null}"#,
        r#"{"usage":{}}"#,
    ]);
    assert!(spoken.is_ok());
}

#[test]
fn members_and_items_that_are_searched_are_bounded() {
    let many = |count: usize, item: fn(usize) -> String| {
        (0..count).map(item).collect::<Vec<_>>().join(",")
    };
    let members = |count| {
        format!(
            r#"{{"choices":[{{"index":0,"x":{{{}}}}}]}}"#,
            many(count, |at| format!("\"{at}\":1"))
        )
    };
    let items = |count| {
        format!(
            r#"{{"choices":[{{"index":0,"delta":{{"a":[{}]}}}}]}}"#,
            many(count, |at| format!("{{\"index\":{at}}}"))
        )
    };
    for chunk in [members(1024), items(1024)] {
        assert!(text_of(&[chunk]).is_ok());
    }
    for chunk in [members(1025), items(1025)] {
        assert!(matches!(text_of(&[chunk]), Err(Unmergeable::Members(_))));
    }
}

#[test]
fn usage_counted_over_all_choices_replaces_the_last_ones() {
    let usage = Usage {
        prompt_tokens: 5,
        cached_tokens: 0,
        completion_tokens: 4,
    };
    for (told, right) in [
        (
            r#"{"prompt_tokens":5.0, "completion_tokens":2,"total_tokens":7,"x":1.0}"#,
            r#"{"prompt_tokens":5.0, "completion_tokens":4,"total_tokens":9,"x":1.0}"#,
        ),
        (r#"{"prompt_tokens":null}"#, r#"{"prompt_tokens":5}"#),
        ("{}", "{}"),
    ] {
        let mut assembly = Assembly::default();
        let event = format!("data: {{\"choices\":[{{\"text\":\"\"}}],\"usage\":{told}}}\n\n");
        assembly.add(event.as_bytes()).unwrap();
        let answer = String::from_utf8(assembly.finish(Some(usage)).unwrap()).unwrap();
        assert!(
            answer.ends_with(&format!("\"usage\":{right}}}")),
            "{answer}"
        );
    }
}

#[test]
fn length_is_that_of_the_answer() {
    let mut assembly = Assembly::default();
    let event = json!({"choices": [{"index": 0, "text": "0123456789"}]});
    for _ in 0..10_000 {
        assembly
            .add(format!("data: {event}\n\n").as_bytes())
            .unwrap();
    }
    assert!(
        assembly.len() > 100_000 && assembly.len() < 101_000,
        "{}",
        assembly.len()
    );
    assert!(assembly.finish(None).unwrap().len() < 101_000);
}
