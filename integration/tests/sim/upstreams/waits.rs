//! What a client hears while it waits.

use kvwarden_integration::{Answer, Exchange, Part, Says, Server, eventually};
use serde_json::Value;

use super::{Odd, ask, heard, odd, role, usual};
use crate::{CHAT, with};

fn streamed(model: &str) -> Value {
    with(ask(model), "stream", true)
}

#[test]
fn what_a_server_says_before_the_first_token_passes_at_once() {
    let says = |first: &[&str]| {
        let mut events: Vec<String> = first.iter().map(|text| (*text).to_owned()).collect();
        let at = events.len();
        events.extend(usual());
        Says::events(events).with(at, Part::Wait)
    };
    let odd = odd(vec![
        ("comment", says(&[": prefill 10 %\n\n"])),
        ("ping", says(&["event: ping\n\n"])),
        ("empty", says(&["data:\n\n"])),
        ("behind-role", says(&[&role(), ": prefill 10 %\n\n"])),
    ]);
    for (model, first) in [
        ("comment", ": prefill 10 %\n\n"),
        ("ping", "event: ping\n\n"),
        ("empty", "data:\n\n"),
        ("behind-role", ": prefill 10 %\n\n"),
    ] {
        let mut answer = odd.server.exchange(CHAT, "t", &streamed(model)).answer();
        let before = answer.until(first);
        assert_eq!((answer.status, before.as_str()), (200, first), "{model}");
        odd.upstream.go_on();
        let rest = answer.rest().expect("a whole stream");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        let again = if model == "behind-role" {
            role()
        } else {
            String::new()
        };
        assert_eq!(rest, again + &heard(), "{model}");
        assert_eq!(odd.count(model), 1, "{model}");
    }
}

#[test]
fn every_silence_is_filled_with_a_comment_that_says_what_is_waited_for() {
    let engine = ": waiting for the engine\n\n";
    let odd = odd(vec![
        ("head", Says::events(usual()).late()),
        ("first-event", Says::events(usual()).with(0, Part::Wait)),
        ("token", Says::events(usual()).with(1, Part::Wait)),
        ("pause", Says::events(usual()).with(2, Part::Wait)),
        ("busy", Says::events(usual()).with(2, Part::Wait)),
    ]);
    std::thread::scope(|scope| {
        for model in ["head", "first-event", "token", "pause"] {
            let odd = &odd;
            scope.spawn(move || {
                let mut answer = odd.server.exchange(CHAT, "t", &streamed(model)).answer();
                let before = answer.until(engine);
                assert_eq!(
                    before.starts_with(engine),
                    model != "pause",
                    "{model}: {before}"
                );
            });
        }
    });
    // All of them hung up then.
    eventually("all places to be free", || {
        let held = odd
            .server
            .metrics()
            .sum("kvwarden_admission_in_flight", &[]);
        (held == Some(0.0)).then_some(())
    });
}

/// One place, and one that is kept free for tenants far below their share: both are taken.
fn full() -> (Odd, Server, [Answer; 2]) {
    let busy = odd(vec![("busy", Says::events(usual()).with(2, Part::Wait))]);
    let config = busy.upstream.config() + "max_concurrent = 1\n";
    let server = Server::start(&config);
    let running = ["t", "u"].map(|tenant| {
        let mut answer = server.exchange(CHAT, tenant, &streamed("busy")).answer();
        let _ = answer.until("hello");
        answer
    });
    (busy, server, running)
}

fn wait_for_queue(server: &Server, depth: f64) {
    eventually("the line to grow", || {
        let now = server.metrics().sum("kvwarden_admission_queue_depth", &[]);
        (now == Some(depth)).then_some(())
    });
}

#[test]
fn who_waits_in_line_hears_its_place_and_waits_as_long_as_it_hears() {
    let (busy, server, running) = full();
    let ask = streamed("busy").to_string();
    // The SDKs' timeouts mean silence, or the time to a head; three seconds are less than the wait.
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-tenant-id: t\r\nx-stainless-read-timeout: 3\r\n\
         x-stainless-timeout: 3\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        ask.len()
    );
    let second = Exchange::raw(server.port, (head + &ask).as_bytes());
    wait_for_queue(&server, 1.0);
    let third = server.exchange(CHAT, "t", &streamed("busy"));
    wait_for_queue(&server, 2.0);
    let other = server.exchange(CHAT, "u", &streamed("busy"));
    let mut waiting = [second.answer(), third.answer(), other.answer()];
    for (answer, ahead) in waiting.iter_mut().zip([0, 1, 0]) {
        let comment = answer.until("\n\n");
        assert_eq!(
            comment,
            format!(": queued, {ahead} ahead of this request\n\n")
        );
    }
    for _ in 0..5 {
        busy.upstream.go_on();
    }
    for mut answer in running.into_iter().chain(waiting) {
        let rest = answer.rest().expect("a whole stream");
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    }
}

#[test]
fn unstreamed_request_is_refused_when_its_sdk_gives_up() {
    let (busy, server, _running) = full();
    let client = server.client().tenant("t");
    let client = client.header("x-stainless-read-timeout", "1");
    let error = client.post(CHAT, &ask("busy")).expect_error(503);
    assert_eq!(error["code"], "deadline");
    assert_eq!(busy.count("busy"), 2);
}
