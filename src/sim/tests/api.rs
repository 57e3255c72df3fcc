//! Requests and answers.

use futures_util::future::{Either, select};
use serde_json::{Value, json};

use crate::harness::{Engine, chat, within};

const TINY: [&str; 2] = ["--preset", "tiny"];

#[actix_web::test]
async fn a_stream_is_role_then_text_then_usage() {
    let engine = Engine::start(&TINY).await;
    let mut body = chat("Write one sentence about the sea.", 9);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = engine.stream(body.clone()).await;

    let first = events.chunk().await;
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["model"], "sim");
    let role = json!({"role": "assistant", "content": ""});
    assert_eq!(first["choices"][0]["delta"], role);
    assert!(first.get("usage").is_none());

    let mut text = String::new();
    let last = loop {
        let chunk = events.chunk().await;
        assert_eq!(chunk["id"], first["id"]);
        text += chunk["choices"][0]["delta"]["content"].as_str().unwrap();
        if !chunk["choices"][0]["finish_reason"].is_null() {
            break chunk;
        }
    };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let usage = events.chunk().await;
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 9);
    assert_eq!(events.next().await.as_deref(), Some("[DONE]"));
    assert_eq!(events.next().await, None);

    body.as_object_mut().unwrap().remove("stream_options");
    let whole = engine.chat(&body).await;
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    // The prompt's one full block is cached by now.
    assert_eq!(usage["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 16);
    let tokens = json!({"messages": body["messages"]});
    let (_, counted) = engine.post("/tokenize", &tokens).await;
    assert_eq!(counted["count"], whole["usage"]["prompt_tokens"]);
}

#[actix_web::test]
async fn several_prompts_and_choices_are_answered_apart() {
    let engine = Engine::start(&TINY).await;
    let body = json!({
        "model": "sim", "prompt": [[9, 8], [1, 2, 3]], "n": 2, "max_tokens": 20, "seed": -1,
        "ignore_eos": true,
    });
    let (status, answer) = engine.post("/v1/completions", &body).await;
    assert_eq!(
        (status, &answer["object"]),
        (200, &json!("text_completion"))
    );
    let texts: Vec<_> = (0..4)
        .map(|i| answer["choices"][i]["text"].as_str().unwrap())
        .collect();
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(answer["choices"][index]["index"], index);
        assert!(!texts[..index].contains(text), "{texts:?}");
    }
    // Each prompt counts once.
    assert_eq!(answer["usage"]["prompt_tokens"], 5);
    assert_eq!(answer["usage"]["completion_tokens"], 80);
    let (_, again) = engine.post("/v1/completions", &body).await;
    assert_eq!(
        again["choices"], answer["choices"],
        "the same seed reads the same"
    );
}

