//! R9: ten thousand streams open at once.

use std::{
    io,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use kvwarden_integration::{
    Caller, Footprint, Server, Stopwatch, caller, free_port, kvwarden, open_files,
};
use nix::unistd::Pid;
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinError, JoinSet},
};

use crate::{CHAT, rounds};

/// Connections that are being opened at once: fewer than a listener's backlog.
const OPENING: usize = 256;

/// Enough that hardly a stream has ended when the last one begins.
const TOKENS: u32 = 150;

/// A simulated engine of our own: one that kvwarden starts is believed to have an A100's memory, and
/// that many streams would wait for each other.
struct Engine {
    process: Child,
    port: u16,
}

impl Engine {
    fn start(sequences: u32) -> Self {
        let port = free_port();
        let process = Command::new(kvwarden())
            .args(["sim-engine", "--served-model-name", "m"])
            .args(["--port", &port.to_string()])
            .args(["--max-num-seqs", &sequences.to_string()])
            .args(["--num-kv-blocks", &(sequences * TOKENS / 8).to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = process.expect("kvwarden runs");
        Self { process, port }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What this machine lets us open. A stream takes kvwarden two descriptors.
fn affordable(wanted: u32) -> u32 {
    const OTHERS: u64 = 100;
    let streams = open_files().saturating_sub(OTHERS) / 2;
    wanted.min(u32::try_from(streams).unwrap_or(u32::MAX))
}

#[test]
fn thousands_of_open_streams_all_end_well() {
    let count = affordable(rounds(300, 10_000));
    let engine = Engine::start(count);
    let server = Server::start(&format!(
        "[[models]]\nid = \"m\"\nengine = \"attach\"\nurl = \"http://127.0.0.1:{}\"\n\
         max_concurrent = {count}\nqueue_size = {count}\n",
        engine.port
    ));
    let before = Footprint::of(server.pid());
    let watch = Stopwatch::start();
    let (at_once, open) = caller::run(all_streams(server.port, count, server.pid()));
    let took = watch.elapsed();
    let each = open.resident.saturating_sub(before.resident) as f64 / f64::from(at_once);
    println!(
        "R9: {at_once} streams of {count} open at once with {} descriptors, all ended well within {took:.1?}: {each:.1} KiB each ({} KiB in all, {} KiB before)",
        open.descriptors, open.resident, before.resident
    );
}

/// Opens streams, looks at the server when the last one is open, and reads all of them to their ends.
/// Tells how many were open then.
async fn all_streams(port: u16, count: u32, server: Pid) -> (u32, Footprint) {
    let body = json!({
        "model": "m", "stream": true, "max_tokens": TOKENS, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    });
    let request: Arc<[u8]> = caller::post(CHAT, "t", &body).into();
    let opening = Arc::new(Semaphore::new(OPENING));
    let (opened, mut openings) = mpsc::unbounded_channel();
    let mut streams = JoinSet::new();
    for _ in 0..count {
        let (request, opening, opened) = (request.clone(), opening.clone(), opened.clone());
        streams.spawn(async move {
            let turn = opening.acquire().await;
            let mut caller = Caller::connect(port).await?;
            caller.send(&request).await?;
            assert_eq!(caller.status().await?, 200);
            let _ = caller.piece().await?;
            drop(turn);
            let _ = opened.send(());
            let rest = caller.rest().await?;
            assert!(rest.ends_with(b"data: [DONE]\n\n"), "a stream was cut");
            io::Result::Ok(())
        });
    }
    for _ in 0..count {
        openings.recv().await.expect("a stream opens");
    }
    let mut at_once = count;
    while let Some(ended) = streams.try_join_next() {
        all_well(ended);
        at_once -= 1;
    }
    let open = Footprint::of(server);
    while let Some(ended) = streams.join_next().await {
        all_well(ended);
    }
    (at_once, open)
}

fn all_well(ended: Result<io::Result<()>, JoinError>) {
    let ended = ended.expect("no client panics");
    ended.expect("a whole stream");
}
