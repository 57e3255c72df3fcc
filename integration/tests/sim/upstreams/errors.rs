//! What a server says instead of an answer, and what is no answer.

use kvwarden_integration::{Framing, Part, Says};
use serde_json::{Value, json};

use super::{answer, event, odd, odd_with, role, said, text, usual};
use crate::streams::assert_one_error_at_the_end;

fn error(message: &str) -> Value {
    json!({ "error": { "message": message, "type": "x", "code": null } })
}

#[test]
fn error_under_200_is_an_error_with_the_status_that_it_names() {
    let odd = odd(vec![
        ("no-status", Says::json(&error("no credits left"))),
        (
            "code",
            Says::json(&json!({ "error": { "message": "no credits left", "code": 402 } })),
        ),
        (
            "text-code",
            Says::json(&json!({ "error": { "message": "no credits left", "code": "429" } })),
        ),
        (
            "list",
            Says::json(&json!({ "errors": [{ "message": "no credits left", "code": 400 }] })),
        ),
        ("text", Says::json(&json!({ "error": "no credits left" }))),
        (
            "event",
            Says::events([event(
                &json!({ "error": { "message": "no credits left", "code": 503 } }),
            )]),
        ),
    ]);
    for (model, status) in [
        ("no-status", 502),
        ("code", 402),
        ("text-code", 429),
        ("list", 400),
        ("text", 502),
        ("event", 503),
    ] {
        for reply in [odd.whole(model), odd.streamed(model)] {
            assert_eq!(
                reply.expect_error(status)["message"],
                "no credits left",
                "{model}"
            );
        }
        assert_eq!(odd.count(model), 2, "{model}");
    }
}

#[test]
fn error_that_is_none_beside_choices_is_an_answer() {
    let beside = |error: Value| {
        let mut answer = answer();
        answer["error"] = error;
        Says::json(&answer)
    };
    let in_chunk = |error: Value| {
        let mut events = usual();
        events[1] = event(
            &json!({ "choices": [{ "index": 0, "delta": { "content": "hello " } }], "error": error }),
        );
        Says::events(events)
    };
    let odd = odd(vec![
        ("empty", beside(json!(""))),
        ("false", beside(json!(false))),
        ("null", beside(Value::Null)),
        ("in-chunk", in_chunk(json!(""))),
        ("false-in-chunk", in_chunk(json!(false))),
    ]);
    for model in ["empty", "false", "null", "in-chunk", "false-in-chunk"] {
        assert_eq!(
            said(&odd.whole(model).expect(200)),
            "hello hello ",
            "{model}"
        );
    }
}

#[test]
fn error_amid_an_answer_keeps_its_words_and_where_it_can_its_status() {
    let fails = |error: Value| Says::events([role(), text("hello "), event(&error)]);
    let odd = odd(vec![
        (
            "code",
            fails(json!({ "error": { "message": "out of memory", "code": 503 } })),
        ),
        ("text", fails(json!({ "error": "out of memory" }))),
        (
            "list",
            fails(json!({ "errors": [{ "message": "out of memory" }] })),
        ),
    ]);
    for (model, status) in [("code", 503), ("text", 502), ("list", 502)] {
        assert_eq!(
            odd.whole(model).expect_error(status)["message"],
            "out of memory",
            "{model}"
        );
        let stream = odd.streamed(model).expect(200);
        assert!(stream.text().contains("out of memory"), "{model}: {stream}");
        assert_eq!(odd.count(model), 2, "{model}");
    }
    assert_one_error_at_the_end(&odd.streamed("code").body);
}

