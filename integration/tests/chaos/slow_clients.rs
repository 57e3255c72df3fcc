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

use crate::{CHAT, percentile, rounds};

/// So small that slow readers take next to nothing of the *engine's* speed: what is left is what they
/// take of kvwarden.
const CONFIG: &str = r#"
[tenants.quiet]
[tenants.slow]

[[models]]
id = "m"
engine = "sim"
max_concurrent = 16
queue_size = 4096
"#;

/// Between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(500);

/// How a client is slow.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Headers,
    Body,
    Reader,
}

fn ask(tokens: u32) -> Value {
    json!({
        "model": "m", "stream": true, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    })
}

#[test]
fn slow_clients_do_not_slow_down_a_quiet_one() {
    let (each, samples) = (rounds(100, 1000), rounds(50, 1000));
    let server = Server::start(CONFIG);
    let engine = Gauges::of(&server.engine());
    let before = Footprint::of(server.pid());
    let alone = first_tokens(&server, samples);
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
        let beside = first_tokens(&server, samples);
        over.store(true, Ordering::Relaxed);
        slow.join().expect("nothing panics");
        beside
    });
    eventually_within(Duration::from_secs(60), "all to be given back", || {
        let metrics = server.metrics();
        let held = metrics.sum("kvwarden_tenant_in_flight", &[]);
        let open = Footprint::of(server.pid()).descriptors;
        let is_idle = held == Some(0.0) && engine.running() == 0;
        (is_idle && open <= before.descriptors).then_some(())
    });
    let [p50, p99] = [50, 99].map(|percent| {
        let [alone, beside] = [&alone, &beside].map(|times| percentile(times, percent));
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        format!("{alone:.1?} alone, {beside:.1?} beside them, {ratio:.2} times")
    });
    println!(
        "S4: {each} each of slow headers, slow bodies and slow readers: a quiet tenant's first token, p50: {p50}; p99: {p99} (goal 1.2)"
    );
}

/// From each of some requests until its first token.
fn first_tokens(server: &Server, count: u32) -> Vec<Duration> {
    let one = |_| {
        let watch = Stopwatch::start();
        let mut answer = server.exchange(CHAT, "quiet", &ask(2)).answer();
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
    for manner in [Manner::Headers, Manner::Body, Manner::Reader] {
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

async fn slow(port: u16, manner: Manner) -> io::Result<()> {
    let request = caller::post(CHAT, "slow", &ask(30_000));
    let head = request.windows(4).position(|part| part == b"\r\n\r\n");
    let head = head.expect("a request has a head") + 4;
    let mut caller = Caller::connect_narrowly(port).await?;
    let at_once = match manner {
        Manner::Headers => 0,
        Manner::Body => head,
        Manner::Reader => request.len(),
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
