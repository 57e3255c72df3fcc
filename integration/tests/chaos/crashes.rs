//! R1: engines that are killed, at every point of their lives.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use kvwarden_integration::{
    Answer, Client, Exchange, Server, Stopwatch, engine::Gauges, eventually_within, sse,
};
use serde_json::{Value, json};

use crate::{CHAT, percentile, rounds};

/// A backoff and a start, on a machine that also compiles.
const SOON: Duration = Duration::from_secs(60);

/// Requests to the model beside, before anything happens.
const BEFORE: usize = 100;

/// A server with the model `m`, which something happens to, and the model `beside`, to which nothing
/// may happen.
pub(crate) struct Rig {
    pub(crate) server: Server,
    well: PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// `m` is started with these faults for as long as it is not [`Rig::mend`]ed, and after `beside`:
    /// a device starts one engine at a time. `keys` are more of its configuration, `limits` those of
    /// the server.
    pub(crate) fn launch(limits: &str, keys: &str, faults: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let well = dir.path().join("well");
        let file = well.display().to_string();
        let mut args = vec!["--fault-until", &file];
        // What a fault waits for is the same file.
        args.extend(
            faults
                .iter()
                .map(|arg| if *arg == "FILE" { &file } else { *arg }),
        );
        let server = Server::launch(&format!(
            "[limits]\n{limits}\n\
             [[models]]\nid = \"beside\"\nengine = \"sim\"\npreset = \"tiny\"\n\
             [[models]]\nid = \"m\"\nengine = \"sim\"\npreset = \"a100-8b\"\n\
             autostart = false\nextra_args = {}\n{keys}\n",
            json!(args)
        ));
        let rig = Self {
            server,
            well,
            _dir: dir,
        };
        rig.reaches("beside", "ready");
        rig.wish("load");
        rig
    }

    /// The same once `m` serves.
    fn start(keys: &str, faults: &[&str]) -> Self {
        let rig = Self::launch("", keys, faults);
        rig.reaches("m", "ready");
        rig
    }

    /// From now on `m` starts without faults.
    pub(crate) fn mend(&self) {
        fs::write(&self.well, "").expect("a file is made");
    }

    pub(crate) fn of(&self, model: &str) -> Option<Value> {
        let status = self.server.client().try_get("/kvwarden/status").ok()?;
        Some(status.json()["loaded_models"][model].clone())
    }

    pub(crate) fn reaches(&self, model: &str, state: &str) {
        eventually_within(SOON, &format!("{model} to be {state}"), || {
            (self.of(model)?["state"] == state).then_some(())
        });
    }

    fn starts_as_far_as(&self, phase: &str) {
        eventually_within(SOON, &format!("its start to be {phase}"), || {
            (self.of("m")?["phase"] == phase).then_some(())
        });
    }

    fn wish(&self, verb: &str) {
        let path = format!("/kvwarden/models/m/{verb}");
        let _ = self.server.client().post(&path, &Value::Null).expect(202);
    }

    pub(crate) fn ask(&self) -> Exchange {
        self.server.exchange(CHAT, "t", &chat("m", 2))
    }

    /// A stream without an end that has begun.
    fn stream(&self) -> Answer {
        let mut ask = chat("m", 30_000);
        ask["stream"] = true.into();
        let mut answer = self.server.exchange(CHAT, "t", &ask).answer();
        let _ = answer.until("content");
        answer
    }

    fn kill(&self) {
        self.server.engine_of("m").kill();
    }

    pub(crate) fn said(&self, text: &str) -> bool {
        self.server.log().iter().any(|line| line.contains(text))
    }

    pub(crate) fn failures(&self) -> Value {
        self.of("m").expect("an answer")["record"]["failures"].clone()
    }

    /// That the first failure was followed by a pause, and the engine by another.
    pub(crate) fn has_failed_once(&self) {
        assert!(self.said("backing off after failure 1"));
        assert_eq!(self.failures(), 1);
    }
}

pub(crate) fn chat(model: &str, tokens: u64) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
        "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
    })
}

pub(crate) fn is_answered(exchange: Exchange) {
    let mut answer = exchange.answer();
    let body = answer.rest().expect("a whole answer");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&body));
}

fn ends_with_one_error(mut stream: Answer) {
    let body = stream
        .rest()
        .expect("the client's own connection ends well");
    let events = sse::data(&body);
    let is_error = |event: &String| event.starts_with("{\"error\"");
    let errors = events.iter().filter(|event| is_error(event)).count();
    let shown = String::from_utf8_lossy(&body);
    assert_eq!(errors, 1, "{shown}");
    assert!(events.last().is_some_and(is_error), "{shown}");
}

/// How long one request to the model beside takes.
fn latency(client: &Client) -> Duration {
    let watch = Stopwatch::start();
    let _ = client.post(CHAT, &chat("beside", 8)).expect(200);
    watch.elapsed()
}

/// Does it as often as it is to be done, while the model beside is asked all the time.
#[expect(clippy::print_stdout, reason = "the figures of a test")]
fn at(point: &str, start: impl Fn() -> Rig, strike: impl Fn(&Rig) + Sync) {
    let count = rounds(1, 20);
    let (mut before, mut meanwhile) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let rig = start();
        let client = rig.server.client().tenant("beside");
        before.extend((0..BEFORE).map(|_| latency(&client)));
        let is_over = AtomicBool::new(false);
        meanwhile.extend(thread::scope(|scope| {
            let strikes = scope.spawn(|| {
                strike(&rig);
                let _ = rig.server.client().post(CHAT, &chat("m", 2)).expect(200);
                is_over.store(true, Ordering::Relaxed);
            });
            let mut all = Vec::new();
            while !is_over.load(Ordering::Relaxed) && !strikes.is_finished() {
                all.push(latency(&client));
            }
            strikes.join().expect("what is asked of the engine holds");
            all
        }));
        let rejected = rig.server.metrics();
        let rejected = rejected.sum("kvwarden_requests_total", &["status=\"rejected\""]);
        assert_eq!(rejected, None, "429 for no fault of the client's");
    }
    println!(
        "R1: killed {point}: {count} of {count} recovered; p99 of the model beside it {:.1} ms, before {:.1} ms",
        percentile(&meanwhile, 99).as_secs_f64() * 1e3,
        percentile(&before, 99).as_secs_f64() * 1e3,
    );
}

