//! Hard caps, and what a client may say about itself and its patience.

use kvwarden_integration::{Exchange, Reply, Server, eventually, key_hash};

use crate::{CHAT, SLOW, TINY, chat, endless, with};

fn reason(reply: &Reply) -> Option<&str> {
    reply.header("x-kvwarden-dropped-reason")
}

/// A server with one place and one in reserve, both taken for as long as the answers are kept.
fn busy(limits: &str) -> (Server, [Exchange; 2]) {
    let server = Server::start(&format!("{SLOW}max_concurrent = 1\n{limits}"));
    let running = ["t", "u"].map(|tenant| server.exchange(CHAT, tenant, &endless()));
    wait_for(&server, "kvwarden_admission_in_flight", 2.0);
    wait_for(&server, "kvwarden_admission_queue_depth", 0.0);
    (server, running)
}

fn wait_for(server: &Server, gauge: &str, wanted: f64) {
    eventually(gauge, || {
        (server.metrics().sum(gauge, &[]) == Some(wanted)).then_some(())
    });
}

#[test]
fn tenant_is_believed_under_any_of_its_headers() {
    let server = Server::start(&format!("{TINY}[tenants.a]\nrate_limit_rpm = 1\n"));
    let ask = |headers: &[(&str, &str)]| {
        let client = headers
            .iter()
            .fold(server.client(), |client, (name, value)| {
                client.header(name, value)
            });
        client.post(CHAT, &chat("tiny", 2))
    };
    let llm_d = "x-llm-d-inference-fairness-id";
    let gateway = "x-gateway-inference-fairness-id";
    let _ = ask(&[(llm_d, "a")]).expect(200);
    assert_eq!(ask(&[(gateway, "a")]).status, 429);
    assert_eq!(ask(&[(llm_d, "a"), (gateway, "a")]).status, 429);
    let error = ask(&[("x-tenant-id", "b"), (llm_d, "a")]).expect_error(400);
    assert_eq!(error["param"], llm_d);
    let _ = ask(&[(gateway, "no spaces")]).expect_error(400);
}

#[test]
fn aliases_of_the_tenant_header_count_no_more_than_a_key() {
    let key = key_hash("sk-a");
    let server = Server::start(&format!(
        "{TINY}[tenants.a]\napi_keys = [\"{key}\"]\nrate_limit_rpm = 1\n"
    ));
    let client = server.client().header("x-llm-d-inference-fairness-id", "b");
    let refused = client.post(CHAT, &chat("tiny", 2));
    assert_eq!(reason(&refused), Some("invalid_api_key"));
    let client = client.key("sk-a");
    let _ = client.post(CHAT, &chat("tiny", 2)).expect(200);
    assert_eq!(client.post(CHAT, &chat("tiny", 2)).status, 429);
}

#[test]
fn day_of_tokens_ends_in_a_refusal_that_says_when_the_next_begins() {
    let server = Server::start(&format!("{TINY}[tenants.a]\ntokens_per_day = 700\n"));
    let client = server.client().tenant("a");
    let too_large = client.post(CHAT, &chat("tiny", 5000));
    assert_eq!(reason(&too_large), Some("larger_than_budget"));
    assert_eq!(too_large.header("x-should-retry"), Some("false"));
    // Midnight may pass, but not twice.
    let mut replies = (0..3).map(|_| client.post(CHAT, &chat("tiny", 500)));
    let refused = replies.find(|reply| reply.status != 200);
    let refused = refused.expect("two of 500 do not fit into a day of 700");
    assert_eq!(reason(&refused), Some("tokens_per_day"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(wait <= 86_400, "{refused}");
    let may_retry = refused.header("x-should-retry") != Some("false");
    assert!(
        !may_retry || wait <= 60,
        "no SDK waits that long: {refused}"
    );
    assert_eq!(refused.expect_error(429)["code"], "rate_limit_exceeded");
}

#[test]
fn tenant_at_its_part_of_the_queue_is_refused_while_others_wait() {
    let limits = "[tenants.a]\nmax_queued_requests = 1\n[tenants.b]\nmax_queued_bytes = \"1KiB\"\n";
    let (server, _running) = busy(limits);
    let _a = server.exchange(CHAT, "a", &endless());
    wait_for(&server, "kvwarden_admission_queue_depth", 1.0);
    let refused = server.client().tenant("a").post(CHAT, &chat("slow", 2));
    assert_eq!(reason(&refused), Some("tenant_queue_full"));
    assert_eq!(
        refused.header("x-llm-d-request-dropped-reason"),
        Some("rejected-saturated")
    );
    let _ = refused.expect_error(429);
    // All of a body counts, not only its prompt.
    let padded = with(chat("slow", 2), "metadata", "x".repeat(2000));
    let refused = server.client().tenant("b").post(CHAT, &padded);
    assert_eq!(reason(&refused), Some("tenant_queue_full"));
    let _b = server.exchange(CHAT, "b", &endless());
    wait_for(&server, "kvwarden_admission_queue_depth", 2.0);
}

#[test]
fn request_whose_client_gives_up_before_its_turn_is_refused() {
    let (server, _running) = busy("");
    for (header, value) in [
        ("x-kvwarden-deadline-ms", "300"),
        ("x-stainless-read-timeout", "0.3"),
    ] {
        let client = server.client().tenant("a").header(header, value);
        let refused = client.post(CHAT, &chat("slow", 2));
        assert_eq!(reason(&refused), Some("deadline"), "{refused}");
        assert!(refused.header("retry-after").is_some(), "{refused}");
        let _ = refused.expect_error(503);
    }
    let client = server.client().header("x-kvwarden-deadline-ms", "soon");
    let error = client.post(CHAT, &chat("slow", 2)).expect_error(400);
    assert_eq!(error["param"], "x-kvwarden-deadline-ms");
}

#[test]
fn service_tier_is_taken_as_openai_spells_it_and_is_no_reason_to_say_no() {
    let server = Server::start(TINY);
    let ask = |tier: &str| {
        let body = with(chat("tiny", 2), "service_tier", tier);
        server.client().post(CHAT, &body)
    };
    for tier in [
        "auto", "default", "flex", "priority", "scale", "gold", "FLEX",
    ] {
        let _ = ask(tier).expect(200);
    }
}
