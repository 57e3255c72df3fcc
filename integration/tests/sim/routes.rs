//! What is not on the list of routes does not exist, and no engine hears of it.

use kvwarden_integration::{Exchange, Server, Stub, key_hash};
use serde_json::{Value, json};

use crate::{CHAT, COMPLETIONS, TINY, chat, streamed};

/// What vLLM 0.32 and SGLang 0.5 offer to whoever reaches their port.
const CONTROL: [&str; 41] = [
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/pause",
    "/resume",
    "/is_paused",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
    "/init_weights_update_group",
    "/get_weights_by_name",
    "/collective_rpc",
    "/invocations",
    "/ping",
    "/load",
    "/version",
    "/server_info",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/scale_elastic_ep",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/start_profile",
    "/stop_profile",
    "/flush_cache",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/release_kv_cache_memory",
    "/slots/0",
    "/slots/0?action=save",
    "/openapi.json",
    "/kvwarden-sim/memory",
    "/abort_request",
    "/configure_logging",
    "/generate",
    "/slots",
    "/props",
    "/v1/loads",
    "/inference/v1/generate",
];

/// Ways to write a path that another parser may read as the plain one.
fn disguises(path: &str) -> Vec<String> {
    let bare = path.trim_start_matches('/');
    let (first, rest) = bare.split_at(1);
    let encoded = first
        .bytes()
        .map(|byte| format!("%{byte:02x}"))
        .collect::<String>();
    vec![
        path.to_owned(),
        format!("{path}/"),
        format!("/{path}"),
        format!("/{encoded}{rest}"),
        format!("/%2e/{bare}"),
        format!("/v1/../{bare}"),
        format!("/v1/models/../../{bare}"),
        format!("/v1/models/..%2f..%2f{bare}"),
        format!("/v1/chat/completions/..;/{bare}"),
        format!("/v1/chat/completions/../../../{bare}"),
        format!("{path}?model=stub"),
        format!("{path};x=1"),
        format!("/{}", bare.to_uppercase()),
        format!("http://127.0.0.1/{bare}"),
    ]
}

#[test]
fn control_routes_are_404_in_every_disguise_and_reach_no_engine() {
    let stub = Stub::start(Stub::answer("200 OK", "application/json", "{}"));
    let server = Server::start(&stub.config());
    let mut wrong = Vec::new();
    for path in CONTROL {
        for target in disguises(path) {
            for method in ["GET", "POST"] {
                let status = Exchange::request_line(server.port, method, &target)
                    .answer()
                    .status;
                if !matches!(status, 400 | 404 | 405) {
                    wrong.push(format!("{method} {target}: {status}"));
                }
            }
        }
    }
    let plain = server
        .client()
        .send("POST", "/sleep", "application/json", b"{}");
    let _ = plain.expect_error(404);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let heard = stub.requests();
    let others: Vec<_> = heard
        .iter()
        // What kvwarden asks of its own accord.
        .filter(|r| !r.starts_with("GET /base/v1/models "))
        .filter(|r| !r.starts_with("GET /base/metrics "))
        .collect();
    assert!(others.is_empty(), "the engine heard {others:?}");
}

