//! Engines that stop working without ending.

use std::time::Duration;

use kvwarden_integration::{Server, eventually_within};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{CHAT, SLOW, chat, endless, streams::assert_one_error_at_the_end};

const SHORT: &str = "[limits]\nstall_timeout = \"1s\"\n";

/// A stall, a probe, an end and a start.
const SOON: Duration = Duration::from_secs(60);

fn record(server: &Server) -> Value {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    status["loaded_models"]["slow"]["record"].clone()
}

#[test]
fn stopped_engine_is_found_while_it_works_and_replaced() {
    let mut server = Server::start(&format!("{SHORT}{SLOW}"));
    let old = server.engine();
    let mut answer = server.exchange(CHAT, "t", &endless()).answer();
    let _ = answer.until("content");
    kill(Pid::from_raw(old.pid), Signal::SIGSTOP).expect("the engine lives");
    let rest = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_one_error_at_the_end(&rest);
    eventually_within(SOON, "another engine to run", || {
        server
            .engines()
            .into_iter()
            .find(|engine| engine.pid != old.pid)
    });
    server.wait_until_ready(SOON);
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
    let record = record(&server);
    assert_eq!(record["failures"], 1, "{record}");
}

#[test]
fn engine_that_hangs_behind_a_healthy_page_is_replaced() {
    // Its first request is our own canary.
    let hangs = "extra_args = [\"--fault-hang-after\", \"2\"]\n";
    let mut server = Server::start(&format!("{SHORT}{SLOW}{hangs}"));
    let old = server.engine();
    let mut answer = server.exchange(CHAT, "t", &endless()).answer();
    let rest = answer
        .rest()
        .expect("the client's own connection is ended well");
    assert_one_error_at_the_end(&rest);
    eventually_within(SOON, "another engine to run", || {
        let mut engines = server.engines().into_iter();
        engines.find(|engine| engine.pid != old.pid)
    });
    server.wait_until_ready(SOON);
    let record = record(&server);
    assert_eq!(record["failures"], 1, "{record}");
}

#[test]
fn engine_that_is_only_slow_is_asked_and_left_alone() {
    // Nothing of its answer shows before it is whole.
    let server = Server::start(&format!("{SHORT}{SLOW}"));
    let engine = server.engine();
    let _ = server.client().post(CHAT, &chat("slow", 300)).expect(200);
    let record = record(&server);
    assert_eq!(record["failures"], 0, "{record}");
    assert_eq!(server.engine(), engine);
}
