//! What comes of the bytes that an engine answers with.

use std::io::ErrorKind;

use super::*;

/// The engine answers with `bytes` and closes the connection.
async fn answer(bytes: Vec<u8>, piece: usize) -> String {
    let bytes: Rc<[u8]> = bytes.into();
    let to = engine(move |_, mut connection| {
        let bytes = bytes.clone();
        async move {
            request(&mut connection).await;
            write(&mut connection, &bytes, piece).await;
        }
    })
    .await;
    let response = match post(&Engines::new(), &to).await {
        Ok(response) => response,
        Err(Unanswered { fault, why }) => return format!("{fault:?}: {why}"),
    };
    let status = response.status.as_u16();
    match read(response.body).await {
        Ok(body) => format!("{status} {}", String::from_utf8_lossy(&body)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => format!("{status}, then cut"),
        Err(error) => format!("{status}, then {error}"),
    }
}

/// Status line and fields, then the rest of the bytes, then what comes of it: all of it, or its beginning
/// if it ends in `..`.
type Row = (&'static str, &'static str, &'static str);

async fn check(rows: &[Row]) {
    for (head, rest, expected) in rows {
        let bytes = format!("HTTP/1.{}\r\n\r\n{rest}", head.replace(" | ", "\r\n"));
        for piece in [usize::MAX, 7, 1] {
            let came = answer(bytes.clone().into_bytes(), piece).await;
            let is_right = match expected.strip_suffix("..") {
                Some(beginning) => came.starts_with(beginning),
                None => came == *expected,
            };
            assert!(is_right, "{bytes:?} in pieces of {piece}: {came}");
        }
    }
}

#[actix_web::test]
async fn body_ends_where_its_head_says() {
    check(&[
        ("1 200 OK | content-length: 5", "hello", "200 hello"),
        ("1 200 OK | Content-Length: 0", "", "200 "),
        ("1 200 | content-length: 5, 5", "hello", "200 hello"),
        (
            "1 200 OK | content-length: 5 | content-length:5 ",
            "hello",
            "200 hello",
        ),
        ("0 200 OK | content-length: 5", "hello", "200 hello"),
        ("1 503 Busy | content-length: 4", "full", "503 full"),
        ("1 200 OK", "hello", "200 hello"),
        ("0 200 OK", "hello", "200 hello"),
        ("1 200 OK | connection: close", "", "200 "),
        (
            "1 200 OK | content-encoding: identity",
            "hello",
            "200 hello",
        ),
        ("1 200 OK | content-length: 6", "hello", "200, then cut"),
        (
            "1 200 OK | content-length: 18446744073709551615",
            "hello",
            "200, then cut",
        ),
    ])
    .await;
}

#[actix_web::test]
async fn chunks_are_put_together() {
    const CHUNKED: &str = "1 200 OK | Transfer-Encoding: chunked";
    check(&[
        (CHUNKED, "5\r\nhello\r\n0\r\n\r\n", "200 hello"),
        (
            "1 200 OK | transfer-encoding: \tCHUNKED ",
            "0\r\n\r\n",
            "200 ",
        ),
        (CHUNKED, "2\r\nhe\r\n3\r\nllo\r\n000\r\n\r\n", "200 hello"),
        (
            CHUNKED,
            "00A;a=\"b;c\"\r\nhellohello\r\n0 ;x\r\n\r\n",
            "200 hellohello",
        ),
        (
            CHUNKED,
            "a  \r\nhellohello\r\n0\r\nx: y\r\nz: \r\n\r\n",
            "200 hellohello",
        ),
        (CHUNKED, "2\r\n\r\n\r\n0\r\n\r\n", "200 \r\n"),
        (
            CHUNKED,
            "5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n",
            "200 hello",
        ),
        (CHUNKED, "5\r\nhello\r\n0\r\n", "200, then cut"),
        (CHUNKED, "5\r\nhello\r\n", "200, then cut"),
        (CHUNKED, "5\r\nhel", "200, then cut"),
        (CHUNKED, "", "200, then cut"),
        (
            CHUNKED,
            "5\r\nhello!\r\n0\r\n\r\n",
            "200, then a chunk is longer..",
        ),
        (
            CHUNKED,
            "5\r\nhello\n0\r\n\r\n",
            "200, then a chunk is longer..",
        ),
        (
            CHUNKED,
            "5\nhello\r\n0\r\n\r\n",
            "200, then a chunk's size..",
        ),
        (
            CHUNKED,
            "5;a\nhello\r\n0\r\n\r\n",
            "200, then a chunk's size..",
        ),
        (
            CHUNKED,
            "5 5\r\nhello\r\n0\r\n\r\n",
            "200, then a chunk's size..",
        ),
        (
            CHUNKED,
            "g\r\nhello\r\n0\r\n\r\n",
            "200, then a chunk's size..",
        ),
        (
            CHUNKED,
            "\r\nhello\r\n0\r\n\r\n",
            "200, then a chunk's size..",
        ),
        (
            CHUNKED,
            "-5\r\nhello\r\n0\r\n\r\n",
            "200, then a chunk's size..",
        ),
        (
            CHUNKED,
            "0x5\r\nhello\r\n0\r\n\r\n",
            "200, then a chunk's size..",
        ),
        (
            CHUNKED,
            "10000000000000000\r\nhello",
            "200, then a chunk's size..",
        ),
        (CHUNKED, "0\r\nx\n\r\n\r\n", "200, then the lines behind.."),
    ])
    .await;
}

#[actix_web::test]
async fn heads_that_only_announce_the_answer_are_skipped() {
    const ONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    let many = |heads| {
        format!(
            "{}{ONE}",
            "HTTP/1.1 102 Processing\r\nx: y\r\n\r\n".repeat(heads)
        )
    };
    check(&[
        ("1 100 Continue", ONE, "200 hello"),
        ("1 103 Early Hints | link: </x>", ONE, "200 hello"),
        (
            "1 101 Switching Protocols | upgrade: x",
            ONE,
            "Unusable: the engine answered..",
        ),
    ])
    .await;
    for piece in [usize::MAX, 1] {
        assert_eq!(answer(many(8).into(), piece).await, "200 hello");
        let came = answer(many(9).into(), piece).await;
        assert!(came.starts_with("Unusable: too many"), "{came}");
    }
}

#[actix_web::test]
async fn what_is_no_answer_is_an_error_that_says_why() {
    const GONE: &str = "Unusable: the engine answered 307 and points to http://there/..";
    const HEAD: &str = "Unusable: the head is none: ..";
    const LENGTH: &str = "Unusable: content-length is no number";
    const CODED: &str = "Unusable: transfer-encoding is not chunked alone";
    check(&[
        (
            "1 204 No Content",
            "",
            "Unusable: the engine answered 204..",
        ),
        (
            "1 205 Reset | content-length: 0",
            "",
            "Unusable: the engine answered 205..",
        ),
        (
            "1 304 Not Modified",
            "",
            "Unusable: the engine answered 304..",
        ),
        ("1 307 There | location: http://there/", "", GONE),
        (
            "1 600 Odd",
            "",
            "Unusable: the engine answered with the status 600",
        ),
        ("1 99 Odd", "", HEAD),
        ("1 2000 Odd", "", HEAD),
        ("2 200 OK", "", HEAD),
        (
            "1 200 OK | content-encoding: gzip",
            "",
            "Unusable: the engine's answer is coded as gzip..",
        ),
        ("1 200 OK | x", "", HEAD),
        ("1 200 OK | x : y", "", HEAD),
        ("1 200 OK | x: y |  z", "", HEAD),
        ("1 200 OK | x: \u{0}", "", HEAD),
        ("1 200 OK | content-length: -5", "hello", LENGTH),
        ("1 200 OK | content-length: +5", "hello", LENGTH),
        ("1 200 OK | content-length:", "hello", LENGTH),
        ("1 200 OK | content-length: 5,", "hello", LENGTH),
        (
            "1 200 OK | content-length: 18446744073709551616",
            "hello",
            LENGTH,
        ),
        (
            "1 200 OK | content-length: 5, 6",
            "hello",
            "Unusable: content-length says two things",
        ),
        (
            "1 200 OK | content-length: 5 | content-length: 6",
            "",
            "Unusable: content-length says..",
        ),
        (
            "1 200 OK | transfer-encoding: gzip, chunked",
            "0\r\n\r\n",
            CODED,
        ),
        (
            "1 200 OK | transfer-encoding: chunked, chunked",
            "0\r\n\r\n",
            CODED,
        ),
        ("1 200 OK | transfer-encoding: identity", "hello", CODED),
        (
            "1 200 OK | transfer-encoding: chunked | content-length: 5",
            "",
            "Unusable: both..",
        ),
        (
            "0 200 OK | transfer-encoding: chunked",
            "0\r\n\r\n",
            "Unusable: transfer-encoding in..",
        ),
    ])
    .await;
}

#[actix_web::test]
async fn other_protocols_and_half_heads_are_no_answers() {
    for (bytes, expected) in [
        ("", "Lost: the engine closed"),
        ("HTTP/1.1 200 OK\r\ncontent-le", "Lost: the engine closed"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "Unusable: the head is none"),
        ("\r\n\r\n", "Unusable: the head is none"),
        ("\n\n", "Unusable: the head is none"),
        ("\u{15}\u{3}\u{1}\n\n", "Unusable: the head is none"),
    ] {
        for piece in [usize::MAX, 1] {
            let came = answer(bytes.as_bytes().to_vec(), piece).await;
            assert!(came.starts_with(expected), "{bytes:?}: {came}");
        }
    }
}

#[actix_web::test]
async fn heads_and_what_stands_between_chunks_are_bounded() {
    let padded = |size| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(size));
    let fields = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(count));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let extension = |size| format!("{chunked}0;{}\r\n\r\n", "y".repeat(size));
    let trailers = |count| format!("{chunked}0\r\n{}\r\n", "x: y\r\n".repeat(count));
    for (bytes, expected) in [
        (padded(65_000), "200 "),
        (
            padded(66_000),
            "Unusable: the head of the answer is too long",
        ),
        (
            format!("HTTP/1.1 200 {}", "y".repeat(66_000)),
            "Unusable: the head of the answer is too",
        ),
        (fields(100), "200 "),
        (fields(101), "Unusable: the head is none: too many headers"),
        (extension(65_000), "200 "),
        (extension(66_000), "200, then too much between two chunks"),
        (trailers(10_000), "200 "),
        (trailers(11_000), "200, then too much between two chunks"),
    ] {
        for piece in [usize::MAX, 1000] {
            let came = answer(bytes.clone().into_bytes(), piece).await;
            assert!(came.starts_with(expected), "{} bytes: {came}", bytes.len());
        }
    }
}

