//! What is not on the list of routes does not exist, and no engine hears of it.

use kvwarden_integration::{Exchange, Server, Stub};

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
fn wrong_method_is_refused_in_openai_shape() {
    let stub = Stub::start(Stub::answer("200 OK", "application/json", "{}"));
    let server = Server::start(&stub.config());
    for (method, path) in [
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/health"),
    ] {
        let reply = server.client().send(method, path, "application/json", b"");
        assert!(
            matches!(reply.status, 404 | 405),
            "{method} {path}: {reply}"
        );
        let status = reply.status;
        let _ = reply.expect_error(status);
    }
}