#[test]
fn what_a_server_says_about_asking_again_reaches_the_client() {
    let busy = |status: u16| Says::json(&error("slow down")).status(status);
    let odd = odd(vec![
        ("429", busy(429).field("Retry-After: 7")),
        (
            "503",
            busy(503)
                .field("retry-after-ms: 250")
                .field("x-should-retry: true"),
        ),
        (
            "400",
            busy(400)
                .field("X-Should-Retry: false")
                .field("retry-after: Wed, 21 Oct 2026 07:28:00 GMT"),
        ),
        ("none", busy(500)),
    ]);
    for (model, status, fields) in [
        ("429", 429, vec![("retry-after", "7")]),
        (
            "503",
            503,
            vec![("retry-after-ms", "250"), ("x-should-retry", "true")],
        ),
        (
            "400",
            400,
            vec![
                ("x-should-retry", "false"),
                ("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"),
            ],
        ),
        ("none", 500, vec![]),
    ] {
        for reply in [odd.whole(model), odd.streamed(model)] {
            for name in ["retry-after", "retry-after-ms", "x-should-retry"] {
                let told = fields.iter().find(|(field, _)| *field == name);
                assert_eq!(
                    reply.header(name),
                    told.map(|(_, value)| *value),
                    "{model} {name}"
                );
            }
            assert_eq!(
                reply.expect_error(status)["message"],
                "slow down",
                "{model}"
            );
        }
        assert_eq!(odd.count(model), 2, "{model}");
    }
}

#[test]
fn refused_key_is_the_operators_to_mend_and_said_once() {
    let refused = |status: u16| Says::json(&error("invalid key sk-secret")).status(status);
    let odd = odd(vec![("401", refused(401)), ("403", refused(403))]);
    for model in ["401", "403"] {
        for reply in [odd.whole(model), odd.streamed(model)] {
            assert_eq!(reply.header("x-should-retry"), Some("false"), "{model}");
            let text = reply.text();
            assert!(!text.contains("sk-secret"), "{model}: {text}");
            assert_eq!(
                reply.expect_error(502)["code"],
                "engine_unreachable",
                "{model}"
            );
        }
        assert_eq!(odd.count(model), 2, "{model}");
        assert_eq!(
            odd.server.count(&format!(
                "refuses our key; its requests fail until that is mended model=\"{model}\""
            )),
            1
        );
    }
}

