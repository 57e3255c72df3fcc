//! Sleep, pause and their memory.

use std::time::Duration;

use futures_util::future::{Either, select};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Engine, chat, within};

const TINY: [&str; 2] = ["--preset", "tiny"];
const SLOW: [&str; 2] = ["--preset", "a100-8b"];

async fn post(engine: &Engine, path: &str) -> Value {
    let (status, answer) = engine.post(path, &Value::Null).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

async fn bytes(engine: &Engine) -> (u64, u64) {
    let (_, memory) = engine.get("/kvwarden-sim/memory").await;
    let weights = memory["weights_bytes"].as_u64().unwrap();
    let kv = memory["kv_cache_bytes"].as_u64().unwrap();
    let overhead = memory["overhead_bytes"].as_u64().unwrap();
    assert_eq!(memory["total_bytes"], weights + kv + overhead);
    (weights, kv)
}

async fn is_sleeping(engine: &Engine) -> bool {
    engine.get("/is_sleeping").await.1["is_sleeping"]
        .as_bool()
        .unwrap()
}

#[actix_web::test]
async fn sleep_frees_memory_and_holds_requests_until_it_ends() {
    let engine = Engine::start(&TINY).await;
    let awake = bytes(&engine).await;
    assert!(awake.0 > 0 && awake.1 > 0);
    post(&engine, "/sleep?level=1&mode=wait").await;
    assert!(is_sleeping(&engine).await);
    assert_eq!(bytes(&engine).await, (0, 0));
    engine
        .until_metric("engine_sleep_state{sleep_state=\"weights_offloaded\"", 1.0)
        .await;

    let held = Box::pin(async { engine.chat(&chat("hello", 5)).await });
    let waking = Box::pin(async {
        // Neither half is enough.
        post(&engine, "/wake_up?tags=weights").await;
        assert!(is_sleeping(&engine).await);
        assert_eq!(bytes(&engine).await, (awake.0, 0));
        // A sleeping engine says nothing of what it holds, and is healthy.
        engine.until_metric("num_requests_waiting", 0.0).await;
        engine.until_metric("num_requests_running", 0.0).await;
        assert_eq!(engine.try_get("/health").await.unwrap(), 200);
    });
    let Either::Right(((), held)) = select(held, waking).await else {
        panic!("answered while asleep");
    };
    post(&engine, "/wake_up?tags=kv_cache").await;
    let answer = within("the held request", held).await;
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert!(!is_sleeping(&engine).await);
    assert_eq!(bytes(&engine).await, awake);
}

#[actix_web::test]
async fn a_deep_sleep_needs_its_weights_again() {
    let engine = Engine::start(&TINY).await;
    let text = async || {
        let answer = engine.chat(&chat("hello", 5)).await;
        answer["choices"][0]["message"]["content"].clone()
    };
    let before = text().await;
    post(&engine, "/sleep?level=2").await;
    engine
        .until_metric("engine_sleep_state{sleep_state=\"discard_all\"", 1.0)
        .await;
    let reload = json!({"method": "reload_weights"});
    assert_eq!(engine.post("/collective_rpc", &reload).await.0, 400);
    post(&engine, "/wake_up").await;
    assert_eq!(text().await, "!!!!!");
    assert_eq!(engine.post("/collective_rpc", &reload).await.0, 200);
    assert_eq!(text().await, before);
}

#[actix_web::test]
async fn modes_decide_what_becomes_of_running_requests() {
    let engine = Engine::start(&SLOW).await;
    let mut aborted = engine.stream(chat("hello", 10_000)).await;
    aborted.first_token().await;
    let paused = post(&engine, "/pause").await;
    assert_eq!(paused, json!({"status": "paused"}));
    assert_eq!(aborted.finish_reason().await.as_deref(), Some("abort"));
    post(&engine, "/resume").await;

    let mut finished = engine.stream(chat("hello", 20)).await;
    finished.first_token().await;
    post(&engine, "/pause?mode=wait").await;
    assert_eq!(finished.finish_reason().await.as_deref(), Some("length"));
    post(&engine, "/resume").await;

    let mut body = chat("hello", 30);
    body["stream_options"] = json!({"include_usage": true});
    let mut kept = engine.stream(body).await;
    kept.first_token().await;
    post(&engine, "/sleep?mode=keep").await;
    // It was computing; now it waits, and starts over on waking without losing a token.
    engine.until_metric("num_requests_waiting", 1.0).await;
    post(&engine, "/wake_up").await;
    let usage = loop {
        let chunk = kept.chunk().await;
        if chunk["choices"] == json!([]) {
            break chunk["usage"].clone();
        }
    };
    assert_eq!(usage["completion_tokens"], 30);
}

#[actix_web::test]
async fn a_parked_engine_keeps_its_weights() {
    let engine = Engine::start(&TINY).await;
    let (weights, kv) = bytes(&engine).await;
    let (status, _) = engine.post("/release_kv_cache_memory", &Value::Null).await;
    assert_eq!(status, 500, "it has to be paused first");
    post(&engine, "/pause?mode=wait").await;
    post(&engine, "/release_kv_cache_memory").await;
    assert_eq!(bytes(&engine).await, (weights, 0));
    post(&engine, "/resume").await;
    assert!(is_sleeping(&engine).await, "resuming is not waking");
    post(&engine, "/wake_up?tags=kv_cache").await;
    assert_eq!(bytes(&engine).await, (weights, kv));
    engine.chat(&chat("hello", 2)).await;
}

#[actix_web::test]
async fn the_prefix_cache_can_be_emptied() {
    let engine = Engine::start(&TINY).await;
    let cached = async || {
        let answer = engine.chat(&chat(&"long ".repeat(60), 2)).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    cached().await;
    assert!(cached().await > 0);
    post(&engine, "/reset_prefix_cache").await;
    assert_eq!(cached().await, 0);
}

#[actix_web::test]
async fn draining_for_sleep_admits_nobody() {
    let engine = Engine::start(&SLOW).await;
    let mut running = engine.stream(chat("hello", 60)).await;
    running.first_token().await;
    let asleep = Box::pin(post(&engine, "/sleep?mode=wait"));
    let late = Box::pin(async { engine.chat(&chat("late", 1)).await });
    let Either::Left((_, late)) = within("sleep", select(asleep, late)).await else {
        panic!("admitted while draining");
    };
    assert_eq!(running.finish_reason().await.as_deref(), Some("length"));
    let early = timeout(Duration::from_millis(100), late).await;
    assert!(early.is_err(), "answered while asleep");
}