#[test]
fn while_it_starts() {
    let start = || Rig::launch("", "", &["--fault-wait-for", "FILE"]);
    at("before it listens", start, |rig| {
        let early = rig.ask();
        rig.kill();
        rig.mend();
        is_answered(early);
        rig.has_failed_once();
    });
}

#[test]
fn while_it_loads() {
    let start = || Rig::launch("", "", &["--fault-slow-start", "600s"]);
    before_it_serves("while it loads", start, "loading");
}

#[test]
fn while_it_proves_itself() {
    let start = || Rig::launch("", "", &["--fault-hang-after", "1"]);
    before_it_serves("in its canary", start, "canary");
}

/// It is killed in a phase of its start in which it would stay, and the next start serves who waits.
fn before_it_serves(point: &str, start: impl Fn() -> Rig, phase: &str) {
    at(point, start, |rig| {
        rig.starts_as_far_as(phase);
        let early = rig.ask();
        rig.mend();
        rig.kill();
        is_answered(early);
        rig.has_failed_once();
    });
}

#[test]
fn while_it_is_idle() {
    at(
        "idle",
        || Rig::start("", &[]),
        |rig| {
            rig.kill();
            rig.reaches("m", "backoff");
            is_answered(rig.ask());
            rig.has_failed_once();
        },
    );
}

#[test]
fn while_requests_wait_for_it() {
    let start = || Rig::start("max_concurrent = 1", &[]);
    at("with a queue", start, |rig| {
        let stream = rig.stream();
        let waiting = rig.ask();
        eventually_within(SOON, "a request to wait", || {
            (rig.of("m")?["waiting"] == 1).then_some(())
        });
        rig.kill();
        ends_with_one_error(stream);
        is_answered(waiting);
        rig.has_failed_once();
    });
}

#[test]
fn while_it_computes_a_prompt() {
    at(
        "in prefill",
        || Rig::start("", &[]),
        |rig| {
            let mut ask = chat("m", 2);
            ask["messages"][0]["content"] = "sea ".repeat(30_000).into();
            let engine = rig.server.engine_of("m");
            let exchange = rig.server.exchange(CHAT, "t", &ask);
            let gauges = Gauges::of(&engine);
            eventually_within(SOON, "the engine to work", || {
                (gauges.running() == 1).then_some(())
            });
            engine.kill();
            is_answered(exchange);
            rig.has_failed_once();
        },
    );
}

#[test]
fn while_it_streams() {
    at(
        "in mid-stream",
        || Rig::start("", &[]),
        |rig| {
            let streams: Vec<_> = (0..8).map(|_| rig.stream()).collect();
            rig.kill();
            streams.into_iter().for_each(ends_with_one_error);
            is_answered(rig.ask());
            rig.has_failed_once();
        },
    );
}

#[test]
fn while_it_drains() {
    at(
        "draining",
        || Rig::start("", &[]),
        |rig| {
            let stream = rig.stream();
            rig.wish("unload");
            rig.reaches("m", "draining");
            rig.kill();
            ends_with_one_error(stream);
            rig.reaches("m", "cold");
        },
    );
}

#[test]
fn while_it_sleeps() {
    at(
        "asleep",
        || Rig::start("", &[]),
        |rig| {
            rig.wish("sleep");
            rig.reaches("m", "asleep");
            rig.kill();
            is_answered(rig.ask());
        },
    );
}

#[test]
fn while_it_ends() {
    let start = || Rig::start("stop_grace = \"600s\"", &["--fault-ignore-sigterm"]);
    at("stopping", start, |rig| {
        rig.mend();
        rig.wish("unload");
        rig.reaches("m", "stopping");
        rig.kill();
        rig.reaches("m", "cold");
        assert_eq!(rig.failures(), 0);
    });
}

#[test]
fn engine_that_always_fails_is_broken_and_comes_back_by_one_more_try() {
    let count = rounds(1, 20);
    for _ in 0..count {
        let rig = Rig::launch("broken_pause = \"3s\"", "", &["--fault-crash-after", "1"]);
        // It waits for the engine, and is refused when that is given up.
        let early = rig.ask();
        rig.reaches("m", "broken");
        for failure in 1..5 {
            assert!(rig.said(&format!("backing off after failure {failure}")));
        }
        assert_eq!(early.answer().status, 503);
        let refused = rig.server.client().post(CHAT, &chat("m", 2));
        let wait: u64 = refused
            .header("retry-after")
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or_else(|| panic!("{refused}"));
        assert!(wait <= 3, "{refused}");
        let error = refused.expect_error(503);
        assert_eq!(error["code"], "engine_broken");
        assert!(error["message"].to_string().contains("crashed"), "{error}");
        let record = &rig.of("m").expect("an answer")["record"];
        let tail = record["log_tail"].to_string();
        assert!(tail.contains("EngineCore died unexpectedly"), "{record}");
        let _ = rig
            .server
            .client()
            .post(CHAT, &chat("beside", 2))
            .expect(200);
        rig.mend();
        rig.reaches("m", "ready");
        is_answered(rig.ask());
    }
    println!(
        "R1: {count} of {count} crash loops broken after 5 failures and mended by one more try"
    );
}
