//! Starting, crashing and ending: of engines, and of kvwarden itself.

use std::time::Duration;

use kvwarden_integration::{Server, engine::Gauges, eventually, eventually_within, sse};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{CHAT, SLOW, TINY, chat, endless, streamed, streams::assert_one_error_at_the_end};

const SOON: Duration = Duration::from_secs(15);

fn health(server: &Server) -> (u16, Value) {
    let reply = server.client().get("/health");
    (reply.status, reply.json())
}

#[test]
fn port_is_open_and_says_what_is_missing_before_models_are_ready() {
    let slow_start = r#"extra_args = ["--fault-slow-start", "4s"]"#;
    let mut server = Server::launch(&format!("{TINY}{slow_start}\n"));
    let (status, body) = eventually("the port to open", || {
        let reply = server.client().try_get("/health").ok()?;
        Some((reply.status, reply.json()))
    });
    assert_eq!(
        (status, &body["status"]),
        (503, &"starting".into()),
        "{body}"
    );
    assert!(body["models"]["org/tiny-model"].is_object(), "{body}");
    let _ = server.client().get("/v1/models").expect(200);
    let _ = server.metrics();
    // A request that comes early waits.
    let early = server.client().post(CHAT, &chat("tiny", 2));
    assert_eq!(early.status, 200, "{early}");
    server.wait_until_ready(SOON);
    assert_eq!(health(&server).1["status"], "ok");
}

#[test]
fn killed_engine_makes_health_503_and_is_restarted() {
    let mut server = Server::start(SLOW);
    let first = server.engine();
    first.kill();
    let missing = eventually("health to notice", || {
        let (status, body) = health(&server);
        (status == 503).then_some(body)
    });
    assert!(missing["models"]["slow"].is_object(), "{missing}");
    server.wait_until_ready(Duration::from_secs(30));
    assert_ne!(server.engine().pid, first.pid);
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
}

#[test]
fn stream_of_a_killed_engine_ends_with_one_error_event() {
    let server = Server::start(SLOW);
    let mut answer = server.exchange(CHAT, "t", &endless()).answer();
    let _ = answer.until("content");
    server.engine().kill();
    let rest = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_one_error_at_the_end(&rest);
}

#[test]
fn unstreamed_answer_of_a_killed_engine_comes_from_its_successor() {
    let server = Server::start(SLOW);
    let engine = server.engine();
    let exchange = server.exchange(CHAT, "t", &chat("slow", 200));
    let gauges = Gauges::of(&engine);
    eventually("the engine to work", || {
        (gauges.running() == 1).then_some(())
    });
    engine.kill();
    // Of an unstreamed answer nothing was said, however much was computed.
    assert!(exchange.is_unanswered());
    let mut answer = exchange.answer();
    let body = answer.rest().expect("a whole answer");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&body));
    assert_ne!(server.engine().pid, engine.pid);
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(answer["usage"]["completion_tokens"], 200, "{answer}");
}

#[test]
fn request_during_a_restart_waits_for_it() {
    let server = Server::start(SLOW);
    server.engine().kill();
    eventually("health to notice", || {
        (health(&server).0 == 503).then_some(())
    });
    let reply = server.client().post(CHAT, &chat("slow", 2));
    assert_eq!(reply.status, 200, "{reply}");
}

#[test]
fn engine_that_runs_out_of_memory_at_start_is_named_as_such() {
    let oom = r#"extra_args = ["--fault-oom-at-start"]"#;
    let server = Server::launch(&format!("{TINY}{oom}\n"));
    eventually_within(
        Duration::from_secs(30),
        "the class of the failure in /health",
        || {
            let reply = server.client().try_get("/health").ok()?;
            (reply.status == 503 && reply.text().contains("\"out_of_memory\"")).then_some(())
        },
    );
    // The engine's own words are for operators.
    let log = server.log().concat();
    assert!(
        log.contains("CUDA out of memory") || log.contains("OutOfMemory"),
        "{log}"
    );
}

#[test]
fn engine_listens_on_loopback_only_and_asks_for_its_key() {
    let server = Server::start(TINY);
    let engine = server.engine();
    assert_eq!(engine.listening_addresses(), ["0100007F"]);
    assert!(
        !engine.args.concat().contains(&engine.key),
        "the key is in argv"
    );
    let stranger = kvwarden_integration::Client::new(format!("http://127.0.0.1:{}", engine.port));
    assert_eq!(stranger.post(CHAT, &chat("tiny", 2)).status, 401);
}

