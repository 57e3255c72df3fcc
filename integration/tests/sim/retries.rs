//! An engine that goes away before its first token is not the client's problem.

use kvwarden_integration::{Act, Server, Stub, engine::Gauges, eventually, sse};
use serde_json::Value;

use crate::{CHAT, SLOW, chat, streamed, streams::assert_one_error_at_the_end, with};

/// Its prefill takes seconds, so that the engine can be killed before the first token.
fn long_prompt(mut body: Value) -> Value {
    body["messages"][0]["content"] = "sea ".repeat(30_000).into();
    body
}

/// Kills the engine while it computes the prompt, and returns what the client gets.
fn answer_of_a_killed_engine(server: &Server, ask: &Value) -> (u16, Vec<u8>) {
    let engine = server.engine();
    let exchange = server.exchange(CHAT, "t", ask);
    let gauges = Gauges::of(&engine);
    eventually("the engine to work", || {
        (gauges.running() == 1).then_some(())
    });
    engine.kill();
    assert!(exchange.is_unanswered());
    let mut answer = exchange.answer();
    assert_ne!(server.engine().pid, engine.pid);
    let body = answer.rest().expect("a whole answer");
    (answer.status, body)
}

/// Once, or twice if the dead engine's port was tried before its end was known.
fn is_once_or_twice(count: Option<f64>) -> bool {
    count.is_some_and(|count| (1.0..=2.0).contains(&count))
}

fn retried(server: &Server) -> Option<f64> {
    server.metrics().sum("kvwarden_requests_retried_total", &[])
}

#[test]
fn stream_of_an_engine_killed_before_the_first_token_comes_from_its_successor() {
    let server = Server::start(SLOW);
    let ask = long_prompt(streamed("slow", 5));
    let (status, body) = answer_of_a_killed_engine(&server, &ask);
    assert_eq!(status, 200);
    assert!(!sse::text(&sse::chunks(&body)).is_empty());
    assert!(is_once_or_twice(retried(&server)));
    // It was one request, and it cost once.
    let metrics = server.metrics();
    let ok = metrics.sum("kvwarden_requests_total", &["status=\"ok\""]);
    assert_eq!(ok, Some(1.0));
    let status = server.client().get("/kvwarden/status").expect(200).json();
    let used = &status["tenants"]["t"]["used"];
    assert_eq!(used["completion_tokens"], 5, "{status}");
}

#[test]
fn whole_answer_of_an_engine_killed_before_the_first_token_comes_from_its_successor() {
    let server = Server::start(SLOW);
    let ask = long_prompt(chat("slow", 5));
    let (status, body) = answer_of_a_killed_engine(&server, &ask);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    assert!(is_once_or_twice(retried(&server)));
}

const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";

fn stub_that_breaks_off_after(pieces: &[&str]) -> (Stub, Server) {
    let mut script = Stub::stream(pieces);
    script.pop();
    script.push(Act::Reset);
    let stub = Stub::start(script);
    let server = Server::start(&stub.config());
    (stub, server)
}

fn asked(stub: &Stub) -> usize {
    let requests = stub.requests();
    requests.iter().filter(|it| it.starts_with("POST")).count()
}

#[test]
fn request_that_loses_every_engine_is_tried_three_times() {
    let (stub, server) = stub_that_breaks_off_after(&[ROLE]);
    for ask in [chat("stub", 3), streamed("stub", 3)] {
        let before = asked(&stub);
        let error = server.client().post(CHAT, &ask).expect_error(502);
        assert_eq!(error["code"], "engine_unreachable");
        assert_eq!(asked(&stub) - before, 3);
    }
    assert_eq!(retried(&server), Some(4.0));
    let status = server.client().get("/kvwarden/status").expect(200).json();
    let used = &status["tenants"]["default"]["used"];
    assert_eq!(used["prompt_tokens"], 0, "nothing came, nothing is paid");
}

#[test]
fn unstreamed_request_that_loses_every_engine_is_an_error_the_sdk_retries() {
    let stub = Stub::start(vec![Act::Reset]);
    let server = Server::start(&stub.config());
    let reply = server.client().post(CHAT, &chat("stub", 3)).expect(502);
    assert_eq!(reply.header("x-should-retry"), None, "{reply}");
    assert_eq!(reply.expect_error(502)["code"], "engine_unreachable");
    assert_eq!(asked(&stub), 3);
}

#[test]
fn stream_of_which_only_comments_went_out_is_tried_again_too() {
    let (stub, server) = stub_that_breaks_off_after(&[": ping\n\n", ROLE]);
    let reply = server.client().post(CHAT, &streamed("stub", 3)).expect(200);
    assert!(
        reply
            .text()
            .starts_with(": ping\n\n: ping\n\n: ping\n\ndata: {\"error\"")
    );
    assert_one_error_at_the_end(&reply.body);
    assert_eq!(asked(&stub), 3);
    let error = server
        .client()
        .post(CHAT, &chat("stub", 3))
        .expect_error(502);
    assert_eq!(error["code"], "engine_unreachable");
    assert_eq!(asked(&stub), 6);
}

#[test]
fn after_the_first_token_nothing_is_tried_again() {
    let (stub, server) = stub_that_breaks_off_after(&[ROLE, TOKEN]);
    let mut answer = server.exchange(CHAT, "t", &streamed("stub", 3)).answer();
    let body = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_eq!(answer.status, 200);
    assert_one_error_at_the_end(&body);
    assert_eq!(asked(&stub), 1);
    assert_eq!(retried(&server), None);
}

#[test]
fn client_that_hangs_up_while_its_engine_restarts_leaves_nothing_behind() {
    let server = Server::start(&format!("{SLOW}max_concurrent = 1\n"));
    let engine = server.engine();
    let exchange = server.exchange(CHAT, "t", &long_prompt(streamed("slow", 5)));
    let gauges = Gauges::of(&engine);
    eventually("the engine to work", || {
        (gauges.running() == 1).then_some(())
    });
    engine.kill();
    eventually("the request to go back", || {
        retried(&server).filter(|count| *count >= 1.0)
    });
    drop(exchange);
    eventually("the queue to be empty", || {
        let status = server.client().get("/kvwarden/status").expect(200).json();
        let model = &status["loaded_models"]["slow"];
        let is_empty = model["waiting"] == 0 && model["running"] == 0;
        (is_empty && status["tenants"]["t"]["in_flight"] == 0).then_some(())
    });
    let next = with(chat("slow", 2), "user", "next");
    let _ = server.client().post(CHAT, &next).expect(200);
}
