//! R5: what serving holds does not grow with what was served.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use kvwarden_integration::{Caller, Footprint, Server, Stopwatch, caller, eventually};
use kvwarden_policy::simulation::rng::SplitMix;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{CHAT, closed_again, growth, rounds};

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

/// What a server holds, and how much its metrics say.
#[derive(Clone, Debug)]
struct Held {
    footprint: Footprint,
    series: BTreeSet<String>,
}

impl Held {
    fn by(server: &Server) -> Self {
        let metrics = server.metrics();
        let name = |line: &str| line.rsplit_once(' ').map(|(name, _)| name.to_owned());
        Self {
            series: metrics.samples().filter_map(name).collect(),
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
    // Enough that everything that makes a series of its own has happened.
    let first = (count / 10).max(1_000);
    caller::run(serve(server.port, first));
    // What the engine says of itself is asked for once a second.
    eventually("the engine to be looked at", || {
        server.metrics().sum("kvwarden_engine_waiting", &[])
    });
    let warm = Held::by(&server);
    caller::run(serve(server.port, count - first));
    let took = watch.elapsed();
    let last = Held::by(&server);
    let idle = closed_again(server.pid(), fresh.footprint);
    let growth = growth(warm.footprint, last.footprint);
    println!(
        "R5: {count} requests in {took:.1?}: {} KiB at first, {} KiB warm, {} KiB at last ({growth:+.1} %; goal +5 %), {} KiB idle; {} descriptors at first, {} idle; {} series warm, {} at last",
        fresh.footprint.resident,
        warm.footprint.resident,
        last.footprint.resident,
        idle.resident,
        fresh.footprint.descriptors,
        idle.descriptors,
        warm.series.len(),
        last.series.len()
    );
    let new: Vec<_> = last.series.difference(&warm.series).collect();
    assert!(new.is_empty(), "{new:?}");
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
        let (model, status) = match random.below(20) {
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
