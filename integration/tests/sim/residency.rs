//! More models than fit: who is in memory, who sleeps, and that nobody notices but by waiting.

use std::{thread, time::Duration};

use kvwarden_integration::{Exchange, Server, eventually, eventually_within};
use serde_json::{Value, json};

use crate::{CHAT, chat, streamed};

/// Room for two of the simulated models, which take 8.5 MiB each.
const ROOM: &str = "[gpu]\nmemory = \"20MiB\"\nmax_wait = \"2s\"\n";
const SOON: Duration = Duration::from_secs(30);

fn model(id: &str, keys: &str) -> String {
    format!(
        "[[models]]\nid = \"{id}\"\nengine = \"sim\"\npreset = \"tiny\"\nautostart = false\n{keys}\n"
    )
}

fn three() -> String {
    let models = ["a", "b", "c"].map(|id| model(id, ""));
    format!("{ROOM}{}", models.concat())
}

fn status(server: &Server) -> Value {
    server.client().get("/kvwarden/status").expect(200).json()
}

fn of(server: &Server, model: &str) -> Value {
    status(server)["loaded_models"][model].clone()
}

fn state(server: &Server, model: &str) -> String {
    let state = &of(server, model)["state"];
    state.as_str().expect("a state").to_owned()
}

fn reaches(server: &Server, model: &str, wanted: &str) {
    eventually_within(SOON, &format!("{model} to be {wanted}"), || {
        (state(server, model) == wanted).then_some(())
    });
}

fn wish(server: &Server, model: &str, verb: &str) {
    server.wish(model, verb);
}

fn starts(server: &Server, model: &str) -> u64 {
    let starts = &of(server, model)["record"]["starts"];
    starts.as_u64().expect("a count")
}

#[test]
fn three_models_take_turns_on_room_for_two_and_lose_no_request() {
    let server = Server::start(&three());
    thread::scope(|scope| {
        for id in ["a", "b", "c"] {
            let server = &server;
            scope.spawn(move || {
                for _ in 0..8 {
                    let reply = server.client().tenant(id).post(CHAT, &chat(id, 4));
                    assert_eq!(reply.status, 200, "{reply}");
                }
            });
        }
    });
    let all = ["a", "b", "c"].map(|id| starts(&server, id));
    assert!(all.iter().all(|starts| *starts >= 1), "{all:?}");
    for device in status(&server)["gpu"]["memory"]
        .as_array()
        .expect("devices")
    {
        let taken = device["taken"].as_u64();
        assert!(taken <= device["capacity"].as_u64(), "{device}");
    }
}

/// Whoever comes round finds its model loaded. The pause is the traffic's own: only what comes after
/// a while can be loaded ahead.
#[test]
fn the_next_in_a_round_is_in_memory_before_it_is_asked() {
    const PAUSE: Duration = Duration::from_millis(1500);
    let room_for_one = "[gpu]\nmemory = \"10MiB\"\n";
    let models = ["a", "b", "c"].map(|id| model(id, ""));
    let server = Server::start(&format!("{room_for_one}{}", models.concat()));
    let mut round = ["a", "b", "c"].into_iter().cycle().peekable();
    eventually_within(2 * SOON, "a model to be loaded ahead", || {
        let asked = round.next()?;
        let reply = server.client().post(CHAT, &chat(asked, 4));
        assert_eq!(reply.status, 200, "{reply}");
        thread::sleep(PAUSE);
        (state(&server, round.peek()?) == "ready").then_some(())
    });
    let next = round.next().expect("a round has no end");
    let hits = || {
        let hits = &of(&server, next)["record"]["prefetch_hits"];
        hits.as_u64().expect("a count")
    };
    let before = hits();
    let reply = server.client().post(CHAT, &chat(next, 4));
    assert_eq!(reply.status, 200, "{reply}");
    assert_eq!(hits(), before + 1);
}

#[test]
fn a_thousand_requests_for_a_cold_model_start_it_once() {
    let server = Server::start(&format!(
        "[limits]\nmax_in_flight = 4096\n{}",
        model("a", "")
    ));
    assert_eq!(state(&server, "a"), "cold");
    let crowd: Vec<_> = (0..1000)
        .map(|_| server.exchange(CHAT, "t", &streamed("a", 1)))
        .collect();
    for exchange in crowd {
        let mut answer = exchange.answer();
        assert_eq!(answer.status, 200);
        let _ = answer.rest().expect("a whole answer");
    }
    assert_eq!(starts(&server, "a"), 1);
    assert_eq!(of(&server, "a")["generation"], 1);
}

#[test]
fn sleeping_model_wakes_for_a_request_without_a_new_start() {
    let server = Server::start(&three());
    for (verb, level) in [("park", "parked"), ("deep-sleep", "l2")] {
        let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
        wish(&server, "a", verb);
        reaches(&server, "a", "asleep");
        assert_eq!(of(&server, "a")["rung"], level);
    }
    let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
    assert_eq!(starts(&server, "a"), 1);
    wish(&server, "a", "unload");
    reaches(&server, "a", "cold");
    wish(&server, "a", "load");
    reaches(&server, "a", "ready");
    assert_eq!(of(&server, "a")["generation"], 2);
}

#[test]
fn engine_that_frees_nothing_when_it_sleeps_is_stopped_and_not_believed_again() {
    let fault = "extra_args = [\"--fault-sleep-frees-nothing\"]";
    let server = Server::start(&format!("{}{}", model("a", fault), model("b", "")));
    let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
    wish(&server, "a", "deep-sleep");
    reaches(&server, "a", "cold");
    let engine = &of(&server, "a")["engines"][0];
    assert!(engine["barred"].to_string().contains("l2"), "{engine}");
    let note = engine["record"]["note"].as_str().unwrap_or_default();
    assert!(note.contains("should be free"), "{engine}");
    let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
}