#[test]
fn what_is_no_answer_is_502_once_and_says_what_is_wrong() {
    let odd = odd(vec![
        (
            "redirect",
            Says::body("", "")
                .status(307)
                .field("location: http://elsewhere.example/"),
        ),
        ("moved", Says::json(&answer()).status(301)),
        ("no-content", Says::body("", "").status(204)),
        ("unmodified", Says::body("", "").status(304)),
        ("created", Says::json(&answer()).status(201)),
        ("empty", Says::body("application/json", "")),
        ("blank", Says::body("application/json", "  \r\n")),
        (
            "html",
            Says::body("text/html", "<html>Welcome to nginx!</html>"),
        ),
        ("half", Says::body("application/json", r#"{"choices":["#)),
        (
            "gzip",
            Says::body("application/json", vec![0x1f, 0x8b, 8, 0]).field("content-encoding: gzip"),
        ),
        (
            "unsaid-gzip",
            Says::body("application/json", vec![0x1f, 0x8b, 8, 0]),
        ),
    ]);
    for (model, words) in [
        ("redirect", "307"),
        ("moved", "301"),
        ("no-content", "204"),
        ("unmodified", "304"),
        ("created", "201"),
        ("empty", "empty"),
        ("blank", "JSON"),
        ("html", "text/html"),
        ("half", "JSON"),
        ("gzip", "gzip"),
        ("unsaid-gzip", "JSON"),
    ] {
        for reply in [odd.whole(model), odd.streamed(model)] {
            assert_eq!(reply.header("location"), None, "{model}");
            assert_eq!(reply.header("x-should-retry"), Some("false"), "{model}");
            let error = reply.expect_error(502);
            assert_eq!(error["code"], "engine_unreachable", "{model}");
            let message = error["message"].as_str().unwrap_or_default();
            assert!(message.contains(words), "{model}: {message}");
        }
        assert_eq!(odd.count(model), 2, "{model}");
    }
}

#[test]
fn other_routes_are_held_to_the_same() {
    let odd = odd(vec![
        (
            "html",
            Says::body("text/html", "<html>Welcome to nginx!</html>"),
        ),
        ("empty", Says::body("application/json", "")),
        ("moved", Says::json(&answer()).status(301)),
        (
            "error",
            Says::json(&json!({ "error": { "message": "no", "code": 400 } })),
        ),
        (
            "busy",
            Says::json(&error("slow down"))
                .status(429)
                .field("retry-after: 7"),
        ),
        (
            "fine",
            Says::json(&json!({ "count": 1, "data": [] })).framed(Framing::Close),
        ),
    ]);
    for path in ["/v1/embeddings", "/tokenize"] {
        let post = |model: &str| {
            let ask = json!({ "model": model, "input": "x", "prompt": "x" });
            odd.server.client().post(path, &ask)
        };
        for model in ["html", "empty", "moved"] {
            let reply = post(model);
            assert_eq!(
                reply.header("x-should-retry"),
                Some("false"),
                "{path} {model}"
            );
            assert_eq!(
                reply.expect_error(502)["code"],
                "engine_unreachable",
                "{path} {model}"
            );
        }
        assert_eq!(post("error").expect_error(400)["message"], "no", "{path}");
        let busy = post("busy");
        assert_eq!(busy.header("retry-after"), Some("7"), "{path}");
        assert_eq!(busy.expect_error(429)["message"], "slow down", "{path}");
        assert_eq!(post("fine").expect(200).json()["count"], 1, "{path}");
    }
    for model in ["html", "empty", "moved", "error", "busy", "fine"] {
        assert_eq!(odd.count(model), 2, "{model}");
    }
}

#[test]
fn interim_responses_are_read_past() {
    let after = |interim: &str| Says::json(&answer()).preface(interim);
    let odd = odd(vec![
        (
            "103",
            after("HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n"),
        ),
        ("100", after("HTTP/1.1 100 Continue\r\n\r\n")),
        (
            "both",
            after("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"),
        ),
    ]);
    for model in ["103", "100", "both"] {
        assert_eq!(
            said(&odd.whole(model).expect(200)),
            "hello hello ",
            "{model}"
        );
        assert_eq!(odd.count(model), 1, "{model}");
    }
}

#[test]
fn server_that_hangs_up_before_the_first_event_is_tried_three_times() {
    let hangs_up = Says::events([""]).with(0, Part::Hangup);
    let odd = odd(vec![("after-head", hangs_up)]);
    for reply in [odd.whole("after-head"), odd.streamed("after-head")] {
        let code = reply.expect_error(502)["code"].clone();
        assert_eq!(code, "engine_unreachable");
    }
    assert_eq!(odd.count("after-head"), 6);
}

#[test]
fn silence_of_a_server_ends_wherever_it_falls_silent() {
    let limits = "[limits]\nstream_idle_timeout = \"300ms\"\n";
    let half = |content_type: &str, status: u16| {
        Says::body(content_type, "{")
            .status(status)
            .framed(Framing::Promised(100))
    };
    let odd = odd_with(
        limits,
        vec![
            ("head", Says::json(&answer()).late()),
            ("body", half("application/json", 200)),
            ("error", half("application/json", 500)),
            ("event", Says::events(["data:"]).with(1, Part::Wait)),
            ("first-event", Says::events([""]).with(1, Part::Wait)),
            ("comments", Says::events([": ping\n\n"]).with(1, Part::Wait)),
        ],
    );
    std::thread::scope(|scope| {
        for model in ["head", "body", "error", "event", "first-event", "comments"] {
            for stream in [false, true] {
                let odd = &odd;
                scope.spawn(move || {
                    let reply = if stream {
                        odd.streamed(model)
                    } else {
                        odd.whole(model)
                    };
                    if model == "comments" && stream {
                        return assert_one_error_at_the_end(&reply.body);
                    }
                    let status = if model == "error" { 500 } else { 502 };
                    let _ = reply.expect_error(status);
                });
            }
        }
    });
    for model in ["head", "body", "error", "event", "first-event", "comments"] {
        assert_eq!(odd.count(model), 2, "{model}");
    }
}
