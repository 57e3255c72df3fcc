//! What becomes of engines when kvwarden is killed: the next one takes them over, or they end.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use kvwarden_integration::{
    EngineProcess, FakeTree, Process, Server, engine::Gauges, eventually, eventually_within,
    kvwarden,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{CHAT, SLOW, TINY, chat, endless};

const SOON: Duration = Duration::from_secs(30);

fn record(server: &Server, model: &str) -> Value {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    status["loaded_models"][model]["record"].clone()
}

fn is_shim(process: &Process) -> bool {
    process.args.iter().any(|arg| arg == "shim")
}

/// Waits until another engine than `old` runs, and sees that there never are two.
fn replaced(server: &Server, old: &EngineProcess) -> EngineProcess {
    eventually_within(SOON, "another engine to run alone", || {
        let engines = server.engines();
        assert!(engines.len() < 2, "two engines at once: {engines:?}");
        engines.into_iter().find(|engine| engine.pid != old.pid)
    })
}

#[test]
fn engine_of_a_killed_kvwarden_goes_on_serving_under_the_next() {
    let mut server = Server::start(SLOW);
    let engine = server.engine();
    let mut answers: Vec<_> = (0..4)
        .map(|_| server.exchange(CHAT, "t", &endless()).answer())
        .collect();
    for answer in &mut answers {
        let _ = answer.until("content");
    }
    server.kill();
    server.start_again(SLOW);
    server.wait_until_ready(SOON);
    assert_eq!(server.engine(), engine, "the same process, port and key");
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
    let record = record(&server, "slow");
    assert_eq!(record["starts"], 0, "{record}");
    assert_eq!(record["adoptions"], 1, "{record}");
    let gauges = Gauges::of(&engine);
    eventually("the requests of lost clients to be given up", || {
        (gauges.running() == 0).then_some(())
    });
    // It is ours in every respect: we notice its end, and we end it.
    engine.kill();
    let next = replaced(&server, &engine);
    server.wait_until_ready(SOON);
    server.kill();
    server.start_again(SLOW);
    server.wait_until_ready(SOON);
    assert_eq!(server.engine(), next, "adopted a second time");
    assert!(server.terminate().status.success());
    server.wait_until_nothing_is_left(SOON);
}

#[test]
fn engine_of_a_kvwarden_that_aborted_is_not_loaded_again() {
    let mut server = Server::start(SLOW);
    let engine = server.engine();
    // As a panic ends it, of whichever thread.
    server.signal(Signal::SIGABRT);
    assert!(!server.wait_for_end().status.success());
    server.start_again(SLOW);
    server.wait_until_ready(SOON);
    assert_eq!(server.engine(), engine);
    let record = record(&server, "slow");
    assert_eq!(record["starts"], 0, "{record}");
}

#[test]
fn engine_whose_configuration_changed_is_stopped_before_another_starts() {
    let mut server = Server::start(SLOW);
    let old = server.engine();
    server.kill();
    server.start_again(&format!("{SLOW}max_concurrent = 7\n"));
    let _ = replaced(&server, &old);
    server.wait_until_ready(SOON);
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
    let record = record(&server, "slow");
    assert_eq!(
        (&record["starts"], &record["failures"]),
        (&1.into(), &0.into()),
        "{record}"
    );
}

#[test]
fn engine_that_does_not_answer_any_more_is_replaced() {
    let mut server = Server::start(TINY);
    let old = server.engine();
    kill(Pid::from_raw(old.pid), Signal::SIGSTOP).expect("the engine lives");
    server.kill();
    server.start_again(TINY);
    let _ = replaced(&server, &old);
    server.wait_until_ready(SOON);
    let _ = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
}

#[test]
fn engine_of_a_model_that_is_not_configured_any_more_is_stopped() {
    let mut server = Server::start(&format!("{TINY}{SLOW}"));
    let (kept, unwanted) = (server.engine_of("org/tiny-model"), server.engine_of("slow"));
    server.kill();
    server.start_again(TINY);
    server.wait_until_ready(SOON);
    eventually_within(SOON, "the engine nobody wants to end", || {
        (server.engines() == [kept.clone()]).then_some(())
    });
    assert_ne!(kept, unwanted);
}

#[test]
fn engine_that_nobody_adopts_ends_after_its_grace() {
    let mut server = Server::start(&format!("[limits]\norphan_grace = \"1s\"\n{TINY}"));
    assert!(server.processes().len() >= 3);
    server.kill();
    server.wait_until_nothing_is_left(SOON);
}

