//! Images that stand inline in a prompt: their bytes say nothing about their tokens.

/// How many there are in this JSON text, and how many bytes they take.
///
/// Only a data URL that is the value of `url` or `image_url` is one. A string of text that looks like
/// it is not: quotes in it are escaped, and a model would read all of its bytes.
#[must_use]
pub(crate) fn inline_images(json: &str) -> (u64, u64) {
    let (mut images, mut bytes) = (0, 0);
    let mut rest = json;
    while let Some(at) = rest.find(r#""data:image/"#) {
        let (before, value) = rest.split_at(at);
        let end = value[1..].find('"').map_or(value.len(), |quote| quote + 2);
        if ends_in_url_key(before) {
            images += 1;
            bytes += end as u64;
        }
        rest = &value[end..];
    }
    (images, bytes)
}

fn ends_in_url_key(text: &str) -> bool {
    let key = text.trim_end().strip_suffix(':').map(str::trim_end);
    key.is_some_and(|key| key.ends_with(r#""url""#) || key.ends_with(r#""image_url""#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_chat_are_found_with_their_bytes() {
        let image = r#""data:image/png;base64,AAAA""#;
        let json = format!(
            r#"[{{"role":"user","content":[{{"type":"text","text":"Compare"}},
            {{"type":"image_url","image_url":{{"url" : {image}}}}},
            {{"type":"input_image","image_url":{image}}}]}}]"#
        );
        assert_eq!(inline_images(&json), (2, 2 * image.len() as u64));
        assert_eq!(inline_images(r#"[{"role":"user","content":"x"}]"#), (0, 0));
    }

    #[test]
    fn text_that_looks_like_an_image_is_text() {
        for text in [
            r#"{"text":"data:image/png;base64,AAAA"}"#,
            r#"{"text":"\"url\":\"data:image/png;base64,AAAA"}"#,
            r#"["url","data:image/png;base64,AAAA"]"#,
        ] {
            assert_eq!(inline_images(text), (0, 0), "{text}");
        }
    }

    #[test]
    fn an_unfinished_image_ends_with_the_text() {
        assert_eq!(inline_images(r#""url":"data:image/"#), (1, 12));
    }
}
