//! What tenants used is written down, and outlives the server.

use std::{fs, process::Command};

use kvwarden_integration::{Server, eventually, kvwarden};
use serde_json::Value;

use crate::{CHAT, SLOW, TINY, chat, endless, streamed};

/// `kvwarden usage --json` with these options.
fn usage(server: &Server, options: &[&str]) -> Vec<Value> {
    let output = Command::new(kvwarden())
        .args(["usage", "--json", "--state-dir"])
        .arg(server.home().join("state"))
        .args(options)
        .output()
        .expect("kvwarden runs");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn kept(server: &Server) -> Option<f64> {
    server.metrics().sum("kvwarden_usage_rows_kept_total", &[])
}

#[test]
fn tokens_of_every_tenant_and_model_add_up() {
    let server = Server::start(TINY);
    for (tenant, tokens) in [("quiet", 3), ("loud", 30), ("loud", 40)] {
        let client = server.client().tenant(tenant);
        let _ = client.post(CHAT, &chat("tiny", tokens)).expect(200);
    }
    eventually("all to be kept", || {
        (kept(&server) == Some(3.0)).then_some(())
    });
    let rows = usage(&server, &["--by", "tenant,model"]);
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(rows[0]["tenant"], "loud");
    assert_eq!(
        rows[0]["model"], "org/tiny-model",
        "not the name that was asked for"
    );
    assert_eq!(rows[0]["requests"], 2);
    assert_eq!(rows[0]["output_tokens"], 70);
    assert_eq!(rows[1]["output_tokens"], 3);
    assert_eq!(usage(&server, &["--until", "2026-01-01"]).len(), 0);
}

#[test]
fn answer_that_its_client_cuts_is_charged_for_what_came() {
    let server = Server::start(SLOW);
    let mut answer = server.exchange(CHAT, "hasty", &endless()).answer();
    let _ = answer.until("content");
    drop(answer);
    let rows = eventually("the row to be kept", || {
        let rows = (kept(&server) == Some(1.0)).then(|| usage(&server, &[]));
        rows.filter(|rows| !rows.is_empty())
    });
    assert!(rows[0]["output_tokens"].as_u64() >= Some(1), "{rows:?}");
    assert!(rows[0]["prompt_tokens"].as_u64() >= Some(1), "{rows:?}");
}

#[test]
fn day_that_is_used_up_stays_used_up_over_a_crash() {
    let config = format!("[tenants.t]\ntokens_per_day = 400\n{TINY}");
    let mut server = Server::start(&config);
    let client = server.client().tenant("t");
    let _ = client.post(CHAT, &chat("tiny", 300)).expect(200);
    let _ = client.post(CHAT, &chat("tiny", 300)).expect(429);
    eventually("it to be kept", || {
        (kept(&server) == Some(1.0)).then_some(())
    });
    server.kill();
    server.start_again(&config);
    server.wait_until_ready(std::time::Duration::from_secs(60));
    let refused = client.post(CHAT, &chat("tiny", 300)).expect(429);
    let reason = refused.header("x-kvwarden-dropped-reason");
    assert_eq!(reason, Some("tokens_per_day"), "{refused}");
    let _ = client.post(CHAT, &chat("tiny", 2)).expect(200);
}

#[test]
fn takeover_loses_and_doubles_nothing_in_usage_and_event_log() {
    let config = format!("[log]\nevents = \"events.jsonl\"\n{SLOW}");
    let mut server = Server::start(&config);
    let post = |server: &Server| {
        let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
    };
    let mut stream = server.exchange(CHAT, "t", &streamed("slow", 250)).answer();
    let _ = stream.until("content");
    post(&server);
    let mut elder = server.take_over(&config);
    post(&server);
    // The one before ends this while the one after it writes, too.
    let _ = stream.rest().expect("a whole stream");
    assert!(elder.wait_for_end().status.success());
    post(&server);
    assert!(server.terminate().status.success());
    let rows = usage(&server, &["--by", "model"]);
    assert_eq!(rows[0]["requests"], 4, "{rows:?}");
    assert_eq!(rows[0]["output_tokens"], 256, "{rows:?}");
    let text = fs::read_to_string(server.home().join("events.jsonl")).expect("an event log");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let tokens = lines
        .iter()
        .filter_map(|line| line["output_tokens"].as_u64());
    let mut tokens: Vec<u64> = tokens.collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [2, 2, 2, 250], "{text}");
    let with = |key: &str, value: &str| lines.iter().filter(|line| line[key] == *value).count();
    assert_eq!(with("phase", "spawned"), 1, "{text}");
    assert_eq!(with("state", "adopting"), 1, "{text}");
    assert_eq!(with("state", "stopping"), 1, "{text}");
    let file = server.home().join("again.jsonl");
    let output = Command::new(kvwarden())
        .arg("replay")
        .arg(server.home().join("state/usage.db"))
        .arg("--export")
        .arg(&file)
        .output()
        .expect("kvwarden runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&file).expect("it was written"), text);
}

#[test]
fn nothing_is_written_where_nothing_shall_be_kept() {
    let server = Server::start(&format!("[log]\nkeep_usage = \"0s\"\n{TINY}"));
    let _ = server.client().post(CHAT, &chat("tiny", 3)).expect(200);
    assert!(!server.home().join("state/usage.db").exists());
    let output = Command::new(kvwarden())
        .args(["usage", "--state-dir"])
        .arg(server.home().join("state"))
        .output()
        .expect("kvwarden runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("keep_usage"), "{said}");
}
