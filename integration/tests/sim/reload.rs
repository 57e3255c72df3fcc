//! Reading the configuration again: what changes at once, what waits for its engine, what is refused.

use std::{process::Output, time::Duration};

use kvwarden_integration::{
    Server, eventually, eventually_within, key_hash, said,
    sse::{chunks, data},
};
use serde_json::{Value, json};

use crate::{CHAT, SLOW, TINY, chat, streamed};

const SOON: Duration = Duration::from_secs(30);

/// `kvwarden reload`, after the file was written anew.
fn reload(server: &Server, config: &str, args: &[&str]) -> Output {
    server.configure(config);
    server.command("reload", args)
}

/// The same, where the file is taken.
fn taken(server: &Server, config: &str) -> String {
    let output = reload(server, config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    said(&output)
}

fn served(server: &Server, model: &str) -> u16 {
    server.client().post(CHAT, &chat(model, 2)).status
}

/// A stream that has begun, of so many tokens of 12 ms each.
fn running(server: &Server, tokens: u64) -> kvwarden_integration::Answer {
    let mut answer = server
        .exchange(CHAT, "t", &streamed("slow", tokens))
        .answer();
    let _ = answer.until("content");
    answer
}

fn assert_whole(mut answer: kvwarden_integration::Answer) {
    let rest = answer.rest().expect("the stream is not cut");
    assert_eq!(
        data(&rest).last().map(String::as_str),
        Some("[DONE]"),
        "{}",
        String::from_utf8_lossy(&rest)
    );
}

#[test]
fn bad_file_changes_nothing_and_is_told_to_everybody() {
    let server = Server::start(TINY);
    let engine = server.engine();
    let bad = format!("{TINY}que_size = 3\n");
    server.configure(&bad);
    let last = server.hang_up();
    let why = last["error"].as_str().expect("an error").to_owned();
    assert!(
        why.contains("que_size") && why.contains("did you mean"),
        "{why}"
    );
    let output = reload(&server, &bad, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains(&why), "{}", said(&output));
    let log = server.log().join("\n");
    assert!(
        log.contains("que_size") && log.contains("not read again"),
        "{log}"
    );
    let reloads = |result: &str| {
        let label = format!("result=\"{result}\"");
        let metrics = server.metrics();
        let reloads = metrics.sum("kvwarden_config_reloads_total", &[&label]);
        let is_ok = metrics.sum("kvwarden_config_last_reload_successful", &[]);
        (reloads, is_ok)
    };
    assert_eq!(reloads("failure"), (Some(2.0), Some(0.0)));
    assert_eq!(served(&server, "tiny"), 200);
    assert_eq!(server.engine(), engine);
    let told = taken(&server, TINY);
    assert_eq!(told, "nothing changed\n");
    assert_eq!(reloads("success"), (Some(1.0), Some(1.0)));
    assert_eq!(server.engine(), engine);
}

#[test]
fn names_and_models_come_and_go() {
    let server = Server::start(TINY);
    let other = "[[models]]\nid = \"other\"\nengine = \"sim\"\npreset = \"tiny\"\n";
    assert_eq!(served(&server, "other"), 404);
    let told = taken(&server, &format!("{TINY}aliases = [\"third\"]\n{other}"));
    assert_eq!(
        told,
        "models added: other\nmodels changed: org/tiny-model\n"
    );
    for name in ["tiny", "third", "other"] {
        assert_eq!(served(&server, name), 200, "{name}");
    }
    let listed = server.client().get("/v1/models").expect(200).json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2));
    // One that is alone again has nobody to sleep for.
    assert_eq!(
        taken(&server, other),
        "models changed: other\nmodels removed: org/tiny-model\n"
    );
    assert_eq!(
        (served(&server, "tiny"), served(&server, "other")),
        (404, 200)
    );
    eventually("the model and its engine to be gone", || {
        let engines = server.engines();
        let is_gone = server.model("org/tiny-model").is_null() && engines.len() == 1;
        is_gone.then_some(())
    });
    let page = server.metrics();
    assert!(page.sum("kvwarden_engine_up", &["other"]).is_some());
    assert_eq!(page.sum("kvwarden_engine_up", &["tiny-model"]), None);
}

#[test]
fn removed_model_serves_whom_it_let_in() {
    let one_at_a_time = format!("{SLOW}max_concurrent = 1\n");
    let mut server = Server::start(&format!("{one_at_a_time}{TINY}"));
    let streams: Vec<_> = (0..2).map(|_| running(&server, 150)).collect();
    let waiting = server.exchange(CHAT, "t", &chat("slow", 2));
    eventually("a request to wait", || {
        (server.model("slow")["waiting"] == 1).then_some(())
    });
    let _ = taken(&server, TINY);
    assert_eq!(served(&server, "slow"), 404);
    server.wait_until_ready(SOON);
    streams.into_iter().for_each(assert_whole);
    assert_eq!(waiting.answer().status, 200);
    eventually("the model to be gone", || {
        server.model("slow").is_null().then_some(())
    });
    // And may come back.
    let _ = taken(&server, &format!("{one_at_a_time}{TINY}"));
    assert_eq!(served(&server, "slow"), 200);
}

