//! Any cut of the same bytes is the same answer, and no bytes are a panic.

use proptest::{collection::vec, prelude::*};

use super::super::{beginning::Beginning, framing::Framing};

/// A body in chunks as the bytes say it, read slowly: line by line, from the whole of it.
fn slowly(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = |at: usize| {
        let length = bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let line = &bytes[at..at + length];
        let is_one = !line.iter().any(|byte| b"\r\n".contains(byte));
        is_one.then_some((line, at + length + 2))
    };
    let (mut body, mut at) = (Vec::new(), 0_usize);
    loop {
        let (size, data) = line(at)?;
        let (digits, extension) = match size.iter().position(|byte| b" \t;".contains(byte)) {
            Some(end) => size.split_at(end),
            None => (size, &b""[..]),
        };
        let blanks = extension.iter().take_while(|byte| b" \t".contains(byte));
        let extension = &extension[blanks.count()..];
        let is_size = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
        let is_extension = extension.is_empty() || extension[0] == b';';
        if !is_size || !is_extension {
            return None;
        }
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at = data;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let (trailer, behind) = line(at)?;
        at = behind;
        if trailer.is_empty() {
            return Some((body, bytes.len() - at));
        }
    }
}

/// The same, in pieces.
fn in_pieces(mut framing: Framing, bytes: &[u8], cuts: &[usize]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0_usize);
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let end = at.saturating_add(cut).min(bytes.len());
        let mut piece = bytes[at..end].to_vec();
        let decoded = framing.decode(&mut piece).ok()?;
        body.extend_from_slice(&piece[decoded.body]);
        if let Some(left) = decoded.end {
            return Some((body, left + bytes.len() - end));
        }
        at = end;
    }
    None
}

/// Something that looks like a body in chunks, often a right one.
fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (
        vec(any::<u8>(), 1..40),
        "(|;|[ \t]{0,2};[a-z=\"\r ]{0,8}| )",
    )
        .prop_map(|(data, extension)| {
            let size = format!("{:x}{extension}\r\n", data.len());
            [size.as_bytes(), &data, b"\r\n"].concat()
        });
    let end = prop_oneof![
        5 => Just("0\r\n\r\n".to_owned()),
        1 => "0{1,3}(;x)?\r\n([a-z]: [a-z]{0,5}\r\n){0,3}\r\n(HTTP)?",
        1 => "[0-9a-g\r\n; ]{0,12}",
    ];
    (vec(chunk, 0..6), end).prop_map(|(chunks, end)| [chunks.concat(), end.into()].concat())
}

proptest! {
    #[test]
    fn chunks_in_any_pieces_are_the_body_that_they_are_read_slowly(
        bytes in chunks(),
        cuts in vec(0usize..20, 0..60),
    ) {
        let expected = slowly(&bytes);
        prop_assert_eq!(in_pieces(Framing::chunked(), &bytes, &cuts), expected.clone());
        let ones = vec![1; bytes.len()];
        prop_assert_eq!(in_pieces(Framing::chunked(), &bytes, &ones), expected);
    }

    #[test]
    fn what_is_damaged_reads_the_same_in_any_pieces(
        mut bytes in chunks(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cuts in vec(0usize..20, 0..60),
    ) {
        for (at, byte) in damage.into_iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let expected = slowly(&bytes);
        prop_assert_eq!(in_pieces(Framing::chunked(), &bytes, &cuts), expected);
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in vec(any::<u8>(), 0..300), cuts in vec(0usize..40, 0..20)) {
        for framing in [Framing::chunked(), Framing::Length(100), Framing::ToClose] {
            in_pieces(framing, &bytes, &cuts);
        }
        let _ = Beginning::default().take(&bytes);
    }

    #[test]
    fn head_in_any_pieces_is_the_same_head(
        interim in 0usize..4,
        fields in vec("[a-z]{1,8}: [a-z]{0,8}\r\n", 0..5),
        body in vec(any::<u8>(), 0..30),
        cuts in vec(1usize..30, 0..60),
    ) {
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(interim);
        let head = format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: 77\r\n{}\r\n", fields.concat());
        let bytes = [head.as_bytes(), &body].concat();
        let (mut beginning, mut at) = (Beginning::default(), 0_usize);
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let end = at.saturating_add(cut).min(bytes.len());
            if let Some((begun, taken)) = beginning.take(&bytes[at..end]).unwrap() {
                prop_assert_eq!(at + taken, head.len());
                prop_assert_eq!(begun.framing, Framing::Length(77));
                return Ok(());
            }
            at = end;
        }
        prop_assert!(false, "the head never ended");
    }
}
