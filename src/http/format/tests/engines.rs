//! Both forms of the same answer, streamed and not, as engines gave them: what is put together from
//! the one is the other, member by member.

use serde_json::Value;

use super::{
    super::{
        event::{self, Event},
        split::as_events,
        sse::Splitter,
        usage::Unasked,
    },
    assemble::assembled,
};

const LLAMACPP: &str = include_str!("answers/llamacpp.json");
const SGLANG: &str = include_str!("answers/sglang.json");
/// Streams of llama.cpp and vLLM, asked for usage and not.
const UNASKED: &str = include_str!("answers/unasked.json");

/// Both forms of answers, each by its name: `{name: {form: text, form: text}}`.
fn forms(
    recorded: &str,
    [first, second]: [&'static str; 2],
) -> impl Iterator<Item = (String, String, String)> {
    let Value::Object(all) = serde_json::from_str(recorded).unwrap() else {
        panic!("no object");
    };
    all.into_iter().map(move |(name, forms)| {
        let text = |form: &str| forms[form].as_str().unwrap().to_owned();
        (name, text(first), text(second))
    })
}

fn answers(recorded: &str) -> impl Iterator<Item = (String, String, String)> {
    forms(recorded, ["whole", "stream"])
}

/// Without what differs from one request to the next.
fn comparable(answer: &[u8]) -> Value {
    let mut answer: Value = serde_json::from_slice(answer).unwrap();
    for name in ["id", "created"] {
        assert!(answer.as_object_mut().unwrap().shift_remove(name).is_some());
    }
    for call in calls(&mut answer) {
        assert!(call.shift_remove("id").is_some());
    }
    if let Some(Value::Object(timings)) = answer.get_mut("timings") {
        timings.retain(|name, _| name.ends_with("_n"));
    }
    answer
}

fn calls(answer: &mut Value) -> impl Iterator<Item = &mut serde_json::Map<String, Value>> {
    let choices = answer["choices"].as_array_mut().unwrap().iter_mut();
    let messages = choices.filter_map(|choice| choice.get_mut("message"));
    let calls = messages.filter_map(|message| message.get_mut("tool_calls"));
    let calls = calls.filter_map(Value::as_array_mut).flatten();
    calls.filter_map(Value::as_object_mut)
}

fn events(stream: &str) -> Vec<bytes::Bytes> {
    let mut splitter = Splitter::default();
    splitter.push(stream.to_owned().into());
    std::iter::from_fn(|| splitter.next_event()).collect()
}

#[test]
fn the_streams_of_llamacpp_are_put_together_to_its_answers() {
    for (name, whole, stream) in answers(LLAMACPP) {
        let built = assembled(&events(&stream)).unwrap();
        assert_eq!(comparable(&built), comparable(whole.as_bytes()), "{name}");
    }
}

#[test]
fn the_streams_of_sglang_are_put_together_to_its_answers_but_for_what_no_stream_says() {
    for (name, whole, stream) in answers(SGLANG) {
        let mut right = comparable(whole.as_bytes());
        right.as_object_mut().unwrap().shift_remove("metadata");
        let mut built = comparable(&assembled(&events(&stream)).unwrap());
        for answer in [&mut right, &mut built] {
            let usage = answer["usage"].as_object_mut().unwrap();
            usage.retain(|_, value| !value.is_null());
        }
        assert_eq!(built, right, "{name}");
    }
}

#[test]
fn the_answers_of_engines_are_the_same_after_they_were_events() {
    for (name, whole, _) in answers(LLAMACPP).chain(answers(SGLANG)) {
        let events = as_events(whole.as_bytes(), true).unwrap();
        let built = assembled(&events).unwrap();
        assert_eq!(comparable(&built), comparable(whole.as_bytes()), "{name}");
    }
}

#[test]
fn a_stream_whose_client_did_not_ask_for_usage_is_the_engines_own() {
    let chunks = |events: Vec<bytes::Bytes>| -> Vec<Value> {
        let is_chunk = |event: &bytes::Bytes| matches!(event::read(event), Event::Chunk(_));
        let chunks = events.into_iter().filter(is_chunk);
        chunks
            .map(|event| comparable(&event::data(&event)))
            .collect()
    };
    for (name, asked, own) in forms(UNASKED, ["asked", "unasked"]) {
        let (mut unasked, mut passed) = (Unasked::default(), Vec::new());
        for event in events(&asked) {
            match event::read(&event) {
                Event::Chunk(chunk) => {
                    passed.extend(unasked.pass(event.clone(), &chunk).into_iter().flatten());
                }
                Event::Comment | Event::Done | Event::Failed(_) => passed.extend(unasked.held()),
            }
        }
        assert_eq!(chunks(passed), chunks(events(&own)), "{name}");
    }
}

#[test]
fn all_that_engines_stream_is_read() {
    for (name, whole, stream) in answers(LLAMACPP).chain(answers(SGLANG)) {
        let (mut tokens, mut begun, mut finished, mut usage) = (
            0,
            event::Choices::default(),
            event::Choices::default(),
            None,
        );
        for event in events(&stream) {
            if let Event::Chunk(chunk) = event::read(&event) {
                tokens += chunk.tokens;
                begun.extend(chunk.begun);
                finished.extend(chunk.finished);
                usage = chunk.usage.or(usage);
            }
        }
        assert!(!begun.is_empty() && begun == finished, "{name}");
        let whole: Value = serde_json::from_str(&whole).unwrap();
        assert_eq!(
            usage.unwrap().completion_tokens,
            whole["usage"]["completion_tokens"],
            "{name}"
        );
        // llama.cpp tells it of one choice. A fourth of the bytes of text is near enough for an answer
        // that is cut.
        let choices = whole["choices"].as_array().unwrap().len() as u64;
        let right = usage.unwrap().completion_tokens * choices;
        assert!(
            (right / 3..=right * 2).contains(&tokens.into()),
            "{name}: {tokens}"
        );
    }
}
