//! A tokenizer that needs no vocabulary: a token is up to four bytes of one word, and its id is
//! those bytes. Every text comes back from its ids exactly.
//!
//! Like GPT-2's it splits where words, punctuation and white space meet and lets a word keep the
//! space before it, so English has about four characters a token and texts that start alike have
//! ids that start alike, which is all the prefix cache looks at.

/// Begins a message in the chat template.
const START: u32 = special(1);
/// Stands between a message's role and its content.
const SEPARATOR: u32 = special(2);
/// Ends a message.
const END: u32 = special(3);

/// Ids of text have their first byte in the lowest place, and only the id of NUL has a 0 there. So
/// every other id with a 0 there is free.
const fn special(number: u32) -> u32 {
    number << 8
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Word,
    Mark,
    Space,
    /// Has a token of its own: a 0 elsewhere in an id means "shorter than four bytes".
    Nul,
}

impl Class {
    fn of(c: char) -> Self {
        match c {
            '\0' => Self::Nul,
            c if c.is_whitespace() => Self::Space,
            c if c.is_alphanumeric() => Self::Word,
            _ => Self::Mark,
        }
    }
}

/// The ids of a text.
pub(super) fn encode(text: &str) -> Vec<u32> {
    let mut ids = Vec::with_capacity(text.len() / 3);
    encode_into(&mut ids, text);
    ids
}

fn encode_into(ids: &mut Vec<u32>, text: &str) {
    let mut piece = [0; 4];
    let mut length = 0;
    let mut class = Class::Space;
    for c in text.chars() {
        let next = Class::of(c);
        // One space goes with the word or mark after it.
        let joins = next == class && class != Class::Nul
            || piece[..length] == *b" " && matches!(next, Class::Word | Class::Mark);
        if length > 0 && !(joins && length + c.len_utf8() <= 4) {
            ids.push(u32::from_le_bytes(piece));
            piece = [0; 4];
            length = 0;
        }
        c.encode_utf8(&mut piece[length..]);
        length += c.len_utf8();
        class = next;
    }
    if length > 0 {
        ids.push(u32::from_le_bytes(piece));
    }
}

/// The text of ids. Special tokens have none, and what is no text becomes U+FFFD.
pub(super) fn decode(ids: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(ids.len() * 4);
    for id in ids {
        let piece = id.to_le_bytes();
        match piece {
            [0, 0, 0, 0] => bytes.push(0),
            [0, ..] => {}
            _ => bytes.extend(piece.iter().take_while(|byte| **byte != 0)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The ids of a conversation up to where the assistant's next message begins.
pub(super) fn encode_chat<'a>(messages: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<u32> {
    let mut ids = Vec::new();
    for (role, content) in messages {
        ids.push(START);
        encode_into(&mut ids, role);
        ids.push(SEPARATOR);
        encode_into(&mut ids, content);
        ids.push(END);
    }
    ids.push(START);
    encode_into(&mut ids, "assistant");
    ids.push(SEPARATOR);
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(text: &str) -> Vec<String> {
        encode(text).iter().map(|id| decode(&[*id])).collect()
    }

    #[test]
    fn english_has_about_four_characters_a_token() {
        assert_eq!(
            pieces("The quick fox, ran."),
            ["The", " qui", "ck", " fox", ",", " ran", "."]
        );
        assert_eq!(pieces("a  b\n\nc"), ["a", "  ", "b", "\n\n", "c"]);
    }

    #[test]
    fn special_tokens_are_no_text() {
        let ids = encode_chat([("user", "hi")].into_iter());
        assert_eq!(decode(&ids), "userhiassistant");
        assert!(!encode("\0").contains(&START));
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in "(\\PC|[ a-z\0\n]){0,60}") {
            prop_assert_eq!(decode(&encode(&text)), text);
        }
    }
}
