use serde_json::{Value, json};

use super::super::{assemble::Assembly, event, split::as_events};

fn events(answer: &Value, with_usage: bool) -> Vec<String> {
    let events = as_events(answer.to_string().as_bytes(), with_usage).unwrap();
    let text = |event: &bytes::Bytes| String::from_utf8(event.to_vec()).unwrap();
    events.iter().map(text).collect()
}

fn chat() -> Value {
    json!({
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": null, "refusal": null,
                "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                "logprobs": null, "finish_reason": "tool_calls", "stop_reason": null},
            {"index": 1, "message": {"role": "assistant", "content": "a\nb"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "system_fingerprint": "f", "timings": {"n": 1},
    })
}

#[test]
fn a_chat_becomes_deltas_ends_usage_and_done() {
    let head = r#""object":"chat.completion.chunk","id":"c","created":1,"model":"m","system_fingerprint":"f""#;
    let call = r#"{"index":0,"id":"t","type":"function","function":{"name":"f","arguments":"{}"}}"#;
    assert_eq!(
        events(&chat(), true),
        [
            format!(r#"data: {{{head},"choices":[{{"index":0,"delta":{{"role":"assistant","content":null,"refusal":null,"tool_calls":[{call}]}},"logprobs":null,"finish_reason":null}}]}}"#),
            format!(r#"data: {{{head},"choices":[{{"index":0,"delta":{{}},"finish_reason":"tool_calls","stop_reason":null}}]}}"#),
            format!(r#"data: {{{head},"choices":[{{"index":1,"delta":{{"role":"assistant","content":"a\nb"}},"finish_reason":null}}]}}"#),
            format!(r#"data: {{{head},"choices":[{{"index":1,"delta":{{}},"finish_reason":"length"}}],"timings":{{"n":1}}}}"#),
            format!(r#"data: {{{head},"choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}}}"#),
            "data: [DONE]".to_owned(),
        ]
        .map(|event| event + "\n\n")
    );
    assert_eq!(events(&chat(), false).len(), 5);
}

#[test]
fn a_completion_becomes_text_and_its_end() {
    let answer = json!({"object": "text_completion", "choices": [
        {"index": 0, "text": "a", "logprobs": {"tokens": ["a"]}, "finish_reason": "stop"}]});
    assert_eq!(
        events(&answer, true),
        [
            "data: {\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\"a\",\"logprobs\":{\"tokens\":[\"a\"]},\"finish_reason\":null}]}\n\n",
            "data: {\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n",
            "data: [DONE]\n\n",
        ]
    );
}

#[test]
fn an_answer_written_over_several_lines_is_one_line_an_event() {
    let pretty = serde_json::to_vec_pretty(&chat()).unwrap();
    for event in as_events(&pretty, true).unwrap() {
        assert_eq!(event.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert!(matches!(
            event::read(&event),
            event::Event::Chunk(_) | event::Event::Done
        ));
    }
}

#[test]
fn what_is_no_answer_becomes_no_stream() {
    for other in [
        r#"{"choices":[]}"#,
        r#"{"choices":[1]}"#,
        r#"{"choices":[{"index":0}]}"#,
        r#"{"data":[]}"#,
        r#"{"error":{}}"#,
        "[]",
        "not JSON",
        "",
    ] {
        assert_eq!(as_events(other.as_bytes(), true), None, "{other}");
    }
}

#[test]
fn what_all_events_repeat_is_bounded() {
    let choice = r#"{"text":""},"#.repeat(1000) + r#"{"text":""}"#;
    let of = |id: usize| format!(r#"{{"id":"{}","choices":[{choice}]}}"#, "i".repeat(id));
    assert_eq!(as_events(of(1 << 16).as_bytes(), true), None);
    assert_eq!(as_events(of(10).as_bytes(), true).unwrap().len(), 2003);
}

#[test]
fn the_events_of_an_answer_are_put_together_to_it_again() {
    let mut assembly = Assembly::default();
    for event in as_events(chat().to_string().as_bytes(), true).unwrap() {
        assembly.add(&event).unwrap();
    }
    let again: Value = serde_json::from_slice(&assembly.finish(None).unwrap()).unwrap();
    assert_eq!(again, chat());
}
