//! Who may how much: every refusal says exactly when it ends.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use kvwarden_integration::{Exchange, Reply, Server, eventually, key_hash};

use crate::{CHAT, SLOW, TINY, chat, endless, streamed, with};

fn millis(reply: &Reply) -> Duration {
    let header = reply
        .header("retry-after-ms")
        .and_then(|ms| ms.parse().ok());
    Duration::from_millis(header.unwrap_or_else(|| panic!("no retry-after-ms: {reply}")))
}

fn number(reply: &Reply, header: &str) -> u64 {
    let value = reply.header(header).and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no number in {header}: {reply}"))
}

#[test]
fn refused_client_that_waits_as_told_is_let_in() {
    let limits = "[tenants.a]\nrate_limit_rpm = 60\nrate_limit_burst = 2\n";
    let server = Server::start(&format!("{TINY}{limits}"));
    let client = server.client().tenant("a");
    let first = client.post(CHAT, &chat("tiny", 2)).expect(200);
    assert_eq!(number(&first, "x-ratelimit-limit-requests"), 2);
    assert_eq!(number(&first, "x-ratelimit-remaining-requests"), 1);
    let _ = client.post(CHAT, &chat("tiny", 2)).expect(200);

    let refused = client.post(CHAT, &chat("tiny", 2));
    let (wait, seconds) = (millis(&refused), number(&refused, "retry-after"));
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_secs(1),
        "{refused}"
    );
    assert_eq!(seconds, 1, "whole seconds are rounded up");
    assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);
    assert!(
        refused.header("x-ratelimit-reset-requests").is_some(),
        "{refused}"
    );
    let error = refused.expect_error(429);
    assert_eq!(error["code"], "rate_limit_exceeded");

    // Not a guess at how long something takes: the wait is what the server promised.
    std::thread::sleep(wait);
    let _ = client.post(CHAT, &chat("tiny", 2)).expect(200);
}

#[test]
fn one_tenants_limit_is_no_other_tenants_limit() {
    let limits = "[tenant_defaults]\nrate_limit_rpm = 1\n[tenants.b]\nrate_limit_rpm = 1000\n";
    let server = Server::start(&format!("{TINY}{limits}"));
    let ask = |tenant: &str| {
        let client = server.client().tenant(tenant);
        client.post(CHAT, &chat("tiny", 2)).status
    };
    assert_eq!(
        [ask("a"), ask("a"), ask("b"), ask("b"), ask("c")],
        [200, 429, 200, 200, 200]
    );
}

#[test]
fn tokens_are_rationed_by_what_was_really_used() {
    let limits = "[tenants.a]\ntokens_per_minute = 1000\n";
    let server = Server::start(&format!("{TINY}{limits}"));
    let client = server.client().tenant("a");
    // Two reservations of 500 and a prompt don't fit a budget of 1000; what two short answers
    // really use does.
    for _ in 0..2 {
        let ask = with(chat("tiny", 500), "ignore_eos", false);
        let reply = client.post(CHAT, &ask).expect(200);
        assert_eq!(number(&reply, "x-ratelimit-limit-tokens"), 1000);
        assert!(reply.json()["usage"]["total_tokens"].as_u64() < Some(300));
    }
    let refused = client.post(CHAT, &chat("tiny", 950));
    assert!(millis(&refused) > Duration::ZERO);
    let _ = refused.expect_error(429);
}

#[test]
fn request_larger_than_the_budget_is_told_so_and_not_to_retry() {
    let limits = "[tenants.a]\ntokens_per_minute = 100\n";
    let server = Server::start(&format!("{TINY}{limits}"));
    let reply = server.client().tenant("a").post(CHAT, &chat("tiny", 1000));
    assert!((400..500).contains(&reply.status), "{reply}");
    let may_retry = reply.status != 429 || reply.header("x-should-retry") == Some("false");
    assert!(may_retry, "waiting would be in vain: {reply}");
    let status = reply.status;
    let _ = reply.expect_error(status);
}

#[test]
fn requests_at_once_are_capped_and_the_cap_is_given_back() {
    let limits = "[tenants.a]\nmax_concurrent_requests = 1\n";
    let server = Server::start(&format!("{SLOW}{limits}"));
    let mut answer = server.exchange(CHAT, "a", &endless()).answer();
    let _ = answer.until("content");
    let client = server.client().tenant("a");
    let refused = client.post(CHAT, &chat("slow", 2));
    assert!(refused.header("retry-after").is_some(), "{refused}");
    let _ = refused.expect_error(429);
    let _ = server
        .client()
        .tenant("b")
        .post(CHAT, &chat("slow", 2))
        .expect(200);
    drop(answer);
    eventually("the tenant to be let in again", || {
        (client.post(CHAT, &chat("slow", 2)).status == 200).then_some(())
    });
}

