//! What of a request reaches its engine, and what is said about the rest.

use kvwarden_integration::{Reply, Server, Stub};
use serde_json::json;

use crate::{CHAT, COMPLETIONS, TINY, chat, with};

const EMBEDDINGS: &str = "/v1/embeddings";
const TOKENIZE: &str = "/tokenize";
const ROUTES: [&str; 4] = [CHAT, COMPLETIONS, EMBEDDINGS, TOKENIZE];

/// A server in front of one that says yes to everything, and tells what it was asked.
fn yes() -> (Server, Stub) {
    let stub = Stub::start(Stub::answer("200 OK", "application/json", "{}"));
    let server = Server::start(&stub.config());
    (server, stub)
}

fn post(server: &Server, path: &str, fields: &str) -> Reply {
    let body = format!(r#"{{"model":"stub","messages":[],"prompt":"x","input":"x",{fields}}}"#);
    server
        .client()
        .send("POST", path, "application/json", body.as_bytes())
}

/// The last request that came for this path.
fn asked(stub: &Stub, path: &str) -> String {
    let heard = stub.requests();
    let mut heard = heard.into_iter().rev();
    let line = format!("POST /base{path} ");
    let last = heard.find(|request| request.starts_with(&line));
    last.unwrap_or_else(|| panic!("the engine heard nothing of {path}"))
}

#[test]
fn odd_spellings_are_for_the_engine_to_judge() {
    let (server, stub) = yes();
    for fields in [
        r#""max_tokens":-1"#,
        r#""max_tokens":4.0"#,
        r#""max_tokens":"16""#,
        r#""max_completion_tokens":1e3"#,
        r#""max_tokens":{"of":"mine"}"#,
        r#""n":1.0"#,
        r#""n":"1""#,
        r#""top_logprobs":"5""#,
        r#""seed":123456789012345678901234567890"#,
    ] {
        for path in ROUTES {
            let _ = post(&server, path, fields).expect(200);
            let asked = asked(&stub, path);
            assert!(asked.contains(fields), "{path} {fields}: {asked}");
        }
    }
    // Read by kvwarden, and no reason to say no.
    for fields in [
        r#""stream":0"#,
        r#""service_tier":"gold""#,
        r#""stream_options":{"include_usage":"true"}"#,
        r#""cache_salt":5"#,
    ] {
        let _ = post(&server, CHAT, fields).expect(200);
    }
}

#[test]
fn what_is_too_much_is_refused_on_every_route_and_no_engine_hears_of_it() {
    let (server, stub) = yes();
    let deep = |levels: usize| format!(r#""x":{}{}"#, "[".repeat(levels), "]".repeat(levels));
    let list = |count: usize| format!("[{}{{}}]", "{},".repeat(count - 1));
    let replaced = |name: &str, value: String| format!(r#"{{"model":"stub","{name}":{value}}}"#);
    let too_much = [
        ("x", format!(r#"{{"model":"stub",{}}}"#, deep(128))),
        ("x", format!(r#"{{"model":"stub",{}}}"#, deep(100_000))),
        ("n", replaced("n", "129".to_owned())),
        ("best_of", replaced("best_of", "129".to_owned())),
        ("logprobs", replaced("logprobs", "129".to_owned())),
        ("top_logprobs", replaced("top_logprobs", "20000".to_owned())),
        (
            "prompt_logprobs",
            replaced("prompt_logprobs", "-1".to_owned()),
        ),
        ("n_probs", replaced("n_probs", r#""49152""#.to_owned())),
        ("model", format!(r#"{{"model":"{}"}}"#, "x".repeat(513))),
        ("messages", replaced("messages", list(4097))),
        ("input", replaced("input", list(2049))),
        ("n", replaced("prompt", list(129))),
    ];
    for path in ROUTES {
        for (param, body) in &too_much {
            let body = body.as_bytes();
            let reply = server.client().send("POST", path, "application/json", body);
            let error = reply.expect_error(400);
            assert_eq!(error["param"], *param, "{path}: {error}");
        }
        let fields: String = (0..300).map(|i| format!(r#""f{i}":1,"#)).collect();
        let many = post(&server, path, &format!("{fields}\"y\":1"));
        let _ = many.expect_error(400);
        let _ = post(&server, path, &deep(127)).expect(200);
    }
    let heard = stub.requests();
    let posts = heard.iter().filter(|heard| heard.starts_with("POST"));
    assert_eq!(posts.count(), ROUTES.len(), "those that are just within");
}

#[test]
fn fields_that_steer_an_engine_do_not_reach_it_and_are_named() {
    let (server, stub) = yes();
    for field in [
        "kv_transfer_params",
        "rid",
        "session_params",
        "id_slot",
        "stream_interval",
        "ec_transfer_params",
        "session_id",
        "disagg_prefill_dp_rank",
        "lora_path",
        "custom_params",
        "custom_labels",
        "ngram_corpus_id",
        "return_hidden_states",
        "lora",
        "return_progress",
        "vllm_xargs",
        "cache_prompt",
    ] {
        for path in ROUTES {
            let reply = post(&server, path, &format!(r#""{field}":1,"top_k":3"#)).expect(200);
            let ignored = reply.header("x-kvwarden-ignored-fields");
            assert_eq!(ignored, Some(field), "{path}: {reply}");
            let asked = asked(&stub, path);
            assert!(!asked.contains(field) && asked.contains("top_k"), "{asked}");
        }
    }
    let reply = post(&server, CHAT, r#""cache_salt":"mine","priority":-9"#).expect(200);
    assert_eq!(reply.header("x-kvwarden-ignored-fields"), None, "{reply}");
    let asked = asked(&stub, CHAT);
    assert!(
        !asked.contains("cache_salt") && !asked.contains("priority"),
        "{asked}"
    );
}

#[test]
fn an_engine_that_is_known_gets_what_it_knows() {
    let server = Server::start(TINY);
    let ask = with(with(chat("tiny", 2), "top_k", 3), "invented", "x");
    let streamed = with(ask.clone(), "stream", true);
    for ask in [with(ask, "mirostat", 2), streamed] {
        let reply = server.client().post(CHAT, &ask).expect(200);
        let ignored = reply.header("x-kvwarden-ignored-fields");
        assert!(
            ignored.is_some_and(|names| names.starts_with("invented")),
            "{reply}"
        );
    }
    let plain = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
    assert_eq!(plain.header("x-kvwarden-ignored-fields"), None);
    // A name that no header can hold is dropped without a word.
    let odd = json!({"model": "tiny", "prompt": "x", "max_tokens": 1, "a\r\nset-cookie: b": 1});
    let reply = server.client().post(COMPLETIONS, &odd).expect(200);
    assert_eq!(reply.header("x-kvwarden-ignored-fields"), None);
}
