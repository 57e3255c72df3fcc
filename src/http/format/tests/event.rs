use kvwarden_policy::cost::Usage;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::event::*, json_like, value};

fn chunk(event: &str) -> Chunk {
    let Event::Chunk(chunk) = read(event.as_bytes()) else {
        panic!("no chunk: {event}");
    };
    chunk
}

fn choice(choice: &str) -> Chunk {
    chunk(&format!("data: {{\"choices\":[{choice}]}}\n\n"))
}

fn error(event: &str) -> Option<String> {
    match read(event.as_bytes()) {
        Event::Failed(error) => Some(error.get().to_owned()),
        Event::Comment | Event::Done | Event::Chunk(_) => None,
    }
}

fn choices(indices: &[u32]) -> Choices {
    let mut all = Choices::default();
    indices.iter().for_each(|index| all.insert((*index).into()));
    all
}

#[test]
fn role_and_empty_content_are_no_first_token() {
    for delta in [
        r#"{"role":"assistant","content":""}"#,
        r#"{"role":"assistant","content":null}"#,
        r#"{"role":"assistant","content":"","reasoning_content":null,"tool_calls":[]}"#,
    ] {
        let chunk = choice(&format!(
            r#"{{"index":0,"delta":{delta},"finish_reason":null}}"#
        ));
        assert_eq!(chunk.tokens, 0, "{delta}");
        assert!(chunk.is_opening, "{delta}");
    }
}

#[test]
fn text_reasoning_tool_calls_and_unknown_shapes_are_tokens() {
    for said in [
        r#"{"delta":{"content":"\n"}}"#,
        r#"{"delta":{"reasoning_content":"hm"}}"#,
        r#"{"delta":{"tool_calls":[{"index":0}]}}"#,
        r#"{"text":"a"}"#,
        r#"{"delta":{"role":"assistant","refusal":"no"}}"#,
        r#"{"delta":{"role":"assistant","content":[{"type":"thinking","thinking":"h"}]}}"#,
        r#"{"delta":{"content":{"parts":["a"]}}}"#,
        r#"{"delta":{"content":1},"finish_reason":3}"#,
        r#"{"delta":{"images":[{"url":"data:image/png;base64,AAAAAAAAAAAAAAAAAAAAAAAA"}]}}"#,
        r#"{"delta":{"content":""},"logprobs":{"content":[{"token":"x"}]}}"#,
        r#"{"delta":"a"}"#,
        r#""a""#,
    ] {
        let chunk = choice(said);
        assert_eq!((chunk.tokens, chunk.is_opening), (1, false), "{said}");
    }
}

