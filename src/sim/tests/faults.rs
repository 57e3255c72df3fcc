//! The end of an engine: as asked, and as its fault switches make it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::timeout;

use crate::harness::{Engine, chat};

const SLOW: [&str; 2] = ["--preset", "a100-8b"];

fn with<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [&SLOW, flags].concat()
}

#[actix_web::test]
async fn sigterm_ends_streams_and_the_process_at_once() {
    let mut engine = Engine::start(&SLOW).await;
    let mut events = engine.stream(chat("hello", 10_000)).await;
    events.first_token().await;
    engine.signal(Signal::SIGTERM);
    assert_eq!(events.finish_reason().await.as_deref(), Some("abort"));
    let status = engine.exit().await;
    assert_eq!(status.code(), Some(0));
}

#[actix_web::test]
async fn sigterm_can_be_ignored() {
    let engine = Engine::start(&with(&["--fault-ignore-sigterm"])).await;
    let mut events = engine.stream(chat("hello", 40)).await;
    events.first_token().await;
    engine.signal(Signal::SIGTERM);
    assert_eq!(events.finish_reason().await.as_deref(), Some("length"));
    engine.chat(&chat("still here", 2)).await;
}

#[actix_web::test]
async fn a_slow_start_refuses_connections() {
    #[expect(clippy::disallowed_methods, reason = "a real process, in real time")]
    let started = Instant::now();
    let engine = Engine::spawn(&with(&["--fault-slow-start", "700ms"]), None);
    assert!(engine.try_get("/health").await.is_err());
    engine.ready().await;
    assert!(started.elapsed() >= Duration::from_millis(700));
}

#[actix_web::test]
async fn a_crash_cuts_the_nth_request() {
    let flags = with(&["--fault-crash-after", "2", "--fault-crash-code", "42"]);
    let mut engine = Engine::start(&flags).await;
    engine.chat(&chat("first", 5)).await;
    let mut events = engine.stream(chat("second", 100)).await;
    events.first_token().await;
    assert_eq!(events.finish_reason().await, None);
    assert_eq!(engine.exit().await.code(), Some(42));
    assert!(engine.last_words().contains("EngineCore died"));
}

#[actix_web::test]
async fn a_hanging_engine_still_calls_itself_healthy() {
    let engine = Engine::start(&with(&["--fault-hang-after", "1"])).await;
    let mut events = engine.stream(chat("hello", 100)).await;
    events.first_token().await;
    let end = timeout(Duration::from_millis(500), events.finish_reason()).await;
    assert!(end.is_err(), "it went on");
    for path in ["/health", "/v1/models", "/metrics"] {
        assert_eq!(engine.try_get(path).await.unwrap(), 200);
    }
    assert!((engine.metric("num_requests_running").await - 1.0).abs() < 1e-9);
    // A supervisor can still get rid of it.
    let mut engine = engine;
    engine.signal(Signal::SIGTERM);
    engine.exit().await;
}

#[actix_web::test]
async fn out_of_memory_is_the_last_thing_it_says() {
    let mut engine = Engine::spawn(&["--fault-oom-at-start"], None);
    assert_eq!(engine.exit().await.code(), Some(1));
    assert!(
        engine
            .last_words()
            .contains("torch.OutOfMemoryError: CUDA out of memory")
    );
}

#[actix_web::test]
async fn sleep_may_free_nothing() {
    let engine = Engine::start(&with(&["--fault-sleep-frees-nothing"])).await;
    let (_, before) = engine.get("/kvwarden-sim/memory").await;
    assert_eq!(engine.post("/sleep", &Value::Null).await.0, 200);
    assert_eq!(engine.get("/is_sleeping").await.1["is_sleeping"], true);
    let (_, after) = engine.get("/kvwarden-sim/memory").await;
    assert_eq!(before["total_bytes"], after["total_bytes"]);
}

#[actix_web::test]
async fn wake_may_bring_back_other_weights() {
    let engine = Engine::start(&with(&["--fault-wake-garbles"])).await;
    let text = async || {
        let answer = engine.chat(&chat("hello", 4)).await;
        answer["choices"][0]["message"]["content"].clone()
    };
    assert_ne!(text().await, "!!!!");
    for path in ["/sleep", "/wake_up"] {
        assert_eq!(engine.post(path, &Value::Null).await.0, 200);
    }
    assert_eq!(text().await, "!!!!");
}

#[actix_web::test]
async fn a_taken_port_and_senseless_limits_end_the_start() {
    let first = Engine::start(&SLOW).await;
    let mut second = Engine::spawn_on(first.port, &SLOW, None);
    assert_eq!(second.exit().await.code(), Some(1));
    assert!(second.last_words().contains("Address already in use"));
    for (flags, words) in [
        (
            vec!["--max-num-batched-tokens", "8"],
            "max_num_batched_tokens",
        ),
        (
            vec!["--num-kv-blocks", "4", "--max-model-len", "999"],
            "KV cache",
        ),
    ] {
        let mut engine = Engine::spawn(&flags, None);
        assert_eq!(engine.exit().await.code(), Some(1), "{flags:?}");
        let said = engine.last_words();
        assert!(said.contains(words), "{said}");
    }
}
