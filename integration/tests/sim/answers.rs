//! Whole answers, and what is said to requests that are wrong.

use kvwarden_integration::{Server, Stub};
use serde_json::{Value, json};

use crate::{CHAT, COMPLETIONS, TINY, chat, streamed, with};

#[test]
fn chat_is_answered_with_text_and_usage() {
    let server = Server::start(TINY);
    let reply = server.client().post(CHAT, &chat("tiny", 12)).expect(200);
    let answer = reply.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let text = answer["choices"][0]["message"]["content"].as_str();
    assert!(text.is_some_and(|text| !text.is_empty()), "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert!(reply.header("x-request-id").is_some(), "{reply}");
}

#[test]
fn completion_embedding_and_tokens_are_answered() {
    let server = Server::start(TINY);
    let client = server.client();
    let ask = json!({"model": "tiny", "prompt": "The sea", "max_tokens": 5, "ignore_eos": true});
    let completion = client.post(COMPLETIONS, &ask).expect(200).json();
    assert_eq!(completion["object"], "text_completion");
    assert_eq!(completion["usage"]["completion_tokens"], 5);

    let ask = json!({"model": "tiny", "input": ["one", "two"]});
    let embeddings = client.post("/v1/embeddings", &ask).expect(200).json();
    assert_eq!(
        embeddings["data"].as_array().map(Vec::len),
        Some(2),
        "{embeddings}"
    );

    let ask = json!({"model": "tiny", "prompt": "one two"});
    let tokens = client.post("/tokenize", &ask).expect(200).json();
    let count = tokens["tokens"].as_array().map(Vec::len);
    assert_eq!(
        count.map(|n| json!(n)).as_ref(),
        Some(&tokens["count"]),
        "{tokens}"
    );
}

#[test]
fn both_names_of_a_model_route_to_it() {
    let server = Server::start(TINY);
    for name in ["org/tiny-model", "tiny"] {
        let reply = server.client().post(CHAT, &chat(name, 3));
        assert_eq!(reply.status, 200, "{name}: {reply}");
    }
}

#[test]
fn models_are_listed_and_found() {
    let server = Server::start(TINY);
    let client = server.client();
    let list = client.get("/v1/models").expect(200).json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| &m["id"])
        .collect();
    assert!(ids.contains(&&json!("org/tiny-model")), "{list}");
    for name in ["org/tiny-model", "org%2Ftiny-model", "tiny"] {
        let model = client.get(&format!("/v1/models/{name}"));
        assert_eq!(model.status, 200, "{name}: {model}");
        assert_eq!(model.json()["object"], "model");
    }
    let missing = client.get("/v1/models/nope").expect_error(404);
    assert_eq!(missing["code"], "model_not_found");
}

#[test]
fn unknown_model_is_404_in_openai_shape() {
    let server = Server::start(TINY);
    let error = server
        .client()
        .post(CHAT, &chat("nope", 3))
        .expect_error(404);
    assert_eq!(error["code"], "model_not_found");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("nope")),
        "{error}"
    );
}

#[test]
fn request_id_of_the_client_comes_back() {
    let server = Server::start(TINY);
    let client = server.client().header("x-request-id", "trace-me-4711");
    let reply = client.post(CHAT, &chat("tiny", 3)).expect(200);
    assert_eq!(reply.header("x-request-id"), Some("trace-me-4711"));
}

#[test]
fn null_in_optional_fields_works_and_leaks_no_slot() {
    let server = Server::start(&format!("{TINY}max_concurrent = 1\n"));
    for field in [
        "max_tokens",
        "stream",
        "stream_options",
        "n",
        "temperature",
        "user",
        "stop",
    ] {
        let ask = with(chat("tiny", 3), field, Value::Null);
        // Without a bound the simulated engine may talk up to its context's end.
        let ask = with(ask, "ignore_eos", false);
        let reply = server.client().post(CHAT, &ask);
        assert_eq!(reply.status, 200, "{field}: {reply}");
    }
    let running = server.metrics().sum("kvwarden_admission_in_flight", &[]);
    assert_eq!(running, Some(0.0));
}

#[test]
fn two_megabytes_are_a_valid_body() {
    let server = Server::start(TINY);
    let ask = with(chat("tiny", 3), "user", "x".repeat(2 << 20));
    let reply = server.client().post(CHAT, &ask);
    assert_eq!(reply.status, 200, "{reply}");
}

#[test]
fn body_over_the_limit_is_413() {
    let server = Server::start(&format!("[limits]\nmax_body = \"1MiB\"\n{TINY}"));
    let ask = with(chat("tiny", 3), "user", "x".repeat(2 << 20));
    let ask = ask.to_string();
    let client = server.client();
    // `expect: 100-continue` is what curl sends; without it the server may hang up while we write.
    let reply = client.header("expect", "100-continue").send(
        "POST",
        CHAT,
        "application/json",
        ask.as_bytes(),
    );
    let _ = reply.expect_error(413);
}

