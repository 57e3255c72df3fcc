//! Upgrades under load: no connection refused, no stream cut, no engine loaded again.

use std::{thread, time::Duration};

use kvwarden_integration::{Knocked, Knocking, Server, Stopwatch, eventually_within, sse};
use serde_json::{Value, json};

use crate::{CHAT, rounds, slowest};

/// 12 ms for each token, so that streams outlive the takeover.
const SLOW: &str = "[[models]]\nid = \"slow\"\nengine = \"sim\"\npreset = \"a100-8b\"\n";
const STREAMS: usize = 20;
const SOON: Duration = Duration::from_secs(60);

fn chat(tokens: u64, stream: bool) -> Value {
    json!({
        "model": "slow", "max_tokens": tokens, "ignore_eos": true, "stream": stream,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    })
}

fn is_whole(body: &[u8]) -> bool {
    let last = sse::chunks(body).pop();
    last.is_some_and(|chunk| chunk["choices"][0]["finish_reason"] == "length")
}

#[test]
fn takeovers_under_load_are_not_noticed_by_clients() {
    let count = rounds(2, 20);
    let mut server = Server::start(SLOW);
    let engine = server.engine();
    let (mut all, mut took) = (Knocked::default(), Vec::new());
    for round in 0..count {
        let streams = (0..STREAMS).map(|_| server.exchange(CHAT, "t", &chat(150, true)).answer());
        let mut streams: Vec<_> = streams.collect();
        for stream in &mut streams {
            let _ = stream.until("content");
        }
        let knocking = Knocking::start(&server.client(), CHAT, &chat(2, false));
        let watch = Stopwatch::start();
        let mut elder = server.take_over(SLOW);
        took.push(watch.elapsed());
        for mut stream in streams {
            let rest = stream.rest().expect("a whole stream");
            assert!(is_whole(&rest), "round {round}");
        }
        assert!(elder.wait_for_end().status.success(), "round {round}");
        let knocked = knocking.stop();
        all.answered += knocked.answered;
        all.failed.extend(knocked.failed);
        all.slowest = all.slowest.max(knocked.slowest);
        assert_eq!(server.engine(), engine, "round {round}");
    }
    assert_eq!(all.failed, Vec::<String>::new());
    println!(
        "takeover: {count} of {count}, 0 of {} streams cut, 0 of {} requests failed, slowest \
         request {} ms, slowest takeover {} ms, same engine",
        STREAMS * count as usize,
        all.answered,
        all.slowest.as_millis(),
        slowest(&took).as_millis()
    );
}

#[test]
fn successors_killed_at_any_moment_cost_no_engine() {
    let count = rounds(3, 20);
    let mut server = Server::start(SLOW);
    let engine = server.engine();
    let mut handed_over = 0;
    for round in 0..count {
        let before = server.count("taking over");
        let mut successor = server.successor(SLOW);
        eventually_within(SOON, "it to begin", || {
            (server.count("taking over") > before).then_some(())
        });
        // Not to wait for anything: each round kills it at another moment.
        thread::sleep(Duration::from_millis(u64::from(round) * 5));
        successor.kill();
        eventually_within(SOON, "somebody to serve", || {
            if server.has_ended() {
                handed_over += 1;
                server.start_again(SLOW);
            }
            let health = server.client().try_get("/health").ok()?;
            (health.status == 200).then_some(())
        });
        let _ = server.client().post(CHAT, &chat(2, false)).expect(200);
        assert_eq!(server.engines(), std::slice::from_ref(&engine));
    }
    println!(
        "takeover: {count} successors killed, {handed_over} of them after they had taken over; same engine"
    );
}
