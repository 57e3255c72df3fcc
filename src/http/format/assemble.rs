//! Puts a streamed answer together into the one a non-streaming client asked for.
//!
//! Some engines compute an unstreamed answer to its end even if nobody waits for it any more
//! (llama.cpp always, SGLang for seconds). So those are always asked to stream.

use kvwarden_policy::cost::Usage;
use serde_json::{Map, Value, json};

use super::event;

/// Why it cannot be told what an answer is: a client gets an error rather than a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unmergeable(&'static str);

/// An answer in the making.
#[derive(Default)]
pub struct Assembly {
    head: Map<String, Value>,
    choices: Vec<Value>,
    length: usize,
}

impl Assembly {
    /// Adds what one event says.
    ///
    /// # Errors
    /// When it cannot be told what the answer is with it.
    pub fn add(&mut self, event: &[u8]) -> Result<(), Unmergeable> {
        self.length += event.len();
        let data = event::data(event);
        if data.trim_ascii().is_empty() || data.trim_ascii().starts_with(b"[DONE]") {
            return Ok(());
        }
        let Ok(Value::Object(mut chunk)) = serde_json::from_slice(&data) else {
            return Err(Unmergeable("an event that is no chunk"));
        };
        let choices = chunk.remove("choices");
        chunk.retain(|_, value| !value.is_null());
        self.head.extend(chunk);
        if let Some(Value::Array(choices)) = choices {
            choices
                .into_iter()
                .for_each(|choice| self.add_choice(choice));
        }
        Ok(())
    }

    /// Bytes that it holds, nearly.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    fn add_choice(&mut self, mut choice: Value) {
        let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
        // An index beyond OpenAI's 128 choices is an engine's mistake, not a reason to allocate.
        let index = usize::try_from(index).unwrap_or(0).min(127);
        while self.choices.len() <= index {
            self.choices.push(json!({}));
        }
        if let Some(choice) = choice.as_object_mut()
            && let Some(delta) = choice.remove("delta")
        {
            choice.insert("message".to_owned(), delta);
        }
        merge(&mut self.choices[index], choice);
    }

    /// The whole answer, with `usage` as it was counted over all choices.
    ///
    /// # Errors
    /// When it cannot be told what the answer is.
    pub fn finish(mut self, usage: Option<Usage>) -> Result<Vec<u8>, Unmergeable> {
        if let Some(Value::String(object)) = self.head.get_mut("object")
            && let Some(whole) = object.strip_suffix(".chunk")
        {
            *object = whole.to_owned();
        }
        for choice in &mut self.choices {
            if let Some(message) = choice.get_mut("message").and_then(Value::as_object_mut) {
                message.entry("content").or_insert(Value::Null);
                strip_call_indices(message);
            }
        }
        if let (Some(usage), Some(Value::Object(told))) = (usage, self.head.get_mut("usage")) {
            told.insert(
                "completion_tokens".to_owned(),
                usage.completion_tokens.into(),
            );
            told.insert("total_tokens".to_owned(), usage.total().into());
        }
        self.head
            .insert("choices".to_owned(), Value::Array(self.choices));
        Ok(Value::Object(self.head).to_string().into_bytes())
    }
}

/// `delta` continues `whole`: texts and lists are appended, objects merged, the rest replaced.
fn merge(whole: &mut Value, delta: Value) {
    match (whole, delta) {
        (_, Value::Null) => {}
        (Value::String(text), Value::String(more)) => text.push_str(&more),
        (Value::Object(object), Value::Object(more)) => {
            for (key, value) in more {
                match key.as_str() {
                    // Repeated in chunks, not continued.
                    "role" | "id" | "type" | "index" | "finish_reason" | "stop_reason" => {
                        if !value.is_null() {
                            object.insert(key, value);
                        }
                    }
                    _ => merge(object.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (Value::Array(list), Value::Array(more)) => {
            for value in more {
                merge_into_list(list, value);
            }
        }
        (whole, delta) => *whole = delta,
    }
}

/// Parts of a tool call carry the index of the call they continue; all else is appended.
fn merge_into_list(list: &mut Vec<Value>, value: Value) {
    let index = value.get("index").and_then(Value::as_u64);
    let known = index.and_then(|index| {
        list.iter_mut()
            .find(|item| item.get("index").and_then(Value::as_u64) == Some(index))
    });
    match known {
        Some(item) => merge(item, value),
        None => list.push(value),
    }
}

fn strip_call_indices(message: &mut Map<String, Value>) {
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        for call in calls.iter_mut().filter_map(Value::as_object_mut) {
            call.remove("index");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(chunks: &[Value]) -> Value {
        let mut assembly = Assembly::default();
        for chunk in chunks {
            let event = format!("data: {chunk}\n\n");
            assembly.add(event.as_bytes()).unwrap();
        }
        serde_json::from_slice(&assembly.finish(None).unwrap()).unwrap()
    }

    #[test]
    fn chat_deltas_become_one_message() {
        let answer = assembled(&[
            json!({"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}),
            json!({"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}),
            json!({"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}),
            json!({"id":"c1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}),
        ]);
        assert_eq!(
            answer,
            json!({"id":"c1","object":"chat.completion",
                "choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],
                "usage":{"prompt_tokens":3,"completion_tokens":2}})
        );
    }

    #[test]
    fn choices_logprobs_and_tool_calls_stay_apart() {
        let answer = assembled(&[
            json!({"choices":[{"index":1,"text":"b","logprobs":{"tokens":["b"]}}]}),
            json!({"choices":[{"index":0,"text":"a"}]}),
            json!({"choices":[{"index":1,"text":"B","logprobs":{"tokens":["B"]}}]}),
        ]);
        assert_eq!(answer["choices"][0]["text"], "a");
        assert_eq!(answer["choices"][1]["text"], "bB");
        assert_eq!(
            answer["choices"][1]["logprobs"]["tokens"],
            json!(["b", "B"])
        );

        let call = |index: u64, function: Value| json!({"choices":[{"index":0,"delta":{"tool_calls":[{"index":index,"id":"t","type":"function","function":function}]}}]});
        let answer = assembled(&[
            call(0, json!({"name":"f","arguments":"{\"a\""})),
            call(1, json!({"name":"g","arguments":"{}"})),
            call(0, json!({"arguments":":1}"})),
        ]);
        let calls = &answer["choices"][0]["message"]["tool_calls"];
        assert_eq!(
            calls[0]["function"],
            json!({"name":"f","arguments":"{\"a\":1}"})
        );
        assert_eq!(calls[1]["function"]["name"], "g");
        assert_eq!(calls[0].get("index"), None);
    }

    #[test]
    fn usage_counted_over_all_choices_replaces_the_last_ones() {
        let mut assembly = Assembly::default();
        assembly.add(
            br#"data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#,
        ).unwrap();
        let usage = Usage {
            prompt_tokens: 5,
            cached_tokens: 0,
            completion_tokens: 4,
        };
        let answer: Value = serde_json::from_slice(&assembly.finish(Some(usage)).unwrap()).unwrap();
        assert_eq!(
            answer["usage"],
            json!({"prompt_tokens":5,"completion_tokens":4,"total_tokens":9})
        );
    }
}