#[test]
fn engine_that_wakes_with_other_weights_is_replaced_before_it_answers() {
    let fault = "extra_args = [\"--fault-wake-garbles\"]";
    let server = Server::start(&format!("{}{}", model("a", fault), model("b", "")));
    let before = server.client().post(CHAT, &chat("a", 8)).expect(200).json();
    wish(&server, "a", "deep-sleep");
    reaches(&server, "a", "asleep");
    let after = server.client().post(CHAT, &chat("a", 8)).expect(200).json();
    assert_eq!(
        after["choices"][0]["message"],
        before["choices"][0]["message"]
    );
    assert_eq!(starts(&server, "a"), 2);
}

#[test]
fn pinned_models_stay_and_who_finds_no_room_is_told_in_time() {
    let config = format!(
        "{ROOM}[limits]\nqueue_timeout = \"3s\"\n{}{}{}",
        model("a", "pinned = true"),
        model("b", "pinned = true"),
        model("c", "")
    );
    let server = Server::start(&config);
    for id in ["a", "b"] {
        let _ = server.client().post(CHAT, &chat(id, 2)).expect(200);
    }
    let refused = server.client().post(CHAT, &chat("c", 2));
    assert_eq!(refused.status, 503, "{refused}");
    assert!(refused.header("retry-after").is_some(), "{refused}");
    for id in ["a", "b"] {
        assert_eq!(
            (state(&server, id).as_str(), starts(&server, id)),
            ("ready", 1)
        );
    }
    wish(&server, "b", "unpin");
    let _ = server.client().post(CHAT, &chat("c", 2)).expect(200);
}

#[test]
fn model_that_nobody_asks_for_is_unloaded() {
    let server = Server::start(&model("a", "idle_ttl = \"1s\""));
    let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
    reaches(&server, "a", "cold");
    assert!(server.engines().is_empty());
    let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
}

#[test]
fn one_of_two_engines_of_a_model_may_die() {
    let replica = "[[models]]\nreplica_of = \"a\"\nengine = \"sim\"\npreset = \"tiny\"\n";
    let config = model("a", "").replace("autostart = false\n", "") + replica;
    let server = Server::start(&config);
    eventually("both engines", || {
        (server.engines().len() == 2).then_some(())
    });
    reaches(&server, "a", "ready");
    server.engine().kill();
    for _ in 0..20 {
        let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
    }
    eventually_within(SOON, "the other one again", || {
        let a = of(&server, "a");
        let engines = a["engines"].as_array()?;
        let is_back = engines.iter().any(|engine| engine["generation"] == 2);
        (is_back && engines.iter().all(|engine| engine["state"] == "ready")).then_some(())
    });
}

#[test]
fn how_often_a_model_was_asked_for_outlives_kvwarden() {
    let mut server = Server::start(&three());
    for _ in 0..4 {
        let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
    }
    let before = of(&server, "a")["rate"].clone();
    server.restart(&three());
    assert_eq!(of(&server, "a")["rate"], before);
}

#[test]
fn stream_for_a_model_that_loads_gets_comments_and_then_its_answer() {
    let slow = "extra_args = [\"--fault-slow-start\", \"8s\"]";
    let server = Server::start(&model("a", slow));
    // An SDK that takes a silence of seven seconds for the end hears something after five.
    let ask = streamed("a", 3).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         x-stainless-read-timeout: 7\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        ask.len()
    );
    let mut answer = Exchange::raw(server.port, (head + &ask).as_bytes()).answer();
    assert_eq!(answer.status, 200);
    let before = answer.until("data: ");
    assert!(before.starts_with(": loading a\n\n"), "{before}");
    let rest = String::from_utf8(answer.rest().expect("a whole answer")).expect("text");
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
}

#[test]
fn stream_for_a_model_that_cannot_load_ends_with_one_error_event() {
    let failing = "extra_args = [\"--fault-slow-start\", \"60s\"]";
    let limits = "[limits]\nqueue_timeout = \"7s\"\n";
    let server = Server::start(&format!("{limits}{}", model("a", failing)));
    let mut answer = server.exchange(CHAT, "t", &streamed("a", 3)).answer();
    let all = String::from_utf8(answer.rest().expect("a whole answer")).expect("text");
    let events: Vec<_> = all
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .collect();
    let (error, comments) = events.split_last().expect("events");
    assert!(
        comments.iter().all(|comment| *comment == ": loading a"),
        "{all}"
    );
    assert!(error.starts_with("data: {\"error\":"), "{all}");
}

/// One model that takes seconds to start, and can park.
fn starting() -> Server {
    let keys = "sleep = [\"parked\"]\nextra_args = [\"--fault-slow-start\", \"2s\"]";
    let server = Server::start(&model("a", keys));
    server.wish("a", "load");
    reaches(&server, "a", "starting");
    server
}

fn pending(server: &Server) -> Value {
    of(server, "a")["engines"][0]["wish"].clone()
}

/// Where the model is once nothing is left to do.
fn settled(server: &Server) -> String {
    eventually_within(SOON, "the wish to be fulfilled", || {
        pending(server).is_null().then_some(())
    });
    state(server, "a")
}

#[test]
fn wish_to_park_that_comes_while_a_model_starts_is_kept() {
    let server = starting();
    server.wish("a", "park");
    assert_eq!(pending(&server), json!({"sleep": "parked"}));
    assert_eq!(settled(&server), "asleep");
    assert_eq!(of(&server, "a")["rung"], "parked");
    assert_eq!(starts(&server, "a"), 1);
}
