//! Servers that somebody else runs answer in ways that no engine of ours does. Each test shows a kind of
//! them: what clients get, and how often it was computed.

mod bounds;
mod charges;
mod ends;
mod errors;
mod forms;
mod waits;

use kvwarden_integration::{Asked, Reply, Says, Server, Upstream};
use serde_json::{Value, json};

use crate::{CHAT, with};

/// Servers of many kinds behind one kvwarden, by the names of their models.
struct Odd {
    upstream: Upstream,
    server: Server,
}

/// One server for each of these, which says the same to every request.
fn odd(cases: Vec<(&str, Says)>) -> Odd {
    odd_with("", cases)
}

/// The same with further configuration.
fn odd_with(config: &str, cases: Vec<(&str, Says)>) -> Odd {
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    let own = |(name, says): (&str, Says)| (name.to_owned(), says);
    let cases: Vec<_> = cases.into_iter().map(own).collect();
    let says = move |asked: &Asked| {
        let of_model = cases.iter().find(|(name, _)| asked.body["model"] == *name);
        of_model.expect("a model of this test").1.clone()
    };
    Odd::start(config, Upstream::start(&names, says))
}

impl Odd {
    fn start(config: &str, upstream: Upstream) -> Self {
        let server = Server::start(&format!("{config}{}", upstream.config()));
        Self { upstream, server }
    }

    fn whole(&self, model: &str) -> Reply {
        self.server.client().post(CHAT, &ask(model))
    }

    fn streamed(&self, model: &str) -> Reply {
        let ask = with(ask(model), "stream", true);
        self.server.client().post(CHAT, &ask)
    }

    /// How often the model's server was asked for an answer.
    fn count(&self, model: &str) -> usize {
        self.upstream.asked(model).len()
    }

    /// What kvwarden has counted for a tenant.
    fn used(&self, tenant: &str) -> (u64, u64) {
        let status = self
            .server
            .client()
            .get("/kvwarden/status")
            .expect(200)
            .json();
        let used = &status["tenants"][tenant]["used"];
        let count = |name: &str| used[name].as_u64().unwrap_or_default();
        (count("prompt_tokens"), count("completion_tokens"))
    }
}

fn ask(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "x" }] })
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn chunk(delta: &Value, finish_reason: &Value) -> String {
    event(
        &json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": delta, "finish_reason": finish_reason }] }),
    )
}

fn role() -> String {
    chunk(&json!({ "role": "assistant", "content": "" }), &Value::Null)
}

fn text(text: &str) -> String {
    chunk(&json!({ "content": text }), &Value::Null)
}

fn finish() -> String {
    chunk(&json!({}), &json!("stop"))
}

fn usage() -> String {
    event(
        &json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": used() }),
    )
}

fn used() -> Value {
    json!({ "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10 })
}

const DONE: &str = "data: [DONE]\n\n";

/// A chat as most servers stream it.
fn usual() -> Vec<String> {
    let hello = text("hello ");
    vec![
        role(),
        hello.clone(),
        hello,
        finish(),
        usage(),
        DONE.to_owned(),
    ]
}

/// What a client hears of it that did not ask for usage.
fn heard() -> String {
    usual()
        .into_iter()
        .filter(|event| *event != usage())
        .collect()
}

/// A chat in one piece.
fn answer() -> Value {
    json!({ "id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": used(), "choices": [
        { "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "hello hello " } }] })
}

/// What the chat of an answer says.
fn said(reply: &Reply) -> Value {
    reply.json()["choices"][0]["message"]["content"].clone()
}