#[test]
fn what_is_not_json_is_part_of_a_stream_and_no_answer() {
    for data in ["{\"choices\":[", "hello", "[]", "1", "\u{1}"] {
        assert_eq!(chunk(&format!("data: {data}\n\n")).tokens, 1, "{data}");
    }
    assert_eq!(read_answer(b"<html>").unwrap_err(), NotJson);
    assert!(read_answer(br#"{"choices":[]} "#).is_ok());
}

#[test]
fn tokens_of_an_event_are_counted_by_its_text_choice_by_choice() {
    let words = "word ".repeat(400);
    let said = |text: &str| choice(&json!({"index": 0, "delta": {"content": text}}).to_string());
    assert_eq!(said(&words).tokens, 500);
    assert_eq!(said("0123456").tokens, 1);
    // Six bytes as they are spelt, three as text.
    assert_eq!(choice(r#"{"text":"\u4e2d\u4e2d\u4e2d\u4e2d"}"#).tokens, 3);
    let call = json!({"delta": {"tool_calls": [{"function": {"arguments": words}}]}});
    assert_eq!(choice(&call.to_string()).tokens, 500);
    assert_eq!(
        choice(r#"{"index":0,"text":"a"},{"index":1,"text":"b"}"#).tokens,
        2
    );
    // An image has no text, however long it is.
    let image = json!({"delta": {"images": [{"image_url": {"url": words}}]}});
    assert_eq!(choice(&image.to_string()).tokens, 1);
}

#[test]
fn choices_that_begin_and_end_are_told() {
    let first = choice(r#"{"index":0,"text":"a","finish_reason":null}"#);
    assert_eq!((first.begun, first.finished), (choices(&[0]), choices(&[])));
    let both = choice(r#"{"index":0,"text":"a"},{"index":127,"text":"","finish_reason":"stop"}"#);
    assert_eq!(
        (both.begun, both.finished),
        (choices(&[0, 127]), choices(&[127]))
    );
    let (odd, none) = (
        choice(r#"{"text":"","finish_reason":3}"#),
        choice(r#"{"text":"","finish_reason":""}"#),
    );
    assert_eq!((odd.finished, none.finished), (choices(&[0]), choices(&[])));
    assert!(both.begun.contain(first.begun) && !first.begun.contain(both.begun));
}

#[test]
fn usage_of_each_engine_is_read_and_numbers_as_they_come() {
    let usage = |usage: &str| chunk(&format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n"));
    let used = |prompt_tokens, cached_tokens, completion_tokens| {
        Some(Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
        })
    };
    for (said, right) in [
        (
            r#"{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}"#,
            used(9, 4, 3),
        ),
        (
            r#"{"prompt_tokens":7.0,"completion_tokens":3.0,"prompt_tokens_details":null}"#,
            used(7, 0, 3),
        ),
        (
            r#"{"prompt_tokens":7e0,"completion_tokens":null,"total_tokens":10}"#,
            used(7, 0, 3),
        ),
        (r#"{"prompt_tokens":5,"total_tokens":5}"#, used(5, 0, 0)),
        (r#"{"prompt_tokens":7,"completion_tokens":-1}"#, None),
        (r#"{"prompt_tokens":null,"completion_tokens":null}"#, None),
        (r#"{"prompt_tokens":"7","completion_tokens":[]}"#, None),
        (
            r#"{"prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":9}}"#,
            used(3, 3, 1),
        ),
        ("{}", None),
    ] {
        let chunk = usage(said);
        assert_eq!(
            (chunk.usage, chunk.has_usage, chunk.is_usage_only),
            (right, true, true),
            "{said}"
        );
    }
    let none = chunk(r#"data: {"choices":[{"text":"x"}],"usage":null}"#);
    assert_eq!((none.usage, none.has_usage), (None, false));
    let beside = chunk(
        r#"data: {"choices":[{"text":""}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
    );
    assert!(beside.usage.is_some() && !beside.is_usage_only);
    assert!(chunk(r#"data: {"choices":null,"usage":{}}"#).is_usage_only);
}

#[test]
fn request_given_up_by_the_engine_is_no_whole_answer() {
    assert!(choice(r#"{"text":"","finish_reason":"abort"}"#).is_aborted);
    assert!(!choice(r#"{"text":"","finish_reason":"stop"}"#).is_aborted);
    let Ok(Event::Chunk(whole)) =
        read_answer(br#"{"choices":[{"message":{"content":"a"},"finish_reason":"abort"}]}"#)
    else {
        panic!("no answer");
    };
    assert!(whole.is_aborted);
}

#[test]
fn comments_and_the_end_are_told_apart() {
    for comment in [
        ": ping\n\n",
        "data:\n\n",
        "data: null\n\n",
        "event: ping\n\n",
        "\n",
        "id: 1",
    ] {
        assert!(
            matches!(read(comment.as_bytes()), Event::Comment),
            "{comment:?}"
        );
    }
    for done in [
        "data: [DONE]\n\n",
        "data:[DONE]",
        "id: 1\r\ndata: [DONE]\r\n\r\n",
        "data: [DONE] \n",
    ] {
        assert!(matches!(read(done.as_bytes()), Event::Done), "{done:?}");
    }
}

#[test]
fn what_the_sdks_take_for_an_error_is_one() {
    for (event, right) in [
        (r#"{"error":{"code":503}}"#, Some(r#"{"code":503}"#)),
        (
            r#"{"error":"no credits","choices":[{"text":"a"}]}"#,
            Some(r#""no credits""#),
        ),
        (
            r#"{"errors":[{"message":"a"},{"message":"b"}]}"#,
            Some(r#"{"message":"a"}"#),
        ),
        (
            r#"{"object":"error","message":"m","code":400}"#,
            Some(r#"{"object":"error","message":"m","code":400}"#),
        ),
        (r#"{"error":null,"choices":[{"text":"a"}]}"#, None),
        (r#"{"error":"","choices":[{"text":"a"}]}"#, None),
        (r#"{"error":false,"choices":[{"text":"a"}]}"#, None),
        (r#"{"errors":[],"choices":[{"text":"a"}]}"#, None),
        (r#"{"errors":["late"],"choices":[{"text":"a"}]}"#, None),
    ] {
        assert_eq!(
            error(&format!("data:{event}\r\n\r\n")).as_deref(),
            right,
            "{event}"
        );
    }
    let answer = read_answer(br#"{"error":{"message":"no credits left"}}"#);
    assert!(matches!(answer, Ok(Event::Failed(_))));
}

#[test]
fn data_of_several_lines_is_one_text() {
    let event = "\u{feff}: comment\r\nevent: message\r\ndata: {\"choices\":[\r\ndata:{\"text\":\"a\"}]\r\ndata\r\ndata: }\r\nid: 1\r\n\r\n";
    assert_eq!(chunk(event).tokens, 1);
    let failed = error("data: {\"error\":\ndata: {\"code\":503}}\n\n");
    assert_eq!(failed.as_deref(), Some("{\"code\":503}"));
}

/// What is said, by a tree. Text counts wherever its key is one of these.
fn slow_tokens(choice: &Value) -> u32 {
    fn text(key: &str, value: &Value) -> usize {
        match value {
            Value::String(text) if is_text(key) => text.len(),
            Value::Array(items) => items.iter().map(|item| text(key, item)).sum(),
            Value::Object(members) => members.iter().map(|(key, value)| text(key, value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        }
    }
    let Value::Object(choice) = choice else {
        return 1;
    };
    let (mut bytes, mut has_any) = (0, false);
    for (key, value) in choice {
        let said = match (key.as_str(), value) {
            ("delta" | "message", Value::Object(delta)) => delta.clone(),
            ("delta" | "message" | "text", value) => {
                [("text".to_owned(), value.clone())].into_iter().collect()
            }
            ("logprobs" | "token_ids", value) => {
                has_any |= !slow_is_empty(value);
                continue;
            }
            _ => continue,
        };
        for (key, value) in said.iter().filter(|(key, _)| *key != "role") {
            has_any |= !slow_is_empty(value);
            bytes += text(key, value);
        }
    }
    let bytes = u32::try_from(bytes / 4).unwrap();
    if has_any { bytes.max(1) } else { 0 }
}

fn slow_is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

fn slow_is_error(event: &Value) -> bool {
    let is_falsy = |error: &Value| [json!(null), json!(false), json!(""), json!(0)].contains(error);
    let has_choice = event["choices"]
        .as_array()
        .is_some_and(|list| !list.is_empty());
    let others = !slow_is_empty(&event["errors"]) || event["object"] == "error";
    event.get("error").is_some_and(|error| !is_falsy(error)) || (others && !has_choice)
}

fn choice_value() -> impl Strategy<Value = Value> {
    let delta = prop::collection::vec((super::key(), value()), 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()));
    (0..3_u32, delta, value(), any::<bool>()).prop_map(|(index, delta, text, is_chat)| {
        if is_chat {
            json!({"index": index, "delta": delta})
        } else {
            json!({"index": index, "text": text})
        }
    })
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(event in json_like()) {
        let _ = read(&event);
        let _ = read_answer(&event);
    }

    #[test]
    fn says_of_a_chunk_what_a_tree_says(
        said in prop::collection::vec(choice_value(), 0..3),
        more in prop::collection::vec((super::key(), value()), 0..3),
    ) {
        let mut event: serde_json::Map<_, _> = more.into_iter().collect();
        event.insert("choices".to_owned(), said.clone().into());
        let event = Value::Object(event);
        let bytes = format!("data: {event}\n\n");
        match read(bytes.as_bytes()) {
            Event::Failed(_) => prop_assert!(slow_is_error(&event)),
            Event::Chunk(chunk) => {
                prop_assert!(!slow_is_error(&event));
                prop_assert_eq!(chunk.tokens, said.iter().map(slow_tokens).sum::<u32>());
                prop_assert_eq!(chunk.has_usage, event["usage"].is_object());
                let index = |choice: &Value| u32::try_from(choice["index"].as_u64().unwrap()).unwrap();
                let indices: Vec<u32> = said.iter().map(index).collect();
                prop_assert_eq!(chunk.begun, choices(&indices));
            }
            Event::Comment | Event::Done => prop_assert!(false, "{event}"),
        }
    }

    #[test]
    fn event_that_is_as_the_one_before_says_what_it_says_by_itself(
        events in prop::collection::vec((0..SHAPES.len(), prop_oneof![".{0,12}", "[a-z\"\\\\\r\n]{0,4}"]), 1..12),
        spells_out in any::<bool>(),
    ) {
        let mut reader = Reader::default();
        for (shape, text) in events {
            let text = if spells_out { Value::from(text).to_string() } else { format!("\"{text}\"") };
            let event = SHAPES[shape].replace("TEXT", &text);
            let (alone, in_turn) = (read(event.as_bytes()), reader.read(event.as_bytes()));
            prop_assert_eq!(format!("{alone:?}"), format!("{in_turn:?}"), "{}", event);
        }
    }
}

/// Events of streams, most with a text.
const SHAPES: [&str; 9] = [
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":TEXT},\"finish_reason\":null}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":TEXT}}]}\n\n",
    "data: {\"choices\":[{\"index\":1,\"text\":TEXT,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\r\n\r\n",
    "data: {\"choices\":[{\"delta\":{\"content\":TEXT,\"refusal\":\"no\"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":TEXT}},{\"index\":1,\"delta\":{}}]}\n\n",
    "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":{\"arguments\":TEXT}}]}}]}\n\n",
    "data: {\"error\":TEXT}\n\n",
    "data: {\"choices\":\ndata: [{\"text\":TEXT}]}\n\n",
    ": ping\n\n",
];