#[actix_web::test]
async fn a_model_stops_by_itself_unless_told_not_to() {
    let engine = Engine::start(&TINY).await;
    let mut body = chat("hello", 2_000);
    assert_eq!(
        engine.chat(&body).await["choices"][0]["finish_reason"],
        "length"
    );
    body["ignore_eos"] = false.into();
    let natural = engine.chat(&body).await;
    assert_eq!(natural["choices"][0]["finish_reason"], "stop");
    let tokens = natural["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((32..=256).contains(&tokens));
}

#[actix_web::test]
async fn every_token_counts_once_when_many_stream() {
    let engine = Engine::start(&TINY).await;
    let streams = (0..20_u32).map(|number| {
        let engine = &engine;
        async move {
            let mut body = chat(&format!("number {number}"), 50 + number);
            body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
            let mut events = engine.stream(body).await;
            let mut usage = Value::Null;
            while let Some(event) = events.next().await.filter(|event| event != "[DONE]") {
                usage = serde_json::from_str::<Value>(&event).unwrap()["usage"].clone();
            }
            assert_eq!(usage["completion_tokens"], 50 + number);
        }
    });
    futures_util::future::join_all(streams).await;
    let total: u32 = (50..70).sum();
    engine
        .until_metric("generation_tokens_total", f64::from(total))
        .await;
    engine.until_metric("kv_cache_usage_perc", 0.0).await;
    let steps = engine.metric("iteration_tokens_total_count").await;
    assert!(steps > 100.0);
    engine
        .until_metric("request_queue_time_seconds_count", 20.0)
        .await;
    engine
        .until_metric("time_to_first_token_seconds_count", 20.0)
        .await;
}

#[actix_web::test]
async fn a_hung_up_client_frees_its_place() {
    let engine = Engine::start(&["--preset", "a100-8b", "--max-num-seqs", "1"]).await;
    let mut running = engine.stream(chat("runs", 10_000)).await;
    running.first_token().await;
    let waiting = Box::pin(async { engine.chat(&chat("waits, unstreamed", 10_000)).await });
    let seen = Box::pin(engine.until_metric("num_requests_waiting", 1.0));
    let Either::Right(((), waiting)) = select(waiting, seen).await else {
        panic!("answered while another held the only place");
    };
    drop(waiting);
    engine.until_metric("num_requests_waiting", 0.0).await;
    assert!((engine.metric("num_requests_running").await - 1.0).abs() < 1e-9);
    drop(running);
    engine.until_metric("num_requests_running", 0.0).await;
    engine
        .until_metric("request_success_total{finished_reason=\"abort\"", 2.0)
        .await;
    engine.until_metric("kv_cache_usage_perc", 0.0).await;
}

#[actix_web::test]
async fn a_lower_priority_number_overtakes_under_the_priority_policy_only() {
    for (policy, urgent_first) in [("priority", true), ("fcfs", false)] {
        let flags = [
            "--preset",
            "a100-8b",
            "--max-num-seqs",
            "1",
            "--scheduling-policy",
            policy,
        ];
        let engine = Engine::start(&flags).await;
        let mut blocker = engine.stream(chat("blocks", 10_000)).await;
        blocker.first_token().await;
        let ask = |priority: i32| {
            let engine = &engine;
            let mut body = chat("asks", 5);
            body["priority"] = priority.into();
            Box::pin(async move { engine.chat(&body).await })
        };
        let queued = |count| Box::pin(engine.until_metric("num_requests_waiting", count));
        let Either::Right(((), low)) = select(ask(5), queued(1.0)).await else {
            panic!("overtook the blocker");
        };
        let both = select(low, ask(-5));
        let Either::Right(((), both)) = select(both, queued(2.0)).await else {
            panic!("overtook the blocker");
        };
        drop(blocker);
        let first = within("one of the two", both).await;
        assert_eq!(matches!(first, Either::Right(_)), urgent_first, "{policy}");
    }
}

#[actix_web::test]
async fn salts_keep_prefixes_apart() {
    let engine = Engine::start(&TINY).await;
    let cached = async |salt: Option<&str>| {
        let mut body = chat(&"the same long prompt ".repeat(20), 2);
        if let Some(salt) = salt {
            body["cache_salt"] = salt.into();
        }
        let answer = engine.chat(&body).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(cached(None).await, 0);
    let hit = cached(None).await;
    assert!(hit >= 64, "{hit}");
    assert_eq!(cached(Some("a")).await, 0);
    assert_eq!(cached(Some("b")).await, 0);
    assert_eq!(cached(Some("a")).await, hit);
    engine
        .until_metric(
            "prefix_cache_hits_total",
            2.0 * f64::from(u32::try_from(hit).unwrap()),
        )
        .await;
}

#[actix_web::test]
async fn errors_have_vllms_shape() {
    let engine = Engine::start(&TINY).await;
    let path = "/v1/chat/completions";
    let with = |key: &str, value: Value| {
        let mut body = chat("hello", 5);
        body[key] = value;
        body
    };
    for (body, status, kind, param) in [
        (
            with("model", json!("gpt-9")),
            404,
            "NotFoundError",
            json!("model"),
        ),
        (with("model", json!(7)), 400, "Bad Request", json!(null)),
        (
            with("messages", json!("hello")),
            400,
            "Bad Request",
            json!(null),
        ),
        (with("messages", json!([])), 400, "Bad Request", json!(null)),
        (
            with("max_tokens", json!("many")),
            400,
            "Bad Request",
            json!(null),
        ),
        (
            with("max_tokens", json!(-1)),
            400,
            "Bad Request",
            json!(null),
        ),
        (
            with("max_tokens", json!(0)),
            400,
            "BadRequestError",
            json!("max_tokens"),
        ),
        (
            with("max_tokens", json!(3000)),
            400,
            "BadRequestError",
            json!("input_tokens"),
        ),
        (with("n", json!(0)), 400, "BadRequestError", json!("n")),
        (
            with("temperature", json!(-1)),
            400,
            "BadRequestError",
            json!("temperature"),
        ),
        (
            with("cache_salt", json!("")),
            400,
            "BadRequestError",
            json!("cache_salt"),
        ),
        (
            with("stream_options", json!({})),
            400,
            "BadRequestError",
            json!("stream_options"),
        ),
    ] {
        let (got, answer) = engine.post(path, &body).await;
        let error = &answer["error"];
        assert_eq!(
            (got, &error["type"]),
            (status, &json!(kind)),
            "{body}: {answer}"
        );
        assert_eq!((&error["code"], &error["param"]), (&json!(status), &param));
        assert!(error["message"].is_string());
    }
    assert_eq!(engine.post_raw(path, "{\"model\":").await.0, 400);
    assert_eq!(engine.get("/nowhere").await.0, 404);
}

#[actix_web::test]
async fn the_api_key_guards_all_but_health_and_metrics() {
    let engine = Engine::start_with_key("secret").await;
    assert_eq!(engine.get("/v1/models").await.0, 200);
    for path in ["/v1/models", "/is_sleeping"] {
        assert_eq!(engine.try_get(path).await.unwrap(), 401);
    }
    let (status, answer) = engine.post_raw("/v1/completions", "{}").await;
    assert_eq!((status, answer), (401, json!({"error": "Unauthorized"})));
    for path in ["/health", "/metrics"] {
        assert_eq!(engine.try_get(path).await.unwrap(), 200);
    }
}

#[actix_web::test]
async fn models_are_listed_under_every_name_and_as_simulated() {
    let flags = ["--preset", "tiny", "--served-model-name", "one", "two"];
    let engine = Engine::start(&flags).await;
    let (_, models) = engine.get("/v1/models").await;
    for (index, name) in ["one", "two"].iter().enumerate() {
        let model = &models["data"][index];
        assert_eq!(
            (&model["id"], &model["owned_by"]),
            (&json!(name), &json!("kvwarden-sim"))
        );
        let mut body = chat("hello", 1);
        body["model"] = json!(name);
        assert_eq!(engine.chat(&body).await["model"], "one");
    }
}

#[actix_web::test]
async fn tokens_and_embeddings_are_deterministic() {
    let engine = Engine::start(&TINY).await;
    let text = "Grüße, \u{1f30a}! The sea...\n\n  is old.";
    let (_, tokens) = engine.post("/tokenize", &json!({"prompt": text})).await;
    let (_, back) = engine
        .post("/detokenize", &json!({"tokens": tokens["tokens"]}))
        .await;
    assert_eq!(back["prompt"], text);

    let body = json!({"model": "sim", "input": [text, "other"], "dimensions": 64});
    let (status, answer) = engine.post("/v1/embeddings", &body).await;
    assert_eq!(status, 200, "{answer}");
    let vector = answer["data"][0]["embedding"].as_array().unwrap();
    let squares: f64 = vector.iter().map(|v| v.as_f64().unwrap().powi(2)).sum();
    assert_eq!(vector.len(), 64);
    assert!((squares - 1.0).abs() < 1e-3);
    assert_ne!(
        answer["data"][0]["embedding"],
        answer["data"][1]["embedding"]
    );
    let (_, again) = engine.post("/v1/embeddings", &body).await;
    assert_eq!(answer["data"], again["data"]);
}
