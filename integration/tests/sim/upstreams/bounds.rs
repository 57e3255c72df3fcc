//! How large an answer may be, however it comes.

use kvwarden_integration::{Exchange, Framing, Part, Says};
use serde_json::{Value, json};

use super::{Odd, answer, ask, finish, odd, role, said, text, usual};
use crate::{CHAT, streams::assert_one_error_at_the_end, with};

const MIB: usize = 1 << 20;

/// The answer of a client that bounds nothing itself.
fn all(odd: &Odd, model: &str, stream: bool) -> (u16, Vec<u8>) {
    let ask = with(ask(model), "stream", stream);
    let mut answer = Exchange::post(odd.server.port, CHAT, "t", &ask).answer();
    let body = answer.rest().expect("a whole answer");
    (answer.status, body)
}

#[test]
fn image_of_eight_megabytes_in_a_delta_passes_in_every_form() {
    let image = "A".repeat(8 * MIB);
    let events = |image: &str| vec![role(), text(image), finish(), super::DONE.to_owned()];
    let small_pieces = events(&image).concat().into_bytes();
    let pieces = small_pieces.chunks(16 << 10).map(<[u8]>::to_vec);
    let odd = odd(vec![
        ("event", Says::events(events(&image))),
        ("pieces", Says::events(pieces.collect::<Vec<_>>())),
    ]);
    for model in ["event", "pieces"] {
        let (status, body) = all(&odd, model, true);
        assert_eq!(status, 200, "{model}");
        assert!(body == events(&image).concat().into_bytes(), "{model}");
        let (status, body) = all(&odd, model, false);
        assert_eq!(status, 200, "{model}");
        let whole: Value = serde_json::from_slice(&body).expect("JSON");
        assert!(
            whole["choices"][0]["message"]["content"] == image,
            "{model}"
        );
        assert_eq!(odd.count(model), 2, "{model}");
    }
}

/// Every part of it differs, so that none can be missing or stand elsewhere.
#[test]
fn whole_answer_of_many_pieces_comes_as_it_is() {
    let text: String = (0..200_000).map(|at| format!("{at} ")).collect();
    let mut answer = answer();
    answer["choices"][0]["message"]["content"] = text.clone().into();
    let pieces = answer.to_string().into_bytes();
    let mut in_pieces = Says::body("application/json", "").framed(Framing::Chunked);
    for (at, piece) in pieces.chunks(10_000).enumerate() {
        in_pieces = in_pieces.with(at, Part::Bytes(piece.to_vec()));
    }
    let odd = odd(vec![
        ("at-once", Says::json(&answer)),
        ("pieces", in_pieces),
    ]);
    for model in ["at-once", "pieces"] {
        let whole = odd.whole(model).expect(200);
        assert!(whole.json() == answer, "{model}");
        let streamed = odd.streamed(model).expect(200);
        assert!(streamed.text().contains(&text), "{model}");
    }
}

#[test]
fn answer_that_is_larger_than_may_be_held_is_502_once_in_every_form() {
    let mib = || vec![b'A'; MIB];
    let begin =
        || Part::Bytes(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"".to_vec());
    let event = text(&"A".repeat(MIB)).into_bytes();
    let odd = odd(vec![
        (
            "whole",
            Says::body("application/json", "{\"a\":\"")
                .framed(Framing::Chunked)
                .with(1, Part::Repeat(mib(), 70)),
        ),
        (
            "event",
            Says::events([""])
                .with(1, begin())
                .with(2, Part::Repeat(mib(), 70)),
        ),
        (
            "later-event",
            Says::events([role(), text("hello ")])
                .with(2, begin())
                .with(3, Part::Repeat(mib(), 70)),
        ),
        (
            "assembled",
            Says::events([role()]).with(1, Part::Repeat(event, 70)),
        ),
    ]);
    for (model, stream) in [
        ("whole", false),
        ("whole", true),
        ("event", false),
        ("event", true),
        ("assembled", false),
    ] {
        let (status, body) = all(&odd, model, stream);
        let body = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, 502, "{model} {stream}: {body}");
        assert!(body.contains("64 MiB"), "{model} {stream}: {body}");
    }
    assert_eq!(
        (
            odd.count("whole"),
            odd.count("event"),
            odd.count("assembled")
        ),
        (2, 2, 1)
    );
    let (status, body) = all(&odd, "later-event", true);
    assert_eq!(status, 200);
    assert_one_error_at_the_end(&body);
}

#[test]
fn what_comes_before_the_first_token_is_bounded_whatever_it_is() {
    let endless = |event: String| {
        Says::events([""]).with(1, Part::Repeat(event.repeat(100).into_bytes(), 100_000))
    };
    let odd = odd(vec![
        ("comments", endless(format!(": {}\n\n", "ping".repeat(50)))),
        ("empty", endless("event: ping\ndata:\n\n".to_owned())),
        ("roles", endless(role())),
        (
            "blanks",
            Says::events([""]).with(1, Part::Repeat(vec![b' '; 1 << 16], 100_000)),
        ),
    ]);
    for model in ["comments", "empty", "roles", "blanks"] {
        let (status, _) = all(&odd, model, false);
        assert_eq!(status, 502, "{model}");
        assert_eq!(odd.count(model), 1, "{model}");
    }
    let (status, body) = all(&odd, "roles", true);
    assert_eq!(status, 502, "{}", String::from_utf8_lossy(&body));
    let (status, body) = all(&odd, "comments", true);
    assert_eq!(status, 200, "comments pass at once");
    assert_one_error_at_the_end(&body);
    assert!(body.len() < 2 * MIB, "{}", body.len());
}

#[test]
fn error_of_an_engine_keeps_its_status_and_of_its_words_what_may_be_held() {
    let long = |size| json!({ "error": { "message": "a".repeat(size), "type": "t" } });
    let odd = odd(vec![
        ("long", Says::json(&long(MIB / 2)).status(400)),
        ("longer", Says::json(&long(2 * MIB)).status(400)),
        ("told", Says::json(&long(2 * MIB))),
    ]);
    for (model, status, words) in [
        ("long", 400, MIB / 2..MIB),
        ("longer", 400, 0..100),
        ("told", 502, 0..100),
    ] {
        let error = odd.whole(model).expect_error(status);
        let said = error["message"].as_str().map_or(0, str::len);
        assert!(words.contains(&said), "{model}: {said}");
        assert_eq!(odd.count(model), 1, "{model}");
    }
}

#[test]
fn answers_of_the_usual_size_are_not_touched_by_any_bound() {
    let odd = odd(vec![("usual", Says::events(usual()))]);
    assert_eq!(said(&odd.whole("usual").expect(200)), "hello hello ");
}
