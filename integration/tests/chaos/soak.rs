//! R5: what serving holds does not grow with what was served.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kvwarden_integration::{Caller, Footprint, Server, Stopwatch, caller, eventually_within};
use kvwarden_policy::rng::SplitMix;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{CHAT, growth, rounds};

const CONFIG: &str = r#"
[tenants.a]
[tenants.b]
rate_limit_rpm = 600000
[tenants.c]
tokens_per_minute = 100000000

[[models]]
id = "m"
engine = "sim"
preset = "tiny"
max_concurrent = 64
"#;

const CLIENTS: u64 = 48;

/// Requests of one connection.
const OF_ONE_CONNECTION: u32 = 100;

/// What connections to engines that nobody uses any more may take to go.
const IDLE: Duration = Duration::from_secs(60);

/// What a server holds, and how much its metrics say.
#[derive(Clone, Copy, Debug)]
struct Held {
    footprint: Footprint,
    series: usize,
}

impl Held {
    fn by(server: &Server) -> Self {
        Self {
            series: server.metrics().samples().count(),
            footprint: Footprint::of(server.pid()),
        }
    }
}

#[test]
fn what_is_held_does_not_grow_with_what_was_served() {
    let count = rounds(4_000, 1_000_000);
    let server = Server::start(CONFIG);
    let fresh = Held::by(&server);
    let watch = Stopwatch::start();
    caller::run(serve(server.port, count / 10));
    let warm = Held::by(&server);
    caller::run(serve(server.port, count - count / 10));
    let took = watch.elapsed();
    let last = Held::by(&server);
    let baseline = fresh.footprint.descriptors;
    let idle = eventually_within(IDLE, "the connections to be closed", || {
        let now = Footprint::of(server.pid());
        (now.descriptors <= baseline).then_some(now)
    });
    let growth = growth(warm.footprint, last.footprint);
    println!(
        "R5: {count} requests in {took:.1?}: {} KiB at first, {} KiB warm, {} KiB at last ({growth:+.1} %; goal +5 %), {} KiB idle; {baseline} descriptors at first, {} idle; {} series warm, {} at last",
        fresh.footprint.resident,
        warm.footprint.resident,
        last.footprint.resident,
        idle.resident,
        idle.descriptors,
        warm.series,
        last.series
    );
    assert_eq!(warm.series, last.series);
}

async fn serve(port: u16, count: u32) {
    let begun = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for seed in 0..CLIENTS {
        let begun = Arc::clone(&begun);
        clients.spawn(async move {
            let mut random = SplitMix::new(seed);
            while begun.load(Ordering::Relaxed) < count {
                let served = connection(port, &begun, count, &mut random).await;
                served.expect("the server does not hang up");
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }
}

/// A connection's worth of requests: streamed, whole, refused; by tenants that the configuration
/// names and by others.
async fn connection(
    port: u16,
    begun: &AtomicU32,
    count: u32,
    random: &mut SplitMix,
) -> std::io::Result<()> {
    let mut caller = Caller::connect(port).await?;
    for _ in 0..OF_ONE_CONNECTION {
        if begun.fetch_add(1, Ordering::Relaxed) >= count {
            return Ok(());
        }
        let tenant = match random.below(4) {
            0 => "a".to_owned(),
            1 => "b".to_owned(),
            2 => "c".to_owned(),
            _ => format!("unnamed-{}", random.below(100)),
        };
        let (model, status) = match random.below(100) {
            0 => ("nope", 404),
            _ => ("m", 200),
        };
        let body = json!({
            "model": model, "stream": random.below(4) > 0, "ignore_eos": true,
            "max_tokens": 1 + random.below(8),
            "messages": [{"role": "user", "content": "sea ".repeat(1 + random.below(50) as usize)}],
        });
        caller.send(&caller::post(CHAT, &tenant, &body)).await?;
        assert_eq!(caller.status().await?, status);
        let _ = caller.rest().await?;
    }
    Ok(())
}
