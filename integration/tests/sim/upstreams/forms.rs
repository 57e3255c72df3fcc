//! How an answer is written is seen in what comes, not in what was asked for or what it calls itself.

use kvwarden_integration::{Asked, Framing, Says, Upstream, sse};
use serde_json::{Value, json};

use super::{Odd, answer, ask, chunk, event, finish, heard, odd, role, said, text, usual};
use crate::{CHAT, with};

#[test]
fn events_are_events_whatever_their_content_type_and_json_is_json() {
    let events = || Says::events(usual());
    let odd = odd(vec![
        ("plain", events().typed("text/plain")),
        ("untyped", events().typed("")),
        (
            "odd-case",
            events().typed("Text/Event-Stream;charset=UTF-8"),
        ),
        ("called-json", events().typed("application/json")),
        (
            "blank-first",
            Says::events([["\n\n", &usual().concat()].concat()]),
        ),
        (
            "marked",
            Says::events([["\u{feff}", &usual().concat()].concat()]),
        ),
        ("json", Says::json(&answer())),
        (
            "json-in-chunks",
            Says::json(&answer()).framed(Framing::Chunked),
        ),
        (
            "json-called-events",
            Says::json(&answer()).typed("text/event-stream"),
        ),
        ("json-untyped", Says::json(&answer()).typed("")),
    ]);
    for model in [
        "plain",
        "untyped",
        "odd-case",
        "called-json",
        "blank-first",
        "marked",
        "json",
        "json-in-chunks",
        "json-called-events",
        "json-untyped",
    ] {
        let whole = odd.whole(model).expect(200);
        assert_eq!(
            whole.header("content-type"),
            Some("application/json"),
            "{model}"
        );
        assert_eq!(said(&whole), "hello hello ", "{model}: {whole}");
        assert_eq!(
            whole.json()["choices"][0]["message"]["role"],
            "assistant",
            "{model}"
        );
        assert_eq!(whole.json()["usage"]["completion_tokens"], 3, "{model}");

        let stream = odd.streamed(model).expect(200);
        let kind = stream.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/event-stream"), "{model}: {kind}");
        let body = String::from_utf8_lossy(&stream.body).replace('\u{feff}', "");
        let chunks = sse::chunks(body.trim_start().as_bytes());
        assert_eq!(sse::text(&chunks), "hello hello ", "{model}: {stream}");
        let told = chunks.iter().any(|chunk| chunk["usage"].is_object());
        assert!(!told, "{model}: nobody asked for usage: {stream}");
        assert_eq!(odd.count(model), 2, "{model}");
    }
    // Ten models, twice each.
    assert_eq!(odd.used("default"), (7 * 20, 3 * 20));
}

#[test]
fn server_is_asked_as_the_client_asks() {
    let odd = odd(vec![
        ("json", Says::json(&answer())),
        ("events", Says::events(usual())),
    ]);
    let with_tools = with(ask("json"), "tools", json!([]));
    for ask in [
        ask("json"),
        with_tools,
        with(ask("json"), "prompt_logprobs", 1),
    ] {
        let reply = odd.server.client().post(CHAT, &ask).expect(200);
        assert_eq!(
            reply.json(),
            answer(),
            "byte for byte but for the order of members"
        );
    }
    let _ = odd.streamed("events").expect(200);
    let streams = |asked: &Asked| asked.body["stream"] == true;
    assert!(!odd.upstream.asked("json").iter().any(streams));
    assert!(odd.upstream.asked("events").iter().all(streams));
}

/// A server that refuses a field, and answers as it is asked otherwise.
fn refuses(field: &'static str, words: &'static str) -> Odd {
    let says = move |asked: &Asked| {
        if asked.body.get(field).is_some_and(|value| *value != false) {
            let error = json!({ "error": { "message": words, "type": "x", "code": null } });
            return Says::json(&error).status(400);
        }
        match asked.body["stream"] == true {
            true => Says::events([role(), text("hello "), finish(), super::DONE.to_owned()]),
            false => Says::json(&answer()),
        }
    };
    Odd::start("", Upstream::start(&["m"], says))
}

#[test]
fn server_that_refuses_stream_options_is_asked_without_them_unless_the_client_wants_them() {
    let odd = refuses("stream_options", "unknown field stream_options");
    assert_eq!(said(&odd.whole("m").expect(200)), "hello hello ");
    assert_eq!(odd.count("m"), 1, "they mean nothing without a stream");
    let stream = odd.streamed("m").expect(200);
    assert_eq!(sse::text(&sse::chunks(&stream.body)), "hello ");
    let ask = with(ask("m"), "stream", true);
    let no = with(
        ask.clone(),
        "stream_options",
        json!({ "include_usage": false }),
    );
    let _ = odd.server.client().post(CHAT, &no).expect(200);
    let yes = with(ask, "stream_options", json!({ "include_usage": true }));
    let error = odd.server.client().post(CHAT, &yes).expect_error(400);
    assert_eq!(error["message"], "unknown field stream_options");
}