#[test]
fn changed_engine_ends_its_streams_and_lets_who_comes_wait_for_the_next() {
    let mut server = Server::start(SLOW);
    let before = server.engine();
    let stream = running(&server, 100);
    let told = taken(&server, &format!("{SLOW}max_model_len = 4096\n"));
    let expected = "models changed: slow\nengines that give way to new ones: slow\n";
    assert_eq!(told, expected);
    server.wait_until_model_is("slow", "draining", SOON);
    assert_eq!(served(&server, "slow"), 200);
    assert_whole(stream);
    let after = server.engine();
    assert_ne!(before.pid, after.pid);
    assert!(after.args.contains(&"4096".to_owned()), "{after:?}");
    assert_eq!(server.model("slow")["record"]["failures"], 0);
    server.wait_until_ready(SOON);
    // One that does not start is mended by the next reading.
    let _ = taken(
        &server,
        &format!("{SLOW}extra_args = [\"--no-such-flag\"]\n"),
    );
    server.wait_until_model_is("slow", "broken", SOON);
    let _ = taken(&server, SLOW);
    assert_eq!(served_in_time(&server), 200);
}

/// Once the model is not broken any more.
fn served_in_time(server: &Server) -> u16 {
    eventually_within(SOON, "the model to be mended", || {
        Some(served(server, "slow")).filter(|status| *status == 200)
    })
}

#[test]
fn replicas_come_and_go_under_their_streams() {
    let server = Server::start(SLOW);
    let replica = "[[models]]\nreplica_of = \"slow\"\nengine = \"sim\"\n";
    let _ = taken(&server, &format!("{SLOW}{replica}"));
    eventually_within(SOON, "two engines that serve", || {
        let model = server.model("slow");
        let engines = model["engines"].as_array()?;
        let serve = engines.iter().filter(|engine| engine["state"] == "ready");
        (serve.count() == 2).then_some(())
    });
    let streams: Vec<_> = (0..8).map(|_| running(&server, 100)).collect();
    let _ = taken(&server, SLOW);
    streams.into_iter().for_each(assert_whole);
    eventually_within(SOON, "one engine", || {
        let model = server.model("slow");
        let engines = model["engines"].as_array()?;
        (engines.len() == 1 && server.engines().len() == 1).then_some(())
    });
    assert_eq!(served(&server, "slow"), 200);
}

#[test]
fn keys_change_at_once_and_their_streams_go_on() {
    let keyed = |tenant: &str, key: &str| {
        let (admin, key) = (key_hash("sk-admin"), key_hash(key));
        format!(
            "[auth]\nadmin_keys = [\"{admin}\"]\n[tenants.{tenant}]\napi_keys = [\"{key}\"]\n{SLOW}"
        )
    };
    let server = Server::start(&keyed("old", "sk-old"));
    let ask = |key: &str| server.client().key(key).post(CHAT, &chat("slow", 2)).status;
    let stream = std::thread::spawn({
        let client = server.client().key("sk-old");
        move || client.post(CHAT, &streamed("slow", 100))
    });
    let of = |name: &str| {
        let status = server.client().key("sk-admin").get("/kvwarden/status");
        status.expect(200).json()["tenants"][name].clone()
    };
    eventually("the stream", || (of("old")["in_flight"] == 1).then_some(()));
    let config = keyed("new", "sk-new");
    assert_eq!(reload(&server, &config, &[]).status.code(), Some(1));
    assert_eq!(
        reload(&server, &config, &["--key", "sk-old"]).status.code(),
        Some(1)
    );
    assert_eq!(ask("sk-old"), 200);
    let output = reload(&server, &config, &["--key", "sk-admin"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!((ask("sk-old"), ask("sk-new")), (401, 200));
    let whole = stream.join().expect("a client").expect(200);
    assert!(!chunks(&whole.body).is_empty());
    assert_eq!(of("old")["is_named"], false);
    assert_eq!(of("new")["is_named"], true);
}

#[test]
fn limits_of_tenants_change_and_what_was_used_stays_used() {
    let limited = |limits: &str| format!("[tenants.a]\n{limits}\n{SLOW}");
    let server = Server::start(&limited("rate_limit_rpm = 1\nrate_limit_burst = 2"));
    let ask = || {
        let client = server.client().tenant("a");
        client.post(CHAT, &chat("slow", 1)).status
    };
    assert_eq!([ask(), ask(), ask()], [200, 200, 429]);
    assert_eq!(
        taken(
            &server,
            &limited("rate_limit_rpm = 1\nrate_limit_burst = 3")
        ),
        "tenants changed: a\n"
    );
    assert_eq!([ask(), ask()], [200, 429]);
    let _ = taken(&server, &limited("max_concurrent_requests = 2"));
    let mut stream = server.exchange(CHAT, "a", &streamed("slow", 3000)).answer();
    let _ = stream.until("content");
    assert_eq!(ask(), 200);
    let _ = taken(&server, &limited("max_concurrent_requests = 1"));
    assert_eq!(ask(), 429);
    drop(stream);
    eventually("the place to be free", || (ask() == 200).then_some(()));
}

#[test]
fn limits_of_the_node_change_and_what_needs_a_restart_is_told() {
    let server = Server::start(TINY);
    let told = taken(&server, &format!("[limits]\nmax_body = \"1KiB\"\n{TINY}"));
    assert_eq!(told, "settings changed: limits\n");
    let mut long = chat("tiny", 2);
    long["messages"][0]["content"] = json!("x".repeat(2000));
    assert_eq!(server.client().post(CHAT, &long).status, 413);
    let config = format!("log_level = \"debug\"\n{TINY}scheduling = \"fifo\"\n");
    let output = reload(&server, &config, &["--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let waits = ["log_level", "scheduling of org/tiny-model"];
    assert_eq!(answer["needs_restart"], json!(waits), "{answer}");
    assert_eq!(answer["settings"], json!(["limits"]));
    assert_eq!(server.client().post(CHAT, &long).status, 200);
}
