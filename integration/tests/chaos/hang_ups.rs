//! R4: clients that hang up at any moment leave nothing behind, here or in the engine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use kvwarden_integration::{
    Caller, Exchange, Metrics, Server, Stopwatch, caller, engine::Gauges, eventually,
    eventually_within,
};
use kvwarden_policy::simulation::rng::SplitMix;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use crate::{CHAT, percentile, rounds};

/// What one day may cost; more than the test can use.
const DAY: u64 = 1_000_000_000;
/// Requests that the node holds at once.
const PLACES: usize = 200;
/// Clients at once. One that hung up may hold its place for a moment longer, so they are fewer.
const CLIENTS: u64 = 64;
/// What estimates of a prompt may be wrong by.
const MARGIN: u64 = 1000;

/// The second model is asked by nobody else, so its engine's aborts are ours.
fn config() -> String {
    format!(
        "[limits]\nmax_in_flight = {PLACES}\n\
         [tenants.t]\nmax_concurrent_requests = {PLACES}\ntokens_per_day = {DAY}\n\
         [[models]]\nid = \"m\"\nengine = \"sim\"\npreset = \"tiny\"\nmax_concurrent = 16\n\
         [[models]]\nid = \"watched\"\nengine = \"sim\"\n"
    )
}

/// When a client hangs up.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So many bytes into its request, head or body.
    Sending(u32),
    /// So long after its request: in the queue, in its prefill, or later.
    Waiting(Duration),
    /// After so many pieces of its answer, of which the first brings the head.
    Reading(u32),
    /// When it has all of the text, and not yet the end.
    LastToken,
    /// When it has everything.
    Never,
}

impl Moment {
    fn draw(random: &mut SplitMix) -> Self {
        if random.below(100) >= 30 {
            return Self::Never;
        }
        match random.below(4) {
            0 => Self::Sending(random.below(400)),
            1 => Self::Waiting(Duration::from_micros(random.below(20_000).into())),
            2 => Self::Reading(random.below(8)),
            _ => Self::LastToken,
        }
    }
}

/// How many clients there were, and how many of them hung up.
#[derive(Debug, Default)]
struct Tally {
    begun: AtomicU32,
    hung_up: AtomicU32,
}

#[test]
fn hung_up_clients_leave_nothing_behind() {
    let count = rounds(2_000, 100_000);
    let server = Server::start(&config());
    let engine = Gauges::of(&server.engine_of("m"));
    let aborts = std::thread::scope(|scope| {
        let over = Arc::new(AtomicBool::new(false));
        let watching = scope.spawn({
            let (server, over) = (&server, Arc::clone(&over));
            move || watch_aborts(server, &over)
        });
        let watch = Stopwatch::start();
        let tally = caller::run(all_clients(server.port, count));
        let took = watch.elapsed();
        over.store(true, Ordering::Relaxed);
        let hung_up = tally.hung_up.load(Ordering::Relaxed);
        println!("R4: {count} requests in {took:.1?}, {hung_up} hung up");
        watching.join().expect("nothing panics")
    });
    wait_until_all_is_back(&server, &engine);
    assert_places_are_free(&server);
    wait_until_all_is_back(&server, &engine);
    assert_tokens_are_given_back(&server);
    println!(
        "R4: every permit and token is back; under that load the engine saw {} hang-ups after {:.1?} (p50), {:.1?} (p99; goal 50 ms)",
        aborts.len(),
        percentile(&aborts, 50),
        percentile(&aborts, 99)
    );
}