#[test]
fn server_that_refuses_something_else_is_asked_once() {
    let odd = refuses("temperature", "temperature has to be 1");
    let hot = with(with(ask("m"), "stream", true), "temperature", 2);
    let error = odd.server.client().post(CHAT, &hot).expect_error(400);
    assert_eq!(error["message"], "temperature has to be 1");
    assert_eq!(odd.count("m"), 1);
    let odd = refuses("stream", "streaming is not supported");
    assert_eq!(said(&odd.whole("m").expect(200)), "hello hello ");
    let error = odd.streamed("m").expect_error(400);
    assert_eq!(error["message"], "streaming is not supported");
    assert_eq!(odd.count("m"), 2);
}

/// The event, its data over several lines.
fn over_lines(one: &str) -> String {
    let json: Value = serde_json::from_str(&one[6..]).expect("an event");
    let pretty = serde_json::to_string_pretty(&json).expect("JSON");
    let lines = pretty.lines().map(|line| format!("data: {line}\n"));
    lines.collect::<String>() + "\n"
}

#[test]
fn events_may_be_written_in_any_way_that_the_standard_allows() {
    let lines = |end: &str| {
        usual()
            .iter()
            .map(|event| event.replace('\n', end))
            .collect::<Vec<_>>()
    };
    let many = usual().into_iter().map(|event| {
        let is_end = event == super::DONE;
        if is_end { event } else { over_lines(&event) }
    });
    let odd = odd(vec![
        ("many-lines", Says::events(many)),
        ("dos", Says::events(lines("\r\n"))),
        ("mac", Says::events(lines("\r"))),
        (
            "fields",
            Says::events(
                usual()
                    .iter()
                    .map(|event| format!("id: 1\nevent: message\n{event}")),
            ),
        ),
        ("one-packet", Says::events([usual().concat()])),
        (
            "no-blank",
            Says::events(
                usual()
                    .iter()
                    .map(|event| event.replacen("data: ", "data:", 1)),
            ),
        ),
    ]);
    for model in [
        "many-lines",
        "dos",
        "mac",
        "fields",
        "one-packet",
        "no-blank",
    ] {
        let whole = odd.whole(model).expect(200);
        assert_eq!(said(&whole), "hello hello ", "{model}: {whole}");
        let stream = odd.streamed(model).expect(200);
        assert!(!stream.text().contains("usage"), "{model}: {stream}");
        assert_eq!(odd.count(model), 2, "{model}");
    }
    assert_eq!(odd.streamed("one-packet").text(), heard());
}

#[test]
fn what_is_not_understood_is_part_of_the_answer_and_not_lost() {
    let said = |content: Value| chunk(&json!({ "content": content }), &Value::Null);
    let thinking = || said(json!([{ "type": "thinking", "thinking": "hm " }]));
    let odd_events = |odd: String| {
        let mut events = usual();
        events.insert(1, odd);
        Says::events(events)
    };
    let cases = [
        ("list", thinking()),
        ("object", said(json!({ "parts": ["hm "] }))),
        ("number", chunk(&json!({ "hm": 1 }), &Value::Null)),
        (
            "broken",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hm \n\n".to_owned(),
        ),
    ];
    let odd = odd(cases
        .iter()
        .map(|(name, event)| (*name, odd_events(event.clone())))
        .collect());
    for (model, event) in cases {
        let stream = odd.streamed(model).expect(200);
        assert!(stream.text().contains(&event), "{model}: {stream}");
        // All of it, or an error: never 200 with a part missing.
        let whole = odd.whole(model);
        assert!(
            whole.status == 502 || whole.text().contains("hm"),
            "{model}: {whole}"
        );
        assert_eq!(odd.count(model), 2, "{model}");
    }
}

#[test]
fn finish_reason_of_any_kind_ends_its_choice() {
    let odd_end =
        |reason: Value| Says::events([role(), text("hello "), chunk(&json!({}), &reason)]);
    let odd = odd(vec![
        ("number", odd_end(json!(3))),
        ("new-word", odd_end(json!("safety"))),
        ("object", odd_end(json!({ "type": "stop" }))),
    ]);
    for model in ["number", "new-word", "object"] {
        assert_eq!(said(&odd.whole(model).expect(200)), "hello ", "{model}");
        assert!(
            !odd.streamed(model).expect(200).text().contains("error"),
            "{model}"
        );
    }
}