#[actix_web::test]
async fn body_longer_than_its_length_is_an_error_where_that_is_seen() {
    let came = answer([WHOLE, b"!"].concat(), usize::MAX).await;
    assert_eq!(came, "200, then the body is longer than its content-length");
    let none = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n{}".to_vec();
    let came = answer(none, usize::MAX).await;
    assert_eq!(came, "200, then the body is longer than its content-length");
}

#[actix_web::test]
async fn engine_says_what_it_is_and_when_to_ask_again() {
    let to = engine(async |_, mut connection| {
        request(&mut connection).await;
        let fields = "Retry-After: 7\r\nretry-after-ms: 6500\r\nX-Should-Retry: true\r\n\
                      content-type: text/event-stream\r\nx-kvwarden-simulated: true";
        let bytes = format!("HTTP/1.1 429 Slow\r\n{fields}\r\ncontent-length: 0\r\n\r\n");
        write(&mut connection, bytes.as_bytes(), usize::MAX).await;
    })
    .await;
    let response = post(&Engines::new(), &to).await.unwrap();
    assert_eq!(response.status.as_u16(), 429);
    assert_eq!(response.content_type.as_deref(), Some("text/event-stream"));
    assert!(response.is_simulated);
    assert_eq!(response.retry.retry_after.unwrap(), "7");
    assert_eq!(response.retry.retry_after_ms.unwrap(), "6500");
    assert_eq!(response.retry.should_retry.unwrap(), "true");
}
