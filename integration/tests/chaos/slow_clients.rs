//! S4: clients that send slowly, and clients that read slowly, beside one that does neither.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use kvwarden_integration::{
    Caller, Footprint, Server, Stopwatch, caller, engine::Gauges, eventually_within,
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{interval, sleep, timeout},
};

use crate::{CHAT, closed_again, percentile, rounds};

/// Slow readers ask for the first. An engine that works lets a newcomer wait for the end of its step,
/// whoever it works for; beside the second model's engine that is no part of what is measured.
const CONFIG: &str = r#"
[tenants.quiet]
[tenants.slow]

[[models]]
id = "shared"
engine = "sim"
max_concurrent = 16
queue_size = 4096

[[models]]
id = "apart"
engine = "sim"
"#;

const MODELS: [&str; 2] = ["shared", "apart"];

/// Between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(500);

/// How a client is slow.
#[derive(Clone, Copy, Debug)]
enum Slow {
    Headers,
    Body,
    Reader,
}

fn ask(model: &str, tokens: u32) -> Value {
    json!({
        "model": model, "stream": true, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    })
}

#[test]
fn slow_clients_do_not_slow_down_a_quiet_one() {
    let (each, samples) = (rounds(100, 1000), rounds(50, 1000));
    let server = Server::start(CONFIG);
    let engine = Gauges::of(&server.engine_of("shared"));
    let before = Footprint::of(server.pid());
    let alone = MODELS.map(|model| first_tokens(&server, model, samples));
    let over = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        let slow = scope.spawn(|| caller::run(all_slow(server.port, each, &over)));
        eventually_within(
            Duration::from_secs(60),
            "all slow clients to be there",
            || {
                let all = before.descriptors + 3 * each as usize;
                (Footprint::of(server.pid()).descriptors >= all).then_some(())
            },
        );
        let beside = MODELS.map(|model| first_tokens(&server, model, samples));
        over.store(true, Ordering::Relaxed);
        slow.join().expect("nothing panics");
        beside
    });
    eventually_within(Duration::from_secs(60), "all to be given back", || {
        let metrics = server.metrics();
        let held = metrics.sum("kvwarden_tenant_in_flight", &[]);
        let is_idle = held == Some(0.0) && engine.running() == 0;
        is_idle.then_some(())
    });
    let after = closed_again(server.pid(), before);
    println!(
        "S4: {each} each of slow headers, slow bodies and slow readers; {} descriptors before, {} after",
        before.descriptors, after.descriptors
    );
    for ((model, alone), beside) in MODELS.iter().zip(&alone).zip(&beside) {
        let [p50, p99] = [50, 99].map(|percent| {
            let [alone, beside] = [alone, beside].map(|times| percentile(times, percent));
            let ratio = beside.as_secs_f64() / alone.as_secs_f64();
            format!("{alone:.1?} alone, {beside:.1?} beside them, {ratio:.2} times")
        });
        println!(
            "S4: a quiet tenant's first token, engine {model}: p50 {p50}; p99 {p99} (goal 1.2)"
        );
    }
}

/// From each of some requests until its first token.
fn first_tokens(server: &Server, model: &str, count: u32) -> Vec<Duration> {
    let one = |_| {
        let watch = Stopwatch::start();
        let mut answer = server.exchange(CHAT, "quiet", &ask(model, 2)).answer();
        let _ = answer.until("content\":\"");
        let took = watch.elapsed();
        let rest = answer.rest().expect("a whole stream");
        assert!(rest.ends_with(b"data: [DONE]\n\n"));
        took
    };
    (0..count).map(one).collect()
}

/// Slow clients of every manner until it is over. Those that the server throws out come back.
async fn all_slow(port: u16, each: u32, over: &AtomicBool) {
    let mut clients = JoinSet::new();
    for manner in [Slow::Headers, Slow::Body, Slow::Reader] {
        for _ in 0..each {
            clients.spawn(async move {
                loop {
                    // However it ends: a slow client is not told more than that it is cut off.
                    let _ = slow(port, manner).await;
                    sleep(PAUSE).await;
                }
            });
        }
    }
    let mut looks = interval(Duration::from_millis(50));
    while !over.load(Ordering::Relaxed) {
        looks.tick().await;
    }
    clients.shutdown().await;
}

async fn slow(port: u16, manner: Slow) -> io::Result<()> {
    let request = caller::post(CHAT, "slow", &ask("shared", 30_000));
    let head = request.windows(4).position(|part| part == b"\r\n\r\n");
    let head = head.expect("a request has a head") + 4;
    let mut caller = Caller::connect_narrowly(port).await?;
    let at_once = match manner {
        Slow::Headers => 0,
        Slow::Body => head,
        Slow::Reader => request.len(),
    };
    caller.send(&request[..at_once]).await?;
    for byte in &request[at_once..] {
        // Hears that it is thrown out while it waits.
        if let Ok(answer) = timeout(PAUSE, caller.byte()).await {
            return answer.map(drop);
        }
        caller.send(&[*byte]).await?;
    }
    loop {
        caller.byte().await?;
        sleep(PAUSE).await;
    }
}
