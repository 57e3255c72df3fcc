use bytes::Bytes;
use proptest::prelude::*;

use super::super::sse::*;

/// The events of a body that comes in pieces of these lengths, over and over.
fn events(body: &[u8], cuts: &[usize]) -> Vec<Bytes> {
    let (mut splitter, mut events, mut rest) = (Splitter::default(), Vec::new(), body);
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*cut).min(rest.len()));
        splitter.push(Bytes::copy_from_slice(now));
        events.extend(std::iter::from_fn(|| splitter.next_event()));
        rest = later;
    }
    events.extend(splitter.rest());
    assert_eq!((splitter.pending(), splitter.rest()), (0, None));
    events
}

fn at_once(body: &str) -> Vec<Bytes> {
    events(body.as_bytes(), &[usize::MAX])
}

#[test]
fn events_end_with_a_blank_line_whatever_ends_a_line() {
    for (body, whole) in [
        ("data: a\n\ndata: b\n\n", ["data: a\n\n", "data: b\n\n"]),
        (
            "data: a\r\n\r\ndata: b\r\n\r\n",
            ["data: a\r\n\r\n", "data: b\r\n\r\n"],
        ),
        ("data: a\r\rdata: b\r\r", ["data: a\r\r", "data: b\r\r"]),
        (
            "data: a\r\n\ndata: b\n\r\n",
            ["data: a\r\n\n", "data: b\n\r\n"],
        ),
        (
            "data: a\n\rdata: b\r\n\r\n",
            ["data: a\n\r", "data: b\r\n\r\n"],
        ),
        ("\u{feff}data: a\n\n: b", ["\u{feff}data: a\n\n", ": b"]),
        (
            "data: a\ndata: b\n\nid: 1",
            ["data: a\ndata: b\n\n", "id: 1"],
        ),
    ] {
        assert_eq!(at_once(body), whole, "{body:?}");
    }
}

#[test]
fn an_event_whose_lines_end_with_cr_is_not_held_back() {
    let mut splitter = Splitter::default();
    splitter.push(Bytes::from_static(b"data: a\r\r"));
    assert_eq!(splitter.next_event().unwrap(), "data: a\r\r");
}

#[test]
fn a_piece_that_is_whole_events_is_not_copied() {
    let piece = Bytes::from_static(b"data: a\n\ndata: b\n\n");
    let mut splitter = Splitter::default();
    splitter.push(piece.clone());
    assert_eq!(splitter.next_event().unwrap().as_ptr(), piece.as_ptr());
    assert_eq!(splitter.next_event().unwrap().as_ptr(), piece[9..].as_ptr());
}

#[test]
fn what_is_not_whole_is_known_by_its_length() {
    let mut splitter = Splitter::default();
    splitter.push(Bytes::from_static(b": a\n\ndata"));
    assert_eq!(splitter.pending(), 4);
    splitter.push(Bytes::from_static(b": b\n"));
    assert_eq!(splitter.pending(), 8);
    splitter.push(Bytes::from_static(b"\n"));
    assert_eq!(splitter.pending(), 0);
}

/// Each byte is looked at once: quadratic, this would take minutes.
#[test]
fn an_event_of_many_small_pieces_is_put_together_once() {
    let mut splitter = Splitter::default();
    for _ in 0..200_000 {
        splitter.push(Bytes::from_static(&[b'x'; 500]));
    }
    splitter.push(Bytes::from_static(b"\n\n"));
    assert_eq!(splitter.next_event().unwrap().len(), 100_000_002);
}

#[test]
fn events_are_known_by_their_first_bytes() {
    for events in [
        "data: {}",
        "data:{}",
        ": ping",
        "event: x",
        "id: 1",
        "retry: 3",
        "\n\ndata: x",
        "\u{feff}data: x",
        "da",
    ] {
        assert!(looks_like_events(events.as_bytes()), "{events:?}");
    }
    for other in [
        "",
        " ",
        "{\"data\":1}",
        "[1]",
        "\"data:\"",
        "<html>",
        "error",
        "null",
    ] {
        assert!(!looks_like_events(other.as_bytes()), "{other:?}");
    }
}

/// WHATWG HTML 9.2.5, as it is written: lines first, then events.
fn slow_events(body: &str) -> Vec<Vec<&str>> {
    let body = body.strip_prefix('\u{feff}').unwrap_or(body);
    let lines: Vec<&str> = lines_of(body);
    let events = lines.split(|line| line.is_empty());
    let named = events.map(<[&str]>::to_vec);
    named.filter(|lines| !lines.is_empty()).collect()
}

fn lines_of(mut body: &str) -> Vec<&str> {
    let mut found = Vec::new();
    while let Some(end) = body.find(['\r', '\n']) {
        found.push(&body[..end]);
        let both = body[end..].starts_with("\r\n");
        body = &body[end + 1 + usize::from(both)..];
    }
    found.push(body);
    found
}

fn body() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\n"),
        Just("\r"),
        Just("\r\n"),
        Just("data: x"),
        Just(":")
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn events_are_the_same_however_the_bytes_are_cut(
        body in body(),
        cuts in prop::collection::vec(1_usize..9, 1..20),
    ) {
        let whole = at_once(&body);
        prop_assert_eq!(whole.concat(), body.as_bytes());
        prop_assert_eq!(events(body.as_bytes(), &cuts), whole);
    }

    #[test]
    fn events_have_the_lines_that_the_standard_says(body in body()) {
        let whole = at_once(&body);
        let found: Vec<Vec<&str>> = whole
            .iter()
            .map(|event| lines(event).filter(|line| !line.is_empty()))
            .map(|lines| lines.map(|line| std::str::from_utf8(line).unwrap()).collect())
            .filter(|lines: &Vec<&str>| !lines.is_empty())
            .collect();
        prop_assert_eq!(found, slow_events(&body));
    }

    #[test]
    fn any_bytes_come_out_as_they_went_in(
        body in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(1_usize..9, 1..20),
    ) {
        prop_assert_eq!(events(&body, &cuts).concat(), body);
    }
}
