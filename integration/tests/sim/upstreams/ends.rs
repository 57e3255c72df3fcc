//! What ends an answer, and what does not.

use kvwarden_integration::{Framing, Part, Says, eventually};
use serde_json::json;

use super::{
    DONE, answer, ask, event, finish, heard, odd, odd_with, role, said, text, usage, usual,
};
use crate::{CHAT, streams::assert_one_error_at_the_end, with};

#[test]
fn answer_is_whole_with_its_last_finish_reason_or_done_in_any_spelling() {
    let without_done = || usual()[..5].to_vec();
    let ends_with = |end: &str| {
        let mut events = without_done();
        events.push(end.to_owned());
        Says::events(events)
    };
    let odd = odd(vec![
        ("nothing", Says::events(without_done())),
        (
            "no-usage",
            Says::events([role(), text("hello hello "), finish()]),
        ),
        ("no-line-end", ends_with("data: [DONE]")),
        ("one-line-end", ends_with("data: [DONE]\n")),
        ("no-blank", ends_with("data:[DONE]\r\n\r\n")),
        (
            "finish-cut",
            Says::events([&role(), &text("hello hello "), finish().trim_end()]),
        ),
    ]);
    for model in [
        "nothing",
        "no-usage",
        "no-line-end",
        "one-line-end",
        "no-blank",
        "finish-cut",
    ] {
        let whole = odd.whole(model).expect(200);
        assert_eq!(said(&whole), "hello hello ", "{model}: {whole}");
        let stream = odd.streamed(model).expect(200);
        assert!(!stream.text().contains("error"), "{model}: {stream}");
        assert!(stream.text().contains("\"stop\""), "{model}: {stream}");
        assert_eq!(odd.count(model), 2, "{model}");
    }
}

#[test]
fn answer_that_stops_before_is_an_error_and_not_computed_again() {
    let two = |choice: u32, finish: bool| {
        let reason = finish.then_some("stop");
        event(
            &json!({ "choices": [{ "index": choice, "delta": { "content": "a" }, "finish_reason": reason }] }),
        )
    };
    let odd = odd(vec![
        ("no-finish", Says::events([role(), text("hello ")])),
        (
            "one-of-two",
            Says::events([two(0, false), two(1, false), two(0, true)]),
        ),
        (
            "amid-event",
            Says::events([&role(), &text("hello "), "data: {\"choi"]),
        ),
        (
            "reset",
            Says::events([role(), text("hello "), finish()]).with(3, Part::Hangup),
        ),
        (
            "amid-length",
            Says::events(usual())
                .framed(Framing::Promised(100_000))
                .with(6, Part::Hangup),
        ),
    ]);
    for model in ["no-finish", "one-of-two", "amid-event"] {
        let stream = odd.streamed(model).expect(200);
        assert_one_error_at_the_end(&stream.body);
        let error = odd.whole(model).expect_error(502);
        assert_eq!(error["code"], "engine_unreachable", "{model}");
        assert_eq!(odd.count(model), 2, "{model}");
    }
    // `[DONE]` was there before the connection broke.
    assert_eq!(odd.streamed("amid-length").expect(200).text(), heard());
    assert_eq!(odd.count("amid-length"), 1);
}

#[test]
fn done_ends_an_answer_whose_connection_stays_or_breaks_and_frees_its_place() {
    let stays = Says::events(usual()).with(6, Part::Wait);
    let breaks = Says::events(usual()).with(6, Part::Hangup);
    let talks = Says::events([usual(), usual()].concat()).with(12, Part::Wait);
    let odd = odd(vec![("stays", stays), ("breaks", breaks), ("talks", talks)]);
    for model in ["stays", "breaks", "talks"] {
        assert_eq!(odd.streamed(model).expect(200).text(), heard(), "{model}");
        assert_eq!(
            said(&odd.whole(model).expect(200)),
            "hello hello ",
            "{model}"
        );
        eventually("the place to come back", || {
            let status = odd
                .server
                .client()
                .get("/kvwarden/status")
                .expect(200)
                .json();
            (status["loaded_models"][model]["running"] == 0).then_some(())
        });
    }
}

