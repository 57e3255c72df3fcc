use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::{
        event::{self, Event, data},
        usage::*,
    },
    value,
};

/// What a client gets of these events.
fn passed(events: &[&str]) -> Vec<String> {
    let (mut unasked, mut out) = (Unasked::default(), Vec::new());
    for event in events {
        let event = Bytes::from(format!("data: {event}\n\n"));
        match event::read(&event) {
            Event::Chunk(chunk) => {
                out.extend(unasked.pass(event.clone(), &chunk).into_iter().flatten());
            }

            Event::Comment | Event::Done | Event::Failed(_) => {
                out.extend(unasked.held());
                out.push(event);
            }
        }
    }
    out.extend(unasked.held());
    let text = |event: Bytes| String::from_utf8(event.to_vec()).unwrap();
    let lines = out.into_iter().map(text);
    lines
        .map(|line| line.strip_prefix("data: ").unwrap().trim_end().to_owned())
        .collect()
}

const TEXT: &str =
    r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#;
const END: &str = r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}] }"#;
const USAGE: &str = r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;

#[test]
fn what_rides_on_the_usage_is_said_with_the_end_of_its_choice() {
    let timed = r#"{"id":"c","choices":[],"usage":{},"system_fingerprint":"f","timings":{"n":1.00},"metrics":null}"#;
    let end = END.replace(" }", r#" ,"system_fingerprint":"f","timings":{"n":1.00}}"#);
    assert_eq!(
        passed(&[TEXT, END, timed, "[DONE]"]),
        [TEXT, &end, "[DONE]"]
    );
    let known = END.replace(" }", r#","system_fingerprint":"f"}"#);
    let end = known.replace("\"f\"}", r#""f","timings":{"n":1.00}}"#);
    assert_eq!(passed(&[&known, timed]), [end]);
}

#[test]
fn each_choice_gets_what_came_behind_it() {
    let end = |index: u32, more: &str| {
        format!(r#"{{"choices":[{{"index":{index},"delta":{{}},"finish_reason":"stop"}}]{more}}}"#)
    };
    let usage = |n: u32| format!(r#"{{"choices":[],"usage":{{}},"timings":{{"n":{n}}}}}"#);
    let came = [end(1, ""), usage(1), TEXT.to_owned(), end(0, ""), usage(0)];
    let came: Vec<&str> = came.iter().map(String::as_str).collect();
    let timed = |index: u32| end(index, &format!(r#","timings":{{"n":{index}}}"#));
    assert_eq!(passed(&came), [timed(1), TEXT.to_owned(), timed(0)]);
}

#[test]
fn nothing_is_lost_or_changes_its_place_where_no_usage_comes() {
    let both =
        r#"{"choices":[{"index":0,"text":"","finish_reason":"stop"}],"usage":{},"timings":{}}"#;
    // Usage with every chunk, and before any.
    let more = r#"{"choices":[],"usage":{},"x":1}"#;
    let said = r#"{"choices":[],"x":1}"#;
    let ended = r#"{"choices":[{"index":0,"text":"","finish_reason":"stop"}],"timings":{},"x":1}"#;
    let without = both.replace(r#","usage":{}"#, "");
    for (came, right) in [
        (vec![TEXT, END], vec![TEXT, END]),
        (vec![TEXT, END, USAGE, "[DONE]"], vec![TEXT, END, "[DONE]"]),
        (
            vec![END, TEXT, END, "[DONE]"],
            vec![END, TEXT, END, "[DONE]"],
        ),
        (vec![END, END], vec![END, END]),
        (
            vec![END, "null", r#"{"error":"x"}"#],
            vec![END, "null", r#"{"error":"x"}"#],
        ),
        (vec![both, "[DONE]"], vec![without.as_str(), "[DONE]"]),
        (vec![USAGE, TEXT], vec![TEXT]),
        (vec![more, TEXT, both, more], vec![said, TEXT, ended]),
    ] {
        assert_eq!(passed(&came), right, "{came:?}");
    }
}

#[test]
fn usage_is_taken_out_and_all_else_stays_as_it_was() {
    let without = |event: &str| without_usage(&Bytes::copy_from_slice(event.as_bytes()));
    for (event, right) in [
        (
            "data: {\"choices\":[{}],\"usage\":{\"a\":1}, \"x\":1.00}\n\n",
            "data: {\"choices\":[{}], \"x\":1.00}\n\n",
        ),
        (
            "id: 7\r\ndata:{\"usage\":{}, \"choices\":[{}]}\r\n\r\n",
            "id: 7\r\ndata:{ \"choices\":[{}]}\r\n\r\n",
        ),
        (
            "data: {\"timings\":{\"n\":1}, \"choices\":[] , \"usage\":{}}\n\n",
            "data: {\"timings\":{\"n\":1}, \"choices\":[] }\n\n",
        ),
        (
            "data: {\"choices\":[],\"us\\u0061ge\":{},\"system_fingerprint\":\"f\"}\n\n",
            "data: {\"choices\":[],\"system_fingerprint\":\"f\"}\n\n",
        ),
        (
            "data: {\"choices\":[1],\ndata: \"usage\":{}\ndata: }\n: c\n\n",
            ": c\ndata: {\"choices\":[1]}\n\n",
        ),
        ("data: {\"choices\":[]}\n\n", "data: {\"choices\":[]}\n\n"),
        ("data: not JSON\n\n", "data: not JSON\n\n"),
        (": ping\n\n", ": ping\n\n"),
    ] {
        assert_eq!(without(event).unwrap(), right, "{event}");
    }
    for event in [
        r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{}}"#,
        r#"data: {"usage":{},"choices":null,"system_fingerprint":null}"#,
        r#"data: {"usage":{}}"#,
    ] {
        assert_eq!(without(event), None, "{event}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(events in prop::collection::vec(super::json_like(), 1..4)) {
        let mut unasked = Unasked::default();
        for event in events {
            let event = Bytes::from([b"data: ".as_slice(), &event, b"\n\n"].concat());
            let _ = without_usage(&event);
            if let Event::Chunk(chunk) = event::read(&event) {
                let _ = unasked.pass(event.clone(), &chunk);
            }
        }
    }

    #[test]
    fn without_its_usage_an_event_says_all_else(
        before in prop::collection::vec((super::text(), value()), 0..3),
        after in prop::collection::vec((super::text(), value()), 0..3),
        is_pretty in any::<bool>(),
    ) {
        let mut members: serde_json::Map<_, _> = before.into_iter().collect();
        members.insert("usage".to_owned(), json!({"prompt_tokens": 1}));
        members.extend(after);
        members.insert("more".to_owned(), json!(1));
        let event = Value::Object(members.clone());
        let text = if is_pretty {
            let lines = serde_json::to_string_pretty(&event).unwrap();
            lines.lines().map(|line| format!("data: {line}\n")).collect()
        } else {
            format!("data: {event}\n")
        };
        members.shift_remove("usage");
        let left = without_usage(&Bytes::from(text + "\n")).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Value>(&data(&left)).unwrap(), Value::Object(members));
    }
}

#[test]
fn what_is_said_with_an_end_again_and_again_is_not_held_for_ever() {
    let mut events = vec![END.to_owned()];
    events.extend((0..200).map(|key| {
        format!(r#"{{"id":"c","choices":[],"k{key}":1,"usage":{{"prompt_tokens":1}}}}"#)
    }));
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let of = |count: usize| passed(&events[..=count]);
    assert_eq!(of(128).len(), 1, "all is said with the end");
    let all = of(200);
    assert_eq!(all[0], of(128)[0]);
    assert_eq!(all.len(), 73);
}
