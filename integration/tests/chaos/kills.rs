//! R3: kvwarden is killed or told to end, and what becomes of its engines and its streams.

use std::time::Duration;

use kvwarden_integration::{FakeTree, Process, Server, Stopwatch, eventually_within, sse};
use kvwarden_policy::simulation::rng::SplitMix;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{CHAT, rounds, slowest};

/// Far more than any goal: a round that takes longer has failed, and says so.
const GIVE_UP: Duration = Duration::from_secs(60);

const GRACE: Duration = Duration::from_secs(1);

/// 12 ms a token.
const SLOW: &str = "[[models]]\nid = \"m\"\nengine = \"sim\"\n";

fn stream(tokens: u32) -> Value {
    json!({
        "model": "m", "stream": true, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    })
}

fn record(server: &Server) -> Value {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    status["loaded_models"]["m"]["record"].clone()
}

fn wait_for_sleepers(tree: &FakeTree) -> Vec<i32> {
    eventually_within(GIVE_UP, "the engine's own children", || {
        let all = tree.sleepers();
        (all.len() == FakeTree::SLEEPERS).then_some(all)
    })
}

#[test]
fn killed_kvwarden_finds_its_engine_and_all_its_tree_again() {
    let count = rounds(4, 200);
    let tree = FakeTree::new();
    let config = tree.config();
    let mut server = Server::start(&config);
    let (engine, sleepers) = (server.engine(), wait_for_sleepers(&tree));
    let mut took = Vec::new();
    for round in 0..count {
        let mut answer = server.exchange(CHAT, "t", &stream(2000)).answer();
        let _ = answer.until("content");
        server.kill();
        let watch = Stopwatch::start();
        server.start_again(&config);
        server.wait_until_ready(GIVE_UP);
        took.push(watch.elapsed());
        assert_eq!(server.engine(), engine, "round {round}: reloaded");
        assert_eq!(tree.sleepers(), sleepers, "round {round}");
        let told = record(&server);
        let counts = (&told["starts"], &told["adoptions"]);
        assert_eq!(counts, (&0.into(), &1.into()), "round {round}: {told}");
        let _ = server.client().post(CHAT, &stream(2)).expect(200);
    }
    println!(
        "R3: SIGKILL: {count} of {count} adopted without a reload, slowest {:.2?} (goal 2 s)",
        slowest(&took)
    );
}

#[test]
fn tree_of_a_killed_kvwarden_that_nobody_adopts_ends() {
    let count = rounds(2, 50);
    let tree = FakeTree::new();
    let config = format!("[limits]\norphan_grace = \"1s\"\n{}", tree.config());
    let mut server = Server::start(&config);
    let mut took = Vec::new();
    for _ in 0..count {
        let before = wait_for_sleepers(&tree);
        server.kill();
        let watch = Stopwatch::start();
        eventually_within(GIVE_UP, "the whole tree to end", || {
            let left: Vec<Process> = server.processes();
            (left.is_empty() && tree.sleepers().is_empty()).then_some(())
        });
        took.push(watch.elapsed());
        server.start_again(&config);
        server.wait_until_ready(GIVE_UP);
        assert_ne!(wait_for_sleepers(&tree), before);
    }
    println!(
        "R3: SIGKILL: {count} of {count} trees that nobody adopted are gone, slowest {:.2?} (goal {:?})",
        slowest(&took),
        GRACE + Duration::from_secs(5)
    );
}

#[test]
fn terminated_kvwarden_cuts_no_stream() {
    const STREAMS: u32 = 8;
    let count = rounds(3, 50);
    let mut random = SplitMix::new(3);
    let mut server = Server::start(SLOW);
    let mut took = Vec::new();
    for round in 0..count {
        let open = |_| {
            let tokens = 20 + random.below(130);
            let mut answer = server.exchange(CHAT, "t", &stream(tokens)).answer();
            let begun = answer.until("content");
            (answer, begun)
        };
        let answers: Vec<_> = (0..STREAMS).map(open).collect();
        server.signal(Signal::SIGTERM);
        let watch = Stopwatch::start();
        for (mut answer, begun) in answers {
            let rest = answer
                .rest()
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            let chunks = sse::chunks(&[begun.as_bytes(), &rest].concat());
            let reason = chunks
                .last()
                .map(|chunk| &chunk["choices"][0]["finish_reason"]);
            assert_eq!(reason, Some(&"length".into()), "round {round}");
        }
        let ended = server.wait_for_end();
        assert!(ended.status.success(), "{ended:?}\n{}", server.log_tail());
        server.wait_until_nothing_is_left(GIVE_UP);
        took.push(watch.elapsed());
        server.start_again(SLOW);
        server.wait_until_ready(GIVE_UP);
    }
    println!(
        "R3: SIGTERM: {count} of {count} drained, none of {} streams cut, slowest end {:.2?}",
        count * STREAMS,
        slowest(&took)
    );
}