#[test]
fn full_queue_refuses_and_an_overdue_wait_ends() {
    let limits = "[limits]\nqueue_timeout = \"2s\"\n";
    let server = Server::start(&format!(
        "{limits}{SLOW}max_concurrent = 1\nqueue_size = 1\n"
    ));
    let mut running = server.exchange(CHAT, "t", &endless()).answer();
    let _ = running.until("content");
    let queued = server.exchange(CHAT, "t", &endless());
    eventually("one to wait", || {
        let depth = server.metrics().sum("kvwarden_admission_queue_depth", &[]);
        (depth == Some(1.0)).then_some(())
    });
    let full = server.client().post(CHAT, &chat("slow", 2));
    assert!(matches!(full.status, 429 | 503), "{full}");
    assert!(full.header("retry-after").is_some(), "{full}");
    let status = full.status;
    let _ = full.expect_error(status);

    let mut overdue = queued.answer();
    assert_eq!(overdue.status, 503);
    let body = overdue.rest().expect("a whole answer");
    assert!(String::from_utf8_lossy(&body).contains("\"error\""));
    let metrics = server.metrics();
    let rejected = metrics.sum("kvwarden_admission_rejected_total", &[]);
    assert_eq!(
        rejected,
        Some(2.0),
        "{:?}",
        metrics.series("kvwarden_admission_rejected_total")
    );
}

#[test]
fn bodies_of_one_tenant_are_bounded_and_leave_others_their_room() {
    let limits = "[limits]\nmax_body = \"1MiB\"\nmax_bodies_per_tenant = \"1MiB\"\n[tenants.a]\n";
    let server = Server::start(&format!("{limits}{TINY}"));
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-tenant-id: a\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        1 << 20
    );
    // Most of a body that never comes in full.
    let mut part = head.into_bytes();
    part.resize(part.len() + 1_000_000, b' ');
    let client = server.client().tenant("a");
    let padded = |bytes: usize| with(chat("tiny", 2), "padding", " ".repeat(bytes));
    // Whichever of the two comes first has the room; it shall be this one.
    let (half_sent, refused) = eventually("the half-sent body to fill the room", || {
        let half_sent = Exchange::raw(server.port, &part);
        let reply = client.post(CHAT, &padded(500_000));
        (reply.status != 200).then_some((half_sent, reply))
    });
    let reason = refused.header("x-kvwarden-dropped-reason");
    assert_eq!(reason, Some("tenant_bodies_full"));
    let _ = refused.expect_error(429);
    let others = server.client().tenant("b");
    let _ = others.post(CHAT, &padded(500_000)).expect(200);
    // What is small enough still fits, and all of it does again when the first is gone.
    let _ = client.post(CHAT, &padded(0)).expect(200);
    drop(half_sent);
    eventually("the room to come back", || {
        (client.post(CHAT, &padded(900_000)).status == 200).then_some(())
    });
}

#[test]
fn lower_priority_number_goes_first() {
    let limits = "[tenants.late]\npriority = 10\n[tenants.early]\npriority = -1\n";
    let server = Server::start(&format!("{SLOW}max_concurrent = 1\n{limits}"));
    let mut running = server.exchange(CHAT, "t", &endless()).answer();
    let _ = running.until("content");
    // The place that is kept free for tenants far below their share.
    let mut in_headroom = server.exchange(CHAT, "u", &endless()).answer();
    let _ = in_headroom.until("content");
    let depth_is = |wanted: f64| {
        eventually("the queue to fill", || {
            let depth = server.metrics().sum("kvwarden_admission_queue_depth", &[]);
            (depth == Some(wanted)).then_some(())
        });
    };
    let late = server.exchange(CHAT, "late", &streamed("slow", 500));
    depth_is(1.0);
    let early = server.exchange(CHAT, "early", &streamed("slow", 20));
    depth_is(2.0);
    drop(running);
    let mut early = early.answer();
    let _ = early.until("content");
    assert!(late.is_unanswered(), "the later priority was served first");
}

#[test]
fn api_key_decides_the_tenant() {
    let (a, b) = (key_hash("sk-a"), key_hash("sk-b"));
    let tenants = format!(
        "[tenants.a]\napi_keys = [\"{a}\"]\n[tenants.b]\napi_keys = [\"{b}\"]\nrate_limit_rpm = 1\n"
    );
    let server = Server::start(&format!("{TINY}{tenants}"));
    let ask = chat("tiny", 2);
    // The key wins over what the header claims.
    let client = server.client().key("sk-b").tenant("a");
    assert_eq!(client.post(CHAT, &ask).status, 200);
    assert_eq!(client.post(CHAT, &ask).status, 429);
    assert_eq!(server.client().key("sk-a").post(CHAT, &ask).status, 200);
    let wrong = server
        .client()
        .key("sk-nobody")
        .tenant("a")
        .post(CHAT, &ask);
    let error = wrong.expect_error(401);
    assert_eq!(error["code"], "invalid_api_key");
}

#[test]
fn three_thousand_invented_tenants_make_few_series() {
    let server = Server::start(TINY);
    let ask = |id: usize| {
        let client = server
            .client()
            .tenant(&format!("invented-{id:x}-{}", id * 7919));
        // Refused before any engine is asked, and still a request of that tenant.
        let _ = client.post(CHAT, &chat("nope", 1));
        let _ = client.post(CHAT, &chat("tiny", 1)).expect(200);
    };
    (0..20).for_each(ask);
    let names = |page: &str| -> BTreeSet<String> {
        let page = kvwarden_integration::Metrics::new(page);
        page.samples()
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    let before = names(server.metrics().page());
    let next = AtomicUsize::new(20);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    if id >= 3000 {
                        return;
                    }
                    ask(id);
                }
            });
        }
    });
    let after = names(server.metrics().page());
    let new: Vec<_> = after.difference(&before).collect();
    assert!(after.len() < 1000, "{} series", after.len());
    assert!(new.len() < 20, "series grew with tenants: {new:?}");
}
