//! Streams: what the engine sends is what the client gets, when it is sent.

pub(crate) use kvwarden_integration::sse::assert_one_error_at_the_end;
use kvwarden_integration::{Act, Server, Stub, sse};
use serde_json::{Value, json};

use crate::{CHAT, TINY, streamed, with};

#[test]
fn stream_tells_role_text_end_and_done() {
    let server = Server::start(TINY);
    let mut answer = server.exchange(CHAT, "t", &streamed("tiny", 12)).answer();
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").unwrap_or_default().to_owned();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let chunks = sse::chunks(&answer.rest().expect("a whole stream"));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(!sse::text(&chunks).is_empty());
    let last = chunks
        .last()
        .map(|chunk| &chunk["choices"][0]["finish_reason"]);
    assert_eq!(last, Some(&json!("length")));
}

#[test]
fn stream_and_whole_answer_say_the_same() {
    let server = Server::start(TINY);
    let client = server.client();
    let whole = client
        .post(CHAT, &crate::chat("tiny", 20))
        .expect(200)
        .json();
    let stream = client.post(CHAT, &streamed("tiny", 20)).expect(200);
    let text = sse::text(&sse::chunks(&stream.body));
    assert_eq!(whole["choices"][0]["message"]["content"], json!(text));
}

#[test]
fn usage_chunk_comes_only_to_who_asked_for_it() {
    let server = Server::start(TINY);
    let usages = |ask: &Value| {
        let reply = server.client().post(CHAT, ask).expect(200);
        let chunks = sse::chunks(&reply.body);
        let of = |chunk: &Value| chunk.get("usage").filter(|usage| !usage.is_null()).cloned();
        chunks.iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(usages(&streamed("tiny", 9)), Vec::<Value>::new());
    let no = with(
        streamed("tiny", 9),
        "stream_options",
        json!({"include_usage": false}),
    );
    assert_eq!(usages(&no), Vec::<Value>::new());
    let yes = with(
        streamed("tiny", 9),
        "stream_options",
        json!({"include_usage": true}),
    );
    let told = usages(&yes);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["completion_tokens"], 9);
    // Whoever asked or not: the tokens of all three are counted.
    let counted = server.metrics().sum("kvwarden_tokens_generated_total", &[]);
    assert_eq!(counted, Some(27.0));
}

/// Odd, but legal: comments, other fields, blanks, CRLF, an event in two packets, two in one.
const ODD: [&str; 7] = [
    ": ping\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n",
    "event: message\nid: 7\ndata:   {\"choices\": [ {\"index\":0, \"delta\":{\"content\":\"\\u00e9\"}} ],  \"x\":1.50}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"con",
    "tent\":\"b\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"c\"}}]}\r\n\r\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n",
    "data: [DONE]\n\n",
];

#[test]
fn stream_passes_byte_for_byte() {
    let stub = Stub::start(Stub::stream(&ODD));
    let server = Server::start(&stub.config());
    let ask = with(
        streamed("stub", 3),
        "stream_options",
        json!({"include_usage": true}),
    );
    let reply = server.client().post(CHAT, &ask).expect(200);
    assert_eq!(reply.text(), ODD.concat());
}

#[test]
fn only_the_usage_event_is_taken_out() {
    let stub = Stub::start(Stub::stream(&ODD));
    let server = Server::start(&stub.config());
    let reply = server.client().post(CHAT, &streamed("stub", 3)).expect(200);
    let expected: String = ODD
        .iter()
        .filter(|event| !event.contains("usage"))
        .copied()
        .collect();
    assert_eq!(reply.text(), expected);
}

#[test]
fn what_rides_on_usage_that_was_not_asked_for_comes_with_the_end_of_its_choice() {
    let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2},\"timings\":{\"n\":1.50}}\n\n";
    let comment = ": and then\n\n";
    let stub = Stub::start(Stub::stream(&[ODD[1], ODD[2], end, usage, comment, ODD[6]]));
    let server = Server::start(&stub.config());
    let reply = server.client().post(CHAT, &streamed("stub", 3)).expect(200);
    let end = end.replace("}]}", "}],\"timings\":{\"n\":1.50}}");
    assert_eq!(
        reply.text(),
        [ODD[1], ODD[2], &end, comment, ODD[6]].concat()
    );
}

#[test]
fn event_is_passed_on_before_the_next_one_exists() {
    let mut script = Stub::stream(&ODD);
    // Head, comment, role, first text; then nothing until the client has that text.
    script.insert(4, Act::Wait);
    let stub = Stub::start(script);
    let server = Server::start(&stub.config());
    let mut answer = server.exchange(CHAT, "t", &streamed("stub", 3)).answer();
    let first = answer.until("\\u00e9");
    assert!(!first.contains("\"b\""));
    stub.go_on();
    let rest = answer.rest().expect("a whole stream");
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
}

#[test]
fn connection_lost_in_mid_stream_is_one_error_event() {
    let mut script = Stub::stream(&ODD[..3]);
    script.pop();
    script.push(Act::Reset);
    let stub = Stub::start(script);
    let server = Server::start(&stub.config());
    let mut answer = server.exchange(CHAT, "t", &streamed("stub", 3)).answer();
    assert_eq!(answer.status, 200);
    let body = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_one_error_at_the_end(&body);
}

#[test]
fn stream_that_stops_without_done_is_one_error_event() {
    let stub = Stub::start(Stub::stream(&ODD[..3]));
    let server = Server::start(&stub.config());
    let mut answer = server.exchange(CHAT, "t", &streamed("stub", 3)).answer();
    let body = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_one_error_at_the_end(&body);
}

#[test]
fn engine_silent_in_mid_stream_is_one_error_event() {
    let mut script = Stub::stream(&ODD);
    script.insert(4, Act::Wait);
    let stub = Stub::start(script);
    let limits = "[limits]\nstream_idle_timeout = \"500ms\"\n";
    let server = Server::start(&format!("{limits}{}", stub.config()));
    let mut answer = server.exchange(CHAT, "t", &streamed("stub", 3)).answer();
    let body = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_one_error_at_the_end(&body);
}

#[test]
fn error_as_the_first_event_is_a_status() {
    let busy = "data: {\"error\":{\"message\":\"queue is full\",\"type\":\"ServiceUnavailable\",\"param\":null,\"code\":503}}\n\n";
    let stub = Stub::start(Stub::stream(&[busy, "data: [DONE]\n\n"]));
    let server = Server::start(&stub.config());
    let error = server
        .client()
        .post(CHAT, &streamed("stub", 3))
        .expect_error(503);
    assert_eq!(error["message"], "queue is full");
}
