//! What counts as health where models take turns, and what the metrics and the event log say of it.

use std::{fs, process::Command};

use kvwarden_integration::{Server, eventually, kvwarden};
use serde_json::Value;

use crate::{CHAT, chat};

/// Room for one of these, which take 8.5 MiB each.
const ROOM: &str = "[gpu]\nmemory = \"10MiB\"\nmax_wait = \"1s\"\n";

fn model(id: &str, keys: &str) -> String {
    format!("[[models]]\nid = \"{id}\"\nengine = \"sim\"\npreset = \"tiny\"\n{keys}\n")
}

fn health(server: &Server) -> (u16, Value) {
    let reply = server.client().get("/health");
    (reply.status, reply.json())
}

fn wish(server: &Server, model: &str, verb: &str) {
    let path = format!("/kvwarden/models/{model}/{verb}");
    let _ = server.client().post(&path, &Value::Null).expect(202);
}

fn reaches(server: &Server, model: &str, state: &str) {
    eventually(&format!("{model} to be {state}"), || {
        let (_, health) = health(server);
        (health["models"][model]["state"] == state).then_some(())
    });
}

#[test]
fn model_without_room_is_no_failure_and_the_greeting_comes() {
    let pinned = model("a", "pinned = true");
    let server = Server::start(&format!("{ROOM}{pinned}{}", model("b", "")));
    // Which of them comes first is a matter of chance; the pinned one takes the room in the end.
    eventually("one of them to serve, and health to be content", || {
        let (status, body) = health(&server);
        let is_ready = |id: &&str| body["models"][*id]["state"] == "ready";
        let ready = ["a", "b"].into_iter().filter(is_ready).count();
        (status == 200 && body["status"] == "ok" && ready == 1).then_some(())
    });
    eventually("the greeting", || {
        let log = server.log().concat();
        log.contains("ready after").then_some(())
    });
}

#[test]
fn model_that_rests_is_no_failure_and_neither_is_its_next_load() {
    let slow = r#"extra_args = ["--fault-slow-start", "2s"]"#;
    let server = Server::start(&model("a", slow));
    wish(&server, "a", "unload");
    reaches(&server, "a", "cold");
    assert_eq!(health(&server).0, 200);
    wish(&server, "a", "load");
    reaches(&server, "a", "starting");
    assert_eq!(health(&server).1["status"], "ok");
    reaches(&server, "a", "ready");
}

#[test]
fn broken_model_degrades_the_node() {
    let bad = r#"extra_args = ["--no-such-flag"]"#;
    let server = Server::launch(&format!("{}{}", model("a", ""), model("b", bad)));
    eventually("the model to break", || {
        let reply = server.client().try_get("/health").ok()?;
        (reply.status == 503 && reply.json()["status"] == "degraded").then_some(())
    });
    // The others go on.
    let _ = server.client().post(CHAT, &chat("a", 2)).expect(200);
}

#[test]
fn swaps_are_counted_by_model_and_levels_and_memory_are_shown() {
    let lazy = |id| model(id, "autostart = false");
    let server = Server::start(&format!("{ROOM}{}{}", lazy("a"), lazy("b")));
    for id in ["a", "b"] {
        let _ = server.client().post(CHAT, &chat(id, 2)).expect(200);
    }
    let page = server.metrics();
    let is = |name, labels: &[&str]| page.sum(name, labels);
    let [a, b] = ["model=\"a\"", "model=\"b\""];
    assert_eq!(is("kvwarden_model_evictions_total", &[a]), Some(1.0));
    assert_eq!(is("kvwarden_model_evictions_total", &[b]), Some(0.0));
    let ready = "rung=\"ready\"";
    assert_eq!(is("kvwarden_model_rung", &[b, ready]), Some(1.0));
    assert_eq!(is("kvwarden_model_rung", &[a, ready]), Some(0.0));
    assert_eq!(is("kvwarden_model_rung", &[a]), Some(1.0));
    let taken = is("kvwarden_device_memory_bytes", &["kind=\"taken\""]);
    assert_eq!(taken, is("kvwarden_model_memory_bytes", &[]));
    let capacity = is("kvwarden_device_memory_bytes", &["kind=\"capacity\""]);
    assert_eq!(capacity, Some(f64::from(10 << 20)));
    let demoted = is("kvwarden_demote_seconds_count", &[]);
    assert_eq!(demoted, Some(1.0), "{}", page.page());
}

#[test]
fn second_engine_has_a_series_of_its_own() {
    let replica = "[[models]]\nreplica_of = \"a\"\nengine = \"sim\"\npreset = \"tiny\"\n";
    let server = Server::start(&format!("{}{replica}", model("a", "")));
    eventually("both engines", || {
        let page = server.metrics();
        let up = |engine| page.sum("kvwarden_engine_up", &["model=\"a\"", engine]);
        let both = [up("engine=\"sim\""), up("engine=\"sim#2\"")];
        (both == [Some(1.0); 2]).then_some(())
    });
}

#[test]
fn event_log_has_every_request_and_swap_and_can_be_replayed() {
    let lazy = |id| model(id, "autostart = false");
    let config = format!(
        "[log]\nevents = \"events.jsonl\"\n{ROOM}[tenants.big]\nweight = 3\n\
         [tenants.shy]\nrate_limit_rpm = 1\n{}{}",
        lazy("a"),
        lazy("b")
    );
    let mut server = Server::start(&config);
    for (tenant, id) in [("big", "a"), ("shy", "b"), ("shy", "a"), ("big", "b")] {
        let _ = server.client().tenant(tenant).post(CHAT, &chat(id, 3));
    }
    assert!(server.terminate().status.success());
    let path = server.home().join("events.jsonl");
    let text = fs::read_to_string(&path).expect("an event log");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let with = |key: &str| lines.iter().filter(|line| !line[key].is_null()).count();
    assert_eq!(with("output_tokens"), 3, "{text}");
    assert_eq!(with("refused"), 1, "{text}");
    let big = lines.iter().find(|line| line["tenant"] == "big");
    let big = big.expect("a request of the tenant");
    assert_eq!(
        (&big["weight"], &big["output_tokens"]),
        (&3.0.into(), &3.into())
    );
    assert!(
        big["waited"].as_f64() > Some(0.0) && big["status"] == "ok",
        "{big}"
    );
    let event = |name: &str| lines.iter().any(|line| line["event"] == name);
    assert!(
        event("start") && event("demote") && event("became"),
        "{text}"
    );
    let output = Command::new(kvwarden())
        .arg("replay")
        .arg(&path)
        .arg("--json")
        .output()
        .expect("kvwarden runs");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {}\n{text}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    assert_eq!(report["requests"], 3);
    // Two models that never fit together, asked for in turn.
    assert_eq!(report["policies"][0]["starts"], 2, "{report:#}\n{text}");
}
