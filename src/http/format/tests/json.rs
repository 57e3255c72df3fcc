use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{super::json::*, json_like, value};

fn is_json(text: &[u8]) -> bool {
    let Ok(mut json) = Json::new(text) else {
        return false;
    };
    json.value().is_ok() && json.end().is_ok()
}

#[test]
fn depth_is_bounded_and_numbers_strings_and_literals_are_checked() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let deepest = usize::from(MAX_DEPTH);
    assert!(is_json(nested(deepest).as_bytes()));
    assert!(!is_json(nested(deepest + 1).as_bytes()));
    assert!(!is_json("[".repeat(1 << 20).as_bytes()));
    for right in [
        "-0.5e-3",
        r#""\ud83d""#,
        " true ",
        r#"{"a":[1,{}]}"#,
        "\"\u{7f}\"",
    ] {
        assert!(is_json(right.as_bytes()), "{right}");
    }
    for wrong in [
        "01",
        "1.",
        ".5",
        "+1",
        "nul",
        "truee",
        "\"\u{1f}\"",
        r#""\x""#,
        r#""\u12g4""#,
        "{1:2}",
        "[1,]",
        "{\"a\":1,}",
        "[1 2]",
        "",
        "\u{feff}1",
        "'a'",
    ] {
        assert!(!is_json(wrong.as_bytes()), "{wrong}");
    }
}

#[test]
fn a_key_is_known_however_it_is_spelt() {
    let mut keys = Vec::new();
    let read = Json::of(r#"{"us\u0061ge":1,"a\"\u0041":2,"\ud83d":3}"#).object(|json, key| {
        keys.push(key.clone().into_owned());
        json.value().map(drop)
    });
    assert_eq!(read, Ok(()));
    assert_eq!(keys, ["usage", r#"a\"A"#, r"\ud83d"]);
}

#[test]
fn what_says_nothing_is_empty() {
    for raw in ["null", r#""""#, "[ ]", "{\n}"] {
        assert!(is_empty(raw), "{raw}");
    }
    for raw in ["0", "false", r#"" ""#, "[null]", r#"{"a":null}"#] {
        assert!(!is_empty(raw), "{raw}");
    }
}

proptest! {
    #[test]
    fn takes_what_serde_json_takes_and_nothing_else(text in json_like()) {
        let known = serde_json::from_slice::<&RawValue>(&text).is_ok();
        prop_assert_eq!(is_json(&text), known);
    }

    #[test]
    fn values_come_out_as_they_were_spelt(value in value()) {
        let text = serde_json::to_string_pretty(&value).unwrap();
        prop_assert_eq!(Json::of(&text).value(), Ok(text.as_str()));
    }

    #[test]
    fn length_of_text_is_that_of_what_it_stands_for(text in "[a-z\"\\\\/\n\t\x00-\x1fé中😀]{0,20}") {
        let spelt = serde_json::to_string(&text).unwrap();
        let inside = &spelt[1..spelt.len() - 1];
        prop_assert_eq!(decoded_len(inside), text.len());
        let as_ascii: String = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        prop_assert_eq!(decoded_len(&as_ascii), text.len());
    }

    #[test]
    fn length_of_text_is_known_of_any_inside(inside in "[a-z\\\\u0-9]{0,20}") {
        prop_assert!(decoded_len(&inside) <= inside.len());
    }
}