#[test]
fn body_that_is_no_json_object_is_400() {
    let server = Server::start(TINY);
    for body in [
        "",
        "{",
        "[]",
        "\"text\"",
        "{\"model\": }",
        "{\"messages\": []}",
        "{\"model\": 3}",
    ] {
        let reply = server
            .client()
            .send("POST", CHAT, "application/json", body.as_bytes());
        assert_eq!(reply.status, 400, "{body}: {reply}");
        let error = reply.expect_error(400);
        assert_eq!(error["type"], "invalid_request_error", "{body}");
    }
}

/// A page of any web site can make its visitors' browsers send other types without asking.
#[test]
fn body_that_does_not_call_itself_json_is_415() {
    let server = Server::start(TINY);
    let ask = chat("tiny", 3).to_string();
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonl",
    ] {
        let reply = server.client().send("POST", CHAT, kind, ask.as_bytes());
        assert_eq!(reply.status, 415, "{kind}: {reply}");
        let _ = reply.expect_error(415);
    }
    let with_charset = "application/json; charset=utf-8";
    let reply = server
        .client()
        .send("POST", CHAT, with_charset, ask.as_bytes());
    assert_eq!(reply.status, 200, "{reply}");
}

#[test]
fn engines_own_error_passes_through() {
    let server = Server::start(TINY);
    for ask in [chat("tiny", 3), streamed("tiny", 3)] {
        let ask = with(ask, "temperature", -1);
        let error = server.client().post(CHAT, &ask).expect_error(400);
        assert_eq!(error["param"], "temperature");
        assert_eq!(error["type"], "BadRequestError");
    }
}

#[test]
fn error_without_openais_envelope_gets_one() {
    let sglang = r#"{"object":"error","message":"max_tokens must be positive","type":"BadRequestError","param":null,"code":400}"#;
    let stub = Stub::start(Stub::answer("400 Bad Request", "application/json", sglang));
    let server = Server::start(&stub.config());
    let error = server
        .client()
        .post(CHAT, &chat("stub", 3))
        .expect_error(400);
    assert_eq!(error["message"], "max_tokens must be positive");
}

#[test]
fn engines_words_about_its_own_failure_reach_the_client_as_json() {
    let stub = Stub::start(Stub::answer(
        "500 Internal Server Error",
        "text/plain",
        "Internal Server Error",
    ));
    let server = Server::start(&stub.config());
    let reply = server.client().post(CHAT, &chat("stub", 3));
    assert!(reply.status >= 500, "{reply}");
    let status = reply.status;
    let _ = reply.expect_error(status);
}

#[test]
fn attached_engine_is_asked_under_its_base_path_without_the_clients_key() {
    let answer = r#"{"id":"1","object":"chat.completion","choices":[]}"#;
    let stub = Stub::start(Stub::answer("200 OK", "application/json", answer));
    let key = kvwarden_integration::key_hash("sk-client");
    let server = Server::start(&format!(
        "{}[tenants.a]\napi_keys = [\"{key}\"]\n",
        stub.config()
    ));
    let reply = server
        .client()
        .key("sk-client")
        .post(CHAT, &chat("stub", 3));
    assert_eq!(reply.expect(200).text(), answer);
    let requests = stub.requests();
    let post = requests.iter().find(|request| request.starts_with("POST"));
    let post = post.expect("the stub was asked");
    assert!(
        post.starts_with("POST /base/v1/chat/completions "),
        "{post}"
    );
    assert!(
        !post.contains("sk-client") && !post.contains("x-tenant-id"),
        "{post}"
    );
}

#[test]
fn two_models_are_told_apart() {
    let other = TINY
        .replace("org/tiny-model", "other")
        .replace("\"tiny\"\nengine", "\"o\"\nengine");
    let server = Server::start(&format!("{TINY}{other}"));
    assert_eq!(server.engines().len(), 2);
    for (name, served) in [("tiny", "org/tiny-model"), ("o", "other")] {
        let answer = server
            .client()
            .post(CHAT, &chat(name, 3))
            .expect(200)
            .json();
        let models = [json!(name), json!(served)];
        assert!(models.contains(&answer["model"]), "{answer}");
    }
    let metrics = server.metrics();
    for model in ["model=\"org/tiny-model\"", "model=\"other\""] {
        assert_eq!(
            metrics.sum("kvwarden_requests_total", &[model]),
            Some(1.0),
            "{model}"
        );
    }
}
