//! What the brackets and strings of a JSON text tell: how deep it is, how many items it has, and the
//! images that stand inline, whose bytes say nothing about their tokens.
//!
//! One pass without recursion, in which strings are skipped. The text is known to be JSON.

use memchr::memchr_iter;

/// A value, as far as its form tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Most brackets that are open at once.
    pub(super) depth: usize,
    /// Items of an array; of anything else it says nothing.
    pub(super) items: u64,
    /// Those of them that are not numbers: a list of numbers is one text in tokens.
    pub(super) texts: u64,
    /// Data URLs.
    pub(super) images: u64,
    /// What they take.
    pub(super) image_bytes: u64,
}

impl Shape {
    pub(super) fn of(json: &str) -> Self {
        let mut shape = Self::default();
        let bytes = json.as_bytes();
        if !json.starts_with(['[', '{']) {
            return shape;
        }
        let is_empty = json[1..].trim_ascii_start().starts_with([']', '}']);
        shape.items = u64::from(!is_empty);
        let (mut depth, mut at) = (0_usize, 0);
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    shape.texts += u64::from(depth == 1);
                    let end = end_of_string(bytes, at);
                    shape.see_string(json, at, end);
                    at = end;
                    continue;
                }
                b'[' | b'{' => {
                    shape.texts += u64::from(depth == 1);
                    depth += 1;
                    shape.depth = shape.depth.max(depth);
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                b',' => shape.items += u64::from(depth == 1),
                _ => {}
            }
            at += 1;
        }
        shape
    }

    /// Only a data URL that is the value of a `url` is an image (or a sound, or a film). A string of text
    /// that looks like it is not: a model would read all of its bytes.
    fn see_string(&mut self, json: &str, start: usize, end: usize) {
        let is_data = json.as_bytes()[start..end].starts_with(b"\"data:");
        if is_data && ends_in_url_key(&json[..start]) {
            self.images += 1;
            self.image_bytes += (end - start) as u64;
        }
    }
}

/// Behind the quote that ends the string that begins at `start`: one behind an even number of backslashes.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let begin = start + 1;
    let ends = memchr_iter(b'"', &bytes[begin..]).find(|quote| {
        let before = bytes[begin..begin + quote].iter().rev();
        before.take_while(|byte| **byte == b'\\').count() % 2 == 0
    });
    ends.map_or(bytes.len(), |quote| begin + quote + 1)
}

fn ends_in_url_key(text: &str) -> bool {
    let key = text.trim_ascii_end().strip_suffix(':');
    key.is_some_and(|key| {
        let key = key.trim_ascii_end();
        key.ends_with("_url\"") || key.ends_with("\"url\"")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn images(json: &str) -> (u64, u64) {
        let shape = Shape::of(json);
        (shape.images, shape.image_bytes)
    }

    #[test]
    fn images_of_a_chat_are_found_with_their_bytes() {
        let image = r#""data:image/png;base64,AAAA""#;
        let json = format!(
            r#"[{{"role":"user","content":[{{"type":"text","text":"Compare"}},
            {{"type":"image_url","image_url":{{"url" : {image}}}}},
            {{"type":"input_image","image_url":{image}}}]}}]"#
        );
        assert_eq!(images(&json), (2, 2 * image.len() as u64));
        assert_eq!(images(r#"[{"role":"user","content":"x"}]"#), (0, 0));
        // PHP escapes slashes, and sound and film take the same way.
        for other in [r"data:image\/png;base64,A\/A", "data:video/mp4;base64,AA"] {
            let json = format!(r#"[{{"video_url":{{"url":"{other}"}}}}]"#);
            assert_eq!(images(&json), (1, other.len() as u64 + 2), "{other}");
        }
    }

    #[test]
    fn text_that_looks_like_an_image_is_text() {
        for text in [
            r#"{"text":"data:image/png;base64,AAAA"}"#,
            r#"{"text":"\"url\":\"data:image/png;base64,AAAA"}"#,
            r#"["url","data:image/png;base64,AAAA"]"#,
            r#""data:image/png;base64,AAAA""#,
        ] {
            assert_eq!(images(text), (0, 0), "{text}");
        }
    }

    #[test]
    fn a_text_that_ends_early_ends_the_scan() {
        for text in ["[", r#"["\"#, r#"[{"url":"data:"#, "[]]]]", r#"["\\\"#] {
            let _ = Shape::of(text);
        }
    }

    #[test]
    fn brackets_in_strings_are_text() {
        let shape = Shape::of(r#"["[[[{", "\"]", {"}":"{"}, [1, 2], 3]"#);
        assert_eq!((shape.depth, shape.items, shape.texts), (2, 5, 4));
        assert_eq!(Shape::of("[ ]").items, 0);
        assert_eq!(Shape::of("17"), Shape::default());
    }

    #[test]
    fn a_hundred_thousand_levels_are_counted_without_a_stack() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(Shape::of(&deep).depth, 100_000);
    }

    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            r#"[\[\]{}",:\\a-c]{0,6}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 5, |inner| {
            let key = r#"[\[\]{}",:\\a-c]{0,3}"#;
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(key, inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn depth_and_items_are_those_of_the_parsed_value(value in json()) {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let shape = Shape::of(&text);
                prop_assert_eq!(shape.depth, depth(&value));
                if let Value::Array(items) = &value {
                    let is_text = |item: &&Value| item.is_string() || item.is_array() || item.is_object();
                    prop_assert_eq!(shape.items, items.len() as u64);
                    prop_assert_eq!(shape.texts, items.iter().filter(is_text).count() as u64);
                }
            }
        }
    }
}