#[test]
fn what_a_killed_shim_left_is_swept_by_the_next_start() {
    let tree = FakeTree::new();
    let mut server = Server::start(&tree.config());
    // The third has lost the environment by which a sweep could know it.
    let sleepers = |server: &Server| {
        let all = server.processes().into_iter().map(|process| process.pid);
        all.filter(|pid| tree.sleepers().contains(pid)).count()
    };
    let shim = server.processes().into_iter().find(is_shim);
    let shim = shim.expect("a shim runs");
    server.kill();
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL).expect("the shim lives");
    eventually("the engine to end with its shim", || {
        server.engines().is_empty().then_some(())
    });
    assert_eq!(sleepers(&server), 2, "too little is left to sweep");
    server.start_again(&tree.config());
    server.wait_until_ready(SOON);
    // The new engine has brought its own.
    assert_eq!(sleepers(&server), 2, "{:#?}", server.processes());
}

#[test]
fn second_kvwarden_with_the_same_state_is_refused_and_leaves_engines_alone() {
    let server = Server::start(TINY);
    let engine = server.engine();
    let second = std::process::Command::new(kvwarden())
        .args(["serve", "--port", "1", "--config"])
        .arg(server.home().join("kvwarden.toml"))
        .env("KVWARDEN_STATE_DIR", server.home().join("state"))
        .output()
        .expect("kvwarden runs");
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another kvwarden"), "{said}");
    assert_eq!(server.engines(), [engine]);
}

#[test]
fn what_is_handed_over_is_for_the_owner_alone_and_gone_with_the_engine() {
    let mut server = Server::start(TINY);
    let key = server.engine().key;
    let run = server.home().join("state/run");
    let files = || {
        let entries = fs::read_dir(&run)
            .expect("the directory is there")
            .flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let holds_key =
        |path: &std::path::PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(&key));
    let secret: Vec<_> = files().into_iter().filter(holds_key).collect();
    assert_eq!(secret.len(), 1, "{:?}", files());
    let mode = |path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode(&secret[0]), mode(&run)), (0o600, 0o700));
    assert!(!server.log().concat().contains(&key));
    assert!(server.terminate().status.success());
    assert!(!files().iter().any(holds_key), "{:?}", files());
}

/// A model that can sleep, and starts when it is wanted.
const SLEEPER: &str = r#"
[[models]]
id = "m"
engine = "sim"
preset = "tiny"
autostart = false
sleep = ["parked", "l1"]
"#;

fn asleep() -> Server {
    let server = Server::start(SLEEPER);
    let _ = server.client().post(CHAT, &chat("m", 2)).expect(200);
    server.wish("m", "sleep");
    server.wait_until_model_is("m", "asleep", SOON);
    server
}

#[test]
fn sleeping_engine_sleeps_on_under_the_next_kvwarden_and_wakes_when_it_is_wanted() {
    let mut server = asleep();
    let engine = server.engine();
    for adoptions in 1..3 {
        server.kill();
        server.resume();
        server.wait_until_ready(SOON);
        server.wait_until_model_is("m", "asleep", SOON);
        let model = server.model("m");
        assert_eq!(model["rung"], "l1", "{model}");
        assert_eq!(
            model["record"]["adoptions"], 1,
            "after {adoptions}: {model}"
        );
    }
    let _ = server.client().post(CHAT, &chat("m", 2)).expect(200);
    assert_eq!(server.engine(), engine, "the same process, port and key");
    assert_eq!(record(&server, "m")["starts"], 0);
    // Awake again, it is found so.
    server.kill();
    server.resume();
    server.wait_until_ready(SOON);
    server.wait_until_model_is("m", "ready", SOON);
    assert_eq!(server.engine(), engine);
    assert!(server.terminate().status.success());
    server.wait_until_nothing_is_left(SOON);
}

#[test]
fn sleeping_engine_that_ended_meanwhile_is_no_failure_and_another_starts() {
    let mut server = asleep();
    let old = server.engine();
    server.kill();
    old.kill();
    server.resume();
    server.wait_until_ready(SOON);
    let _ = server.client().post(CHAT, &chat("m", 2)).expect(200);
    assert_ne!(server.engine().pid, old.pid);
    let record = record(&server, "m");
    assert_eq!(
        (&record["starts"], &record["failures"]),
        (&1.into(), &0.into()),
        "{record}"
    );
}

#[test]
fn engine_that_was_starting_goes_on_starting_under_the_next_kvwarden() {
    let slow_start = "extra_args = [\"--fault-slow-start\", \"3s\"]\n";
    let mut server = Server::launch(&format!("{TINY}{slow_start}"));
    let engine = server.engine();
    server.kill();
    server.resume();
    server.wait_until_ready(SOON);
    assert_eq!(server.engine(), engine, "the same process, port and key");
    let _ = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
}
