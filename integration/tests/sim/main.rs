//! The whole surface against the simulated engine: fast, and the same on every machine.

mod adoption;
mod answers;
mod caps;
mod control;
mod fairness;
mod fields;
mod golden;
mod hang_ups;
mod health;
mod life;
mod limits;
mod operators;
mod readers;
mod reload;
mod residency;
mod retries;
mod routes;
mod stalls;
mod streams;
mod takeover;
mod upstreams;
mod usage;

use serde_json::{Value, json};

/// One quick model under two names.
const TINY: &str = r#"
[[models]]
id = "org/tiny-model"
short_name = "tiny"
engine = "sim"
preset = "tiny"
"#;

/// One model that takes 12 ms for each token, so that an answer lasts as long as a test needs.
const SLOW: &str = r#"
[[models]]
id = "slow"
engine = "sim"
preset = "a100-8b"
"#;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A chat of exactly `tokens` tokens.
fn chat(model: &str, tokens: u64) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
        "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
    })
}

/// The same, streamed.
fn streamed(model: &str, tokens: u64) -> Value {
    with(chat(model, tokens), "stream", true)
}

/// Hours of output: it ends when the test ends it.
fn endless() -> Value {
    streamed("slow", 30_000)
}

fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}