#[test]
fn connection_is_used_again_if_its_body_ends_behind_its_answer_and_not_if_it_stays() {
    let ends = odd(vec![("m", Says::events(usual()))]);
    let stays = odd(vec![("m", Says::events(usual()).with(6, Part::Wait))]);
    for (odd, stream) in [
        (&ends, true),
        (&ends, false),
        (&stays, true),
        (&stays, false),
    ] {
        // One connection of the client is one thread with one pool.
        let client = odd.server.client();
        for _ in 0..10 {
            let _ = client
                .post(CHAT, &with(ask("m"), "stream", stream))
                .expect(200);
        }
    }
    assert!(
        ends.upstream.connections() < 10,
        "{}",
        ends.upstream.connections()
    );
    assert_eq!(stays.upstream.connections(), 20);
}

#[test]
fn answer_that_ends_with_its_connection_is_read_to_its_end() {
    let error = json!({ "error": { "message": "prompt too long", "type": "x", "code": null } });
    let closed = |says: Says| says.framed(Framing::Close);
    let odd = odd(vec![
        ("json", closed(Says::json(&answer()))),
        ("400", closed(Says::json(&error).status(400))),
        ("events", closed(Says::events(usual()))),
        (
            "no-done",
            closed(Says::events([
                role(),
                text("hello hello "),
                finish(),
                usage(),
            ])),
        ),
    ]);
    assert_eq!(odd.whole("json").expect(200).json(), answer());
    assert_eq!(
        odd.whole("400").expect_error(400)["message"],
        "prompt too long"
    );
    assert_eq!(
        odd.streamed("400").expect_error(400)["message"],
        "prompt too long"
    );
    assert_eq!(odd.streamed("events").expect(200).text(), heard());
    assert_eq!(said(&odd.whole("no-done").expect(200)), "hello hello ");
    for (model, count) in [("json", 1), ("400", 2), ("events", 1), ("no-done", 1)] {
        assert_eq!(odd.count(model), count, "{model}");
    }
}

#[test]
fn request_that_the_engine_gave_up_is_tried_again_and_half_an_answer_is_not() {
    let abort = || super::chunk(&json!({}), &json!("abort"));
    let odd = odd(vec![
        ("at-once", Says::events([role(), abort(), DONE.to_owned()])),
        (
            "later",
            Says::events([role(), text("hello "), abort(), DONE.to_owned()]),
        ),
        ("whole", Says::json(&with_reason("abort"))),
        ("nothing", Says::events([""])),
    ]);
    let _ = odd.streamed("at-once").expect_error(502);
    assert_eq!(odd.count("at-once"), 3);
    assert_one_error_at_the_end(&odd.streamed("later").expect(200).body);
    assert_eq!(odd.count("later"), 1);
    let _ = odd.whole("whole").expect_error(502);
    assert_eq!(odd.count("whole"), 3);
    let _ = odd.streamed("nothing").expect_error(502);
    assert_eq!(
        odd.count("nothing"),
        3,
        "its stream ended before the first event"
    );
}

fn with_reason(reason: &str) -> serde_json::Value {
    let mut answer = answer();
    answer["choices"][0]["finish_reason"] = reason.into();
    answer
}

#[test]
fn places_of_answers_that_ended_oddly_all_come_back() {
    let odd = odd_with(
        "",
        vec![
            ("cut", Says::events([role(), text("hello ")])),
            (
                "error",
                Says::events([role(), event(&json!({ "error": "no" }))]),
            ),
            ("empty", Says::body("application/json", "")),
        ],
    );
    for model in ["cut", "error", "empty"] {
        for stream in [true, false] {
            let _ = odd
                .server
                .client()
                .post(CHAT, &with(ask(model), "stream", stream));
        }
    }
    eventually("all to be free", || {
        let status = odd
            .server
            .client()
            .get("/kvwarden/status")
            .expect(200)
            .json();
        (status["admission"]["in_flight"] == 0).then_some(())
    });
}
