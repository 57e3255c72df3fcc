//! Clients that ask and don't read.

use std::time::Duration;

use kvwarden_integration::{
    Act, Exchange, Server, Stub, engine::Gauges, eventually, eventually_within,
};
use serde_json::{Value, json};

use crate::{CHAT, SLOW, chat, endless, with};

const LIMITS: &str = "[limits]\nclient_stall_timeout = \"1s\"\n";

/// What the kernel, actix and we hold for a client is some 300 KiB; so many choices fill that in
/// a moment.
fn torrent(choices: u32) -> Value {
    with(endless(), "n", choices)
}

/// Streams that were cut, for one reason or for any.
fn cut(server: &Server, reason: &[&str]) -> f64 {
    let metrics = server.metrics();
    let count = metrics.sum("kvwarden_sse_stream_disconnect_total", reason);
    count.unwrap_or(0.0)
}

const SLOW_READER: [&str; 1] = ["reason=\"slow_reader\""];

fn wait_until_idle(server: &Server, engine: &Gauges) {
    eventually("every place to come back", || {
        let status = server.client().get("/kvwarden/status").expect(200).json();
        let model = &status["loaded_models"]["slow"];
        let is_idle = model["running"] == 0 && model["waiting"] == 0 && engine.running() == 0;
        is_idle.then_some(())
    });
}

#[test]
fn client_that_does_not_read_its_stream_loses_its_place_in_the_engine() {
    let server = Server::start(&format!("{LIMITS}{SLOW}max_concurrent = 128\n"));
    let engine = Gauges::of(&server.engine());
    let exchange = server.exchange(CHAT, "t", &torrent(128));
    eventually("the engine to work", || {
        (engine.running() > 0).then_some(())
    });
    eventually("the client to be cut", || {
        (cut(&server, &SLOW_READER) >= 1.0).then_some(())
    });
    wait_until_idle(&server, &engine);
    // It learns that its answer is not whole, by an event or by a broken connection.
    let rest = exchange.answer().rest().unwrap_or_default();
    assert!(!rest.ends_with(b"data: [DONE]\n\n"));
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
}

#[test]
fn fifty_clients_that_do_not_read_take_nothing_from_a_quiet_tenant() {
    let server = Server::start(&format!("{LIMITS}{SLOW}"));
    let engine = Gauges::of(&server.engine());
    let idle: Vec<Exchange> = (0..50)
        .map(|_| server.exchange(CHAT, "noisy", &torrent(16)))
        .collect();
    eventually("the engine to work", || {
        (engine.running() > 0).then_some(())
    });
    let quiet = server.client().tenant("quiet");
    for _ in 0..5 {
        let _ = quiet.post(CHAT, &chat("slow", 5)).expect(200);
    }
    // Sixteen at a time fill what is held for them.
    eventually_within(Duration::from_secs(60), "all of them to be cut", || {
        (cut(&server, &[]) >= 50.0).then_some(())
    });
    // On a busy machine the kernel may be before us with some.
    assert!(cut(&server, &SLOW_READER) >= 25.0);
    wait_until_idle(&server, &engine);
    drop(idle);
}

#[test]
fn whole_answer_that_is_not_read_holds_a_place_on_the_node_only_for_so_long() {
    let text = "x".repeat(8 << 20);
    let answer = json!({"object": "list", "data": [text]}).to_string();
    let stub = Stub::start(Stub::answer("200 OK", "application/json", &answer));
    let limits = format!("{LIMITS}max_in_flight = 1\n");
    let server = Server::start(&format!("{limits}{}", stub.config()));
    let ask = json!({"model": "stub", "input": "a"});
    let unread = server.exchange("/v1/embeddings", "t", &ask);
    eventually("the answer to come", || {
        (!unread.is_unanswered()).then_some(())
    });
    let full = server.client().post("/v1/embeddings", &ask);
    let _ = full.expect_error(503);
    eventually("the place to come back", || {
        let reply = server.client().post("/v1/embeddings", &ask);
        (reply.status == 200).then_some(())
    });
}

#[test]
fn answer_larger_than_what_is_held_of_it_arrives_whole() {
    let event = format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
        "x".repeat(10_000)
    );
    let mut script = Stub::stream(&vec![event.as_str(); 200]);
    script.insert(201, Stub::piece("data: [DONE]\n\n"));
    script.insert(2, Act::Wait);
    let stub = Stub::start(script);
    let server = Server::start(&stub.config());
    let ask = with(chat("stub", 3), "stream", true);
    let mut answer = server.exchange(CHAT, "t", &ask).answer();
    let first = answer.next_piece().expect("a piece").expect("a piece");
    stub.go_on();
    let rest = answer.rest().expect("a whole stream");
    let expected = event.len() * 200 + "data: [DONE]\n\n".len();
    assert_eq!(first.len() + rest.len(), expected);
}