#[test]
fn a_known_path_with_another_method_says_which_ones_it_takes() {
    let server = Server::start(TINY);
    let posts = [
        CHAT,
        COMPLETIONS,
        "/v1/embeddings",
        "/tokenize",
        "/kvwarden/reload",
        "/kvwarden/models/tiny/unload",
        "/kvwarden/models/org/tiny-model/pin",
    ];
    let gets = [
        "/v1/models",
        "/v1/models/org/tiny-model",
        "/health",
        "/metrics",
        "/kvwarden/status",
    ];
    for (paths, methods, allowed) in [
        (
            &posts[..],
            ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"],
            "POST",
        ),
        (
            &gets[..],
            ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"],
            "GET, HEAD",
        ),
    ] {
        for path in paths {
            for method in methods {
                let mut answer = Exchange::request_line(server.port, method, path).answer();
                assert_eq!(answer.status, 405, "{method} {path}");
                assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
                if method != "HEAD" {
                    let body = answer.rest().expect("a whole answer");
                    let text = String::from_utf8_lossy(&body);
                    assert!(
                        text.contains(r#""code":"wrong_method""#),
                        "{method} {path}: {text}"
                    );
                }
            }
        }
    }
    let unknown =
        server
            .client()
            .send("PUT", "/kvwarden/models/tiny/frob", "application/json", b"");
    let _ = unknown.expect_error(404);
}

#[test]
fn who_has_get_has_head() {
    let server = Server::start(TINY);
    for path in [
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/models/tiny",
        "/kvwarden/status",
    ] {
        let head = format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = Exchange::raw(server.port, head.as_bytes()).bytes();
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        assert!(head.contains("content-length: "), "{path}: {head}");
        assert_eq!(body, "", "{path}");
    }
    let missing = Exchange::request_line(server.port, "HEAD", "/v1/models/nope");
    assert_eq!(missing.answer().status, 404);
}

#[test]
fn a_client_of_http_1_0_gets_no_chunks() {
    let server = Server::start(TINY);
    let raw = |body: &Value, line: &str, headers: &str| {
        let body = body.to_string();
        let head = format!(
            "POST {CHAT} {line}\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let bytes = Exchange::raw(server.port, (head + &body).as_bytes()).bytes();
        String::from_utf8(bytes).expect("text")
    };
    for headers in ["", "connection: keep-alive\r\n", "host: localhost\r\n"] {
        let answer = raw(&streamed("tiny", 3), "HTTP/1.0", headers);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert!(!head.contains("keep-alive"), "{head}");
        assert!(
            body.starts_with("data: ") && body.ends_with("data: [DONE]\n\n"),
            "{body}"
        );
    }
    let whole = raw(&chat("tiny", 3), "HTTP/1.0", "");
    assert!(
        whole.contains("content-length: ") && whole.ends_with('}'),
        "{whole}"
    );
    let new = raw(
        &streamed("tiny", 3),
        "HTTP/1.1",
        "host: localhost\r\nconnection: close\r\n",
    );
    assert!(new.contains("transfer-encoding: chunked"), "{new}");
}

#[test]
fn header_lines_that_are_too_large_are_refused_with_a_word() {
    let server = Server::start(TINY);
    let client = |bytes: usize| server.client().header("x-large", &"x".repeat(bytes));
    let _ = client(60_000).get("/health").expect(200);
    for path in ["/health", "/v1/models", "/nowhere"] {
        let error = client(70_000).get(path).expect_error(431);
        assert_eq!(error["code"], "headers_too_large");
    }
    let many = (0..90).fold(server.client(), |client, i| {
        client.header(&format!("x-{i}"), &"x".repeat(1000))
    });
    let _ = many.post(CHAT, &chat("tiny", 2)).expect_error(431);
}

#[test]
fn identity_is_no_coding_however_it_is_spelt() {
    let server = Server::start(TINY);
    let ask = |coding: &str| {
        let client = server.client().header("content-encoding", coding);
        client.post(CHAT, &chat("tiny", 2)).status
    };
    assert_eq!(
        [ask("identity"), ask("Identity"), ask("IDENTITY")],
        [200, 200, 200]
    );
    assert_eq!(
        [ask("gzip"), ask("zstd"), ask("identity, gzip")],
        [415, 415, 415]
    );
}

#[test]
fn what_a_proxy_passes_on_acts_for_no_operator_and_no_tenant_of_its_choice() {
    let server = Server::start(&format!("{TINY}[tenants.a]\nrate_limit_rpm = 1\n"));
    let through = |name: &str, value: &str| {
        let client = server.client().header(name, value);
        let unload = client
            .post("/kvwarden/models/tiny/unpin", &json!({}))
            .status;
        let status = client.get("/kvwarden/status").status;
        (unload, status, client.get("/metrics").status)
    };
    assert_eq!(through("x-own", "1"), (202, 200, 200));
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=203.0.113.9"),
        ("x-real-ip", "203.0.113.9"),
        ("via", "1.1 proxy"),
        ("cf-connecting-ip", "203.0.113.9"),
    ] {
        assert_eq!(through(name, value), (403, 403, 403), "{name}");
        // Each of these is the default tenant, which has no such limit as `a`.
        for _ in 0..2 {
            let client = server.client().tenant("a").header(name, value);
            let _ = client.post(CHAT, &chat("tiny", 1)).expect(200);
        }
    }
    let get = |path: &str, host: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        Exchange::raw(server.port, head.as_bytes()).answer().status
    };
    for path in ["/kvwarden/status", "/metrics"] {
        assert_eq!(get(path, "evil.example"), 403);
        assert_eq!(get(path, "localhost.evil.example:80"), 403);
        assert_eq!(get(path, "localhost:1"), 200);
    }
    assert_eq!(get("/health", "evil.example"), 200);
}

#[test]
fn two_keys_in_one_request_are_refused() {
    let keys = format!(
        "[tenants.a]\napi_keys = [\"{}\"]\n[auth]\nadmin_keys = [\"{}\"]\n",
        key_hash("sk-a"),
        key_hash("sk-op")
    );
    let server = Server::start(&format!("{TINY}{keys}"));
    let both = |one: &str, other: &str| server.client().key(one).key(other);
    for (one, other) in [("sk-a", "sk-x"), ("sk-x", "sk-a"), ("sk-a", "sk-a")] {
        let error = both(one, other)
            .post(CHAT, &chat("tiny", 1))
            .expect_error(400);
        assert_eq!(error["param"], "authorization");
    }
    let _ = both("sk-op", "sk-a")
        .get("/kvwarden/status")
        .expect_error(400);
    let unpin = both("sk-op", "sk-op").post("/kvwarden/models/tiny/unpin", &json!({}));
    let _ = unpin.expect_error(400);
    let _ = server
        .client()
        .key("sk-a")
        .post(CHAT, &chat("tiny", 1))
        .expect(200);
}