async fn all_clients(port: u16, count: u32) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for seed in 0..CLIENTS {
        let tally = Arc::clone(&tally);
        clients.spawn(async move {
            let mut random = SplitMix::new(seed);
            while tally.begun.fetch_add(1, Ordering::Relaxed) < count {
                let moment = Moment::draw(&mut random);
                if !matches!(moment, Moment::Never) {
                    tally.hung_up.fetch_add(1, Ordering::Relaxed);
                }
                let done = one(port, moment, &mut random).await;
                done.unwrap_or_else(|error| panic!("{moment:?}: {error}"));
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }
    tally
}

async fn one(port: u16, moment: Moment, random: &mut SplitMix) -> std::io::Result<()> {
    // Some are long enough for several steps of prefill.
    let words = if random.below(10) == 0 { 1_000 } else { 5 };
    let is_streamed = random.below(4) > 0;
    let request = json!({
        "model": "m", "stream": is_streamed, "max_tokens": 8, "ignore_eos": true,
        "messages": [{"role": "user", "content": "sea ".repeat(words)}],
    });
    let request = caller::post(CHAT, "t", &request);
    let mut caller = Caller::connect(port).await?;
    if let Moment::Sending(bytes) = moment {
        let part = request.len().min(bytes as usize);
        return caller.send(&request[..part]).await;
    }
    caller.send(&request).await?;
    if let Moment::Waiting(time) = moment {
        sleep(time).await;
        return Ok(());
    }
    assert_eq!(caller.status().await?, 200);
    let mut pieces = match moment {
        Moment::Reading(pieces) => pieces,
        Moment::Sending(_) | Moment::Waiting(_) | Moment::LastToken | Moment::Never => u32::MAX,
    };
    let mut last = Vec::new();
    while pieces > 0 {
        let Some(piece) = caller.piece().await? else {
            assert!(!is_streamed || last.ends_with(b"data: [DONE]\n\n"));
            return Ok(());
        };
        let is_last_token = String::from_utf8_lossy(&piece).contains("\"length\"");
        if is_last_token && matches!(moment, Moment::LastToken) {
            return Ok(());
        }
        last = piece;
        pieces -= 1;
    }
    Ok(())
}

/// Minutes of output: it ends when its client does.
fn endless() -> Value {
    json!({
        "model": "watched", "stream": true, "max_tokens": 30_000, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    })
}

/// Hangs up on an engine of its own until the load is over; from each hang-up until the engine
/// counts it.
fn watch_aborts(server: &Server, over: &AtomicBool) -> Vec<Duration> {
    let engine = Gauges::of(&server.engine_of("watched"));
    let aborted = |metrics: &Metrics| {
        let reason = ["finished_reason=\"abort\""];
        metrics.sum("vllm:request_success_total", &reason)
    };
    let endless = endless();
    let mut delays = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let mut answer = server.exchange(CHAT, "watching", &endless).answer();
        let _ = answer.until("content");
        let before = aborted(&engine.metrics());
        drop(answer);
        let watch = Stopwatch::start();
        while aborted(&engine.metrics()) == before {
            assert!(watch.elapsed() < Duration::from_secs(15), "not aborted");
        }
        delays.push(watch.elapsed());
    }
    delays
}

fn wait_until_all_is_back(server: &Server, engine: &Gauges) {
    eventually_within(Duration::from_secs(30), "all to be given back", || {
        let metrics = server.metrics();
        let held = [
            "kvwarden_admission_in_flight",
            "kvwarden_admission_queue_depth",
            "kvwarden_tenant_in_flight",
        ];
        let is_idle = held
            .iter()
            .all(|gauge| metrics.sum(gauge, &[]) == Some(0.0));
        (is_idle && engine.running() + engine.waiting() == 0).then_some(())
    });
}

/// All places of the node, and of the tenant, can be taken at once, and not one more.
fn assert_places_are_free(server: &Server) {
    let open = || server.exchange(CHAT, "t", &endless());
    let held: Vec<Exchange> = (0..PLACES).map(|_| open()).collect();
    eventually("every place to be taken", || {
        let taken = server.metrics().sum("kvwarden_tenant_in_flight", &[]);
        (taken == Some(PLACES as f64)).then_some(())
    });
    assert_eq!(open().answer().status, 503);
    drop(held);
}

/// Exactly what was used is missing from the tenant's day.
fn assert_tokens_are_given_back(server: &Server) {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    let used = &status["tenants"]["t"]["used"];
    let count = |key: &str| used[key].as_u64().expect("a count");
    let left = DAY - count("prompt_tokens") - count("completion_tokens");
    let client = server.client().tenant("t");
    let ask = |tokens: u64| {
        let body = json!({
            "model": "m", "max_tokens": tokens,
            "messages": [{"role": "user", "content": "sea"}],
        });
        client.post(CHAT, &body)
    };
    // The engine refuses so much: it was asked, so the day had it.
    let granted = ask(left - MARGIN);
    assert_eq!(granted.status, 400, "tokens were not given back: {granted}");
    let refused = ask(left + 1);
    let reason = refused.header("x-kvwarden-dropped-reason");
    assert_eq!(reason, Some("tokens_per_day"), "{refused}");
}