#[test]
fn sigterm_lets_an_open_stream_end_and_leaves_no_process() {
    let mut server = Server::start(SLOW);
    assert!(
        server.processes().len() >= 3,
        "kvwarden, shim and engine carry the mark"
    );
    let mut answer = server.exchange(CHAT, "t", &streamed("slow", 150)).answer();
    let _ = answer.until("content");
    server.signal(Signal::SIGTERM);
    eventually("people to see what is left", || {
        (server.count("stopping running=1 waiting=0 engines=1 seconds=") == 1).then_some(())
    });
    let rest = answer.rest().expect("a whole stream");
    let chunks = sse::chunks(&rest);
    assert_eq!(
        chunks.last().map(|c| &c["choices"][0]["finish_reason"]),
        Some(&"length".into())
    );
    let ended = server.wait_for_end();
    assert!(ended.status.success(), "{ended:?}\n{}", server.log_tail());
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

#[test]
fn drain_timeout_ends_a_stream_that_will_not_end() {
    let mut server = Server::start(&format!("[limits]\ndrain_timeout = \"1s\"\n{SLOW}"));
    let mut answer = server.exchange(CHAT, "t", &endless()).answer();
    let _ = answer.until("content");
    server.signal(Signal::SIGTERM);
    let rest = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_one_error_at_the_end(&rest);
    let ended = server.wait_for_end();
    assert!(ended.status.success(), "{ended:?}\n{}", server.log_tail());
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

#[test]
fn second_sigterm_does_not_wait_for_the_drain() {
    let mut server = Server::start(&format!("[limits]\ndrain_timeout = \"10m\"\n{SLOW}"));
    let mut answer = server.exchange(CHAT, "t", &endless()).answer();
    let _ = answer.until("content");
    server.signal(Signal::SIGTERM);
    eventually("new requests to be refused", || {
        let reply = server.client().try_get("/health");
        reply
            .map_or(true, |reply| reply.status == 503)
            .then_some(())
    });
    let _ = server.terminate();
    server.wait_until_nothing_is_left(SOON);
}

#[test]
fn idle_sigterm_is_quick() {
    let mut server = Server::start(TINY);
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    assert!(
        ended.took < Duration::from_secs(5),
        "{ended:?}\n{}",
        server.log_tail()
    );
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

#[test]
fn sigterm_while_an_engine_starts_leaves_no_process() {
    let slow_start = r#"extra_args = ["--fault-slow-start", "600s"]"#;
    let mut server = Server::launch(&format!("{TINY}{slow_start}\n"));
    let _ = server.engine();
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}\n{}", server.log_tail());
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

#[test]
fn engine_that_ignores_sigterm_is_killed_after_its_grace() {
    let stubborn = "stop_grace = \"1s\"\nextra_args = [\"--fault-ignore-sigterm\"]\n";
    let mut server = Server::start(&format!("{TINY}{stubborn}"));
    let ended = server.terminate();
    assert!(ended.took >= Duration::from_millis(900), "{ended:?}");
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

#[test]
fn sigkill_of_kvwarden_leaves_no_process() {
    let mut server = Server::start(&format!("[limits]\norphan_grace = \"0s\"\n{TINY}"));
    assert!(
        server.processes().len() >= 3,
        "kvwarden, shim and engine carry the mark"
    );
    server.kill();
    server.wait_until_nothing_is_left(SOON);
}

#[test]
fn sigkill_of_the_shim_takes_the_engine_along() {
    let mut server = Server::start(TINY);
    let first = server.engine();
    let shim = server
        .processes()
        .into_iter()
        .find(|process| process.args.iter().any(|arg| arg == "shim"));
    let shim = shim.expect("a shim runs");
    let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim.pid), Signal::SIGKILL);
    killed.expect("the shim lives");
    eventually("the engine to end", || {
        server
            .processes()
            .iter()
            .all(|process| process.pid != first.pid)
            .then_some(())
    });
    // Not /health alone: for a moment it may still speak of the first engine.
    eventually("another engine to start", || {
        let mut engines = server.engines().into_iter();
        engines.find(|engine| engine.pid != first.pid)
    });
    server.wait_until_ready(Duration::from_secs(30));
    let _ = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
}

#[test]
fn refused_configuration_is_explained_and_exits_2() {
    let mut server = Server::launch("listne = 1\n[[models]]\nid = 3\n");
    let ended = server.wait_for_end();
    assert_eq!(ended.status.code(), Some(2), "{}", server.log_tail());
    let log = eventually("the explanation", || {
        let log = server.log_tail();
        log.contains("listen").then_some(log)
    });
    assert!(log.contains("kvwarden.toml:2:1"), "{log}");
}

#[test]
fn taken_port_is_named() {
    let server = Server::start(TINY);
    let mut second = Server::launch(TINY);
    // The same port again, by the flag that wins over the file.
    drop(second.terminate());
    let output = std::process::Command::new(kvwarden_integration::kvwarden())
        .args(["serve", "--config"])
        .arg(server.home().join("kvwarden.toml"))
        .env("KVWARDEN_STATE_DIR", second.home().join("state"))
        .output()
        .expect("kvwarden runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(&server.port.to_string()), "{said}");
}
