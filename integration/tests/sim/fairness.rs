//! Fairness over sockets: what a crowd, a liar and a flood can take from others, which is nothing.
//! How exact shares are is proven in policy's simulation; here it is whether the way there holds.

use std::{ops::Range, thread};

use kvwarden_integration::{Exchange, Server, eventually};
use serde_json::Value;

use crate::{CHAT, SLOW, TINY, chat, streamed, with};

fn status(server: &Server) -> Value {
    server.client().get("/kvwarden/status").expect(200).json()
}

fn waiting(server: &Server, model: &str) -> u64 {
    let waiting = &status(server)["loaded_models"][model]["waiting"];
    waiting.as_u64().expect("a number")
}

fn requests(server: &Server, tenant: &str, ended: &str) -> f64 {
    let labels = [
        format!("tenant=\"{tenant}\""),
        format!("status=\"{ended}\""),
    ];
    let labels: Vec<_> = labels.iter().map(String::as_str).collect();
    let count = server.metrics().sum("kvwarden_requests_total", &labels);
    count.unwrap_or(0.0)
}

#[test]
fn thousand_made_up_tenants_leave_a_configured_one_its_share() {
    const OURS: u32 = 40;
    // Fewer places than made-up tenants, and more waiting of ours than of any of those.
    let server = Server::start(&format!(
        "{SLOW}max_concurrent = 8\nqueue_size = 500\n[tenants.ours]\n"
    ));
    let ask = chat("slow", 40);
    let crowd: Vec<Exchange> = (0..1000)
        .map(|id| server.exchange(CHAT, &format!("made-up-{id}"), &ask))
        .collect();
    eventually("the queue to be full", || {
        (waiting(&server, "slow") >= 490).then_some(())
    });
    let before = requests(&server, "_other", "ok");
    let ours: Vec<Exchange> = (0..OURS)
        .map(|_| server.exchange(CHAT, "ours", &ask))
        .collect();
    for exchange in ours {
        assert_eq!(exchange.answer().status, 200, "within its share");
    }
    // Two equal parts mean as many of theirs as of ours, and one engine full more at either end.
    // By arrival it would have been all 500, by tenant a thousand times as many.
    let theirs = requests(&server, "_other", "ok") - before;
    assert!(theirs <= 2.0 * f64::from(OURS), "{theirs}");
    assert!(waiting(&server, "slow") > 100, "the crowd still waits");
    drop(crowd);
}

#[test]
fn lying_about_max_tokens_gains_nothing() {
    const EACH: u32 = 500;
    let server = Server::start(&format!(
        "{TINY}max_concurrent = 8\n[tenants.honest]\n[tenants.liar]\n"
    ));
    // The same answers of the same length, whatever is said of them.
    let ask = |claim: u64| with(chat("tiny", claim), "ignore_eos", false);
    let asks: Vec<Exchange> = (0..EACH)
        .flat_map(|_| [("honest", 500), ("liar", 1900)])
        .map(|(tenant, claim)| server.exchange(CHAT, tenant, &ask(claim)))
        .collect();
    let used = |status: &Value, tenant: &str| {
        let used = &status["tenants"][tenant]["used"];
        let sum = ["prompt_tokens", "completion_tokens"].map(|part| used[part].as_f64());
        sum[0].unwrap_or(0.0) + sum[1].unwrap_or(0.0)
    };
    let backlog = |status: &Value, tenant: &str| -> u64 {
        let tenants = status["loaded_models"]["org/tiny-model"]["scheduling"]["tenants"].clone();
        let tenants = tenants.as_array().into_iter().flatten();
        let ours = tenants.filter(|it| it["tenant"] == tenant);
        ours.filter_map(|it| it["waiting"].as_u64()).sum()
    };
    let both_have = |what: &str, left: Range<u64>| {
        eventually(what, || {
            let now = status(&server);
            let are_left = ["honest", "liar"].map(|tenant| left.contains(&backlog(&now, tenant)));
            (are_left == [true; 2]).then_some(now)
        })
    };
    // While they still come, who is served is who is there. From here on both have something waiting.
    let before = both_have("a long line of both", 300..u64::MAX);
    let after = both_have("most of it to be served", 1..100);
    let [honest, liar] =
        ["honest", "liar"].map(|tenant| used(&after, tenant) - used(&before, tenant));
    // Of 200 answers each, the eight in flight are not counted yet: 8/400 is 2%.
    let share = liar / (honest + liar);
    assert!(
        (0.47..=0.53).contains(&share),
        "{share}: {liar} of {honest}"
    );
    drop(asks);
}

#[test]
fn flood_of_one_tenant_is_refused_to_it_alone() {
    let server = Server::start(&format!(
        "{SLOW}max_concurrent = 4\nqueue_size = 100\n[tenants.noisy]\n[tenants.quiet]\n"
    ));
    let flood = streamed("slow", 30);
    let mut clients = Vec::new();
    let quiet = server.client().tenant("quiet");
    for _ in 0..10 {
        clients.extend((0..100).map(|_| server.exchange(CHAT, "noisy", &flood)));
        let _ = quiet.post(CHAT, &chat("slow", 5)).expect(200);
    }
    assert_eq!(requests(&server, "quiet", "rejected"), 0.0);
    assert!(requests(&server, "noisy", "rejected") > 500.0);
    drop(clients);
}

#[test]
fn five_hundred_clients_that_hang_up_anywhere_leave_nothing_behind() {
    const THREADS: u64 = 10;
    let server = Server::start(&format!("{SLOW}max_concurrent = 32\n"));
    let engine = server.engine();
    let engine = kvwarden_integration::engine::Gauges::of(&engine);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let server = &server;
            scope.spawn(move || (0..50).for_each(|at| hang_up(server, seed * 50 + at)));
        }
    });
    eventually("every permit to come back", || {
        let now = status(&server);
        let model = &now["loaded_models"]["slow"];
        let is_idle = model["running"] == 0 && model["waiting"] == 0;
        let tenants = now["tenants"].as_object()?.values();
        let is_settled = tenants.map(|it| &it["in_flight"]).all(|held| *held == 0);
        (is_idle && is_settled && engine.running() == 0).then_some(())
    });
    let aborts = engine
        .metrics()
        .sum("vllm:request_success_total", &["finished_reason=\"abort\""]);
    let dispatched = status(&server)["loaded_models"]["slow"]["record"]["dispatched"].as_f64();
    // All were endless, and at least those that were read of had reached the engine.
    assert!(
        aborts >= Some(250.0) && aborts <= dispatched,
        "{aborts:?} of {dispatched:?}"
    );
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
}

/// One client that leaves: before it is heard, in the queue, at the first token, or some way in.
fn hang_up(server: &Server, which: u64) {
    let exchange = server.exchange(CHAT, &format!("t{}", which % 7), &crate::endless());
    // A multiplicative hash: any order will do, but the same one each time.
    match which.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 62 {
        0 => {
            // Whether it is still unanswered does not matter, only that the time is another one.
            let _ = exchange.is_unanswered();
        }
        1 => drop(exchange.answer()),
        pieces => {
            let mut answer = exchange.answer();
            for _ in 0..pieces * 3 {
                let _ = answer.until("content");
            }
        }
    }
}