/// The one message of an answer that consists of these parts.
fn message(odd: &Odd, model: &str) -> Value {
    let answer = odd.whole(model).expect(200).json();
    answer["choices"][0]["message"].clone()
}

fn chat_of<const N: usize>(parts: [String; N]) -> Says {
    let end = [finish(), super::DONE.to_owned()];
    Says::events([role()].into_iter().chain(parts).chain(end))
}

#[test]
fn strings_that_are_repeated_in_every_chunk_do_not_double() {
    let call = |function: Value| {
        let call = json!({ "index": 0, "id": "t", "type": "function", "function": function });
        chunk(&json!({ "tool_calls": [call] }), &Value::Null)
    };
    let details = |text: &str| {
        let details = json!({ "index": 0, "type": "reasoning.text", "format": "x", "text": text });
        chunk(&json!({ "reasoning_details": [details] }), &Value::Null)
    };
    let call = [
        call(json!({ "name": "f", "arguments": "{\"a\"" })),
        call(json!({ "name": "f", "arguments": ":1}" })),
    ];
    let odd = odd(vec![
        ("tools", chat_of(call)),
        ("details", chat_of([details("a"), details("b")])),
    ]);
    let function = message(&odd, "tools")["tool_calls"][0]["function"].clone();
    assert_eq!(function, json!({ "name": "f", "arguments": "{\"a\":1}" }));
    let details = message(&odd, "details")["reasoning_details"][0].clone();
    assert_eq!(details["format"], "x");
    assert_eq!(details["text"], "ab");
}

#[test]
fn characters_numbers_and_the_role_are_as_an_unstreamed_answer_has_them() {
    let half = |escaped: &str| text("?").replace('?', escaped);
    let big = "123456789012345678901234567890";
    let seeded = text("hello ").replacen("\"created\":1", &format!("\"created\":{big}"), 1);
    let odd = odd(vec![
        ("halves", chat_of([half("\\ud83d"), half("\\ude00")])),
        (
            "no-role",
            Says::events([text("hello "), finish(), super::DONE.to_owned()]),
        ),
        (
            "big",
            Says::events([seeded, finish(), super::DONE.to_owned()]),
        ),
    ]);
    assert_eq!(message(&odd, "halves")["content"], "\u{1f600}");
    assert_eq!(message(&odd, "no-role")["role"], "assistant");
    let whole = odd.whole("big").expect(200);
    // Whichever chunk it is taken from, it is a number that the server wrote.
    assert!(!whole.text().contains("e29"), "{whole}");
}

#[test]
fn usage_that_nobody_asked_for_is_taken_out_and_what_rode_on_it_stays() {
    let with_usage = |usage: Value, more: Value| {
        let mut event_data = json!({ "id": "c", "choices": [], "usage": usage });
        for (name, value) in more.as_object().into_iter().flatten() {
            event_data[name] = value.clone();
        }
        let mut events = usual();
        events[4] = event(&event_data);
        Says::events(events)
    };
    let floats = json!({ "prompt_tokens": 7.0, "completion_tokens": 3.0, "total_tokens": 10.0 });
    let nulls = json!({ "prompt_tokens": null, "completion_tokens": -1 });
    let odd = odd(vec![
        ("floats", with_usage(floats, json!({}))),
        ("nulls", with_usage(nulls, json!({}))),
        (
            "null-choices",
            with_usage(super::used(), json!({ "choices": null })),
        ),
        (
            "timings",
            with_usage(super::used(), json!({ "timings": { "predicted_n": 3 } })),
        ),
        (
            "fingerprint",
            with_usage(super::used(), json!({ "system_fingerprint": "fp" })),
        ),
    ]);
    for model in ["floats", "nulls", "null-choices"] {
        assert_eq!(odd.streamed(model).expect(200).text(), heard(), "{model}");
    }
    for (model, rest) in [
        ("timings", "\"timings\":{\"predicted_n\":3}"),
        ("fingerprint", "\"system_fingerprint\":\"fp\""),
    ] {
        let stream = odd.streamed(model).expect(200);
        assert!(stream.text().contains(rest), "{model}: {stream}");
        assert!(
            !stream.text().contains("prompt_tokens"),
            "{model}: {stream}"
        );
    }
    let ask = with(ask("floats"), "stream", true);
    let ask = with(ask, "stream_options", json!({ "include_usage": true }));
    let asked_for = odd.server.client().post(CHAT, &ask).expect(200);
    assert!(
        asked_for.text().contains("\"prompt_tokens\":7.0"),
        "{asked_for}"
    );
}
