//! `kvwarden models load` and its like: what is asked for, what is told of it, how it exits.

use serde_json::{Value, json};

use super::{Cli, FakeServer, broken, model, ready, status, stderr, stdout};

const ASKED: &str = "202 Accepted";
const OK: &str = "200 OK";

fn asked(id: &str) -> (&'static str, Value) {
    (ASKED, json!({ "id": id }))
}

fn at(state: &Value) -> (&'static str, Value) {
    (OK, status(&[model("llama", state)]))
}

#[test]
fn unload_is_followed_to_its_end() {
    let server = FakeServer::scripted(vec![
        asked("llama"),
        at(&json!({ "state": "draining", "to": "cold" })),
        at(&json!({ "state": "stopping" })),
        at(&json!({ "state": "stopping" })),
        at(&json!({ "state": "cold" })),
    ]);
    let output = Cli::new().run(&["models", "unload", "short", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said: Vec<_> = stdout(&output)
        .lines()
        .filter_map(|line| line.split_once(" s "))
        .map(|(_, said)| said)
        .collect();
    let states = ["draining", "stopping", "cold", "done"].map(|state| format!("llama: {state}"));
    assert_eq!(said, states);
    let heads = server.head().to_lowercase();
    assert!(
        heads.starts_with("post /kvwarden/models/short/unload http/1.1\r\n"),
        "{heads}"
    );
    assert!(heads.contains("content-type: application/json\r\n"));
}

#[test]
fn model_that_breaks_is_exit_code_3() {
    let loading = json!({ "state": "starting", "phase": "loading" });
    let server = FakeServer::scripted(vec![
        asked("llama"),
        at(&loading),
        (OK, status(&[broken("llama")])),
    ]);
    let output = Cli::new().run(&["models", "load", "llama", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("the engine did not know a flag"), "{said}");
}

#[test]
fn wish_that_comes_to_nothing_says_what_the_model_did_instead() {
    // It asks until it believes that the model stays there; then nobody listens any more.
    let mut answers = vec![asked("llama")];
    answers.extend((0..20).map(|_| at(&json!({ "state": "cold" }))));
    let server = FakeServer::scripted(answers);
    let output = Cli::new().run(&["models", "sleep", "llama", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(
        said.contains("it is cold: its engine can be ready, parked, cold, and not asleep (L1)"),
        "{said}"
    );
}

#[test]
fn pin_and_no_wait_only_ask() {
    for args in [&["pin", "llama"][..], &["load", "llama", "--no-wait"]] {
        let server = FakeServer::scripted(vec![asked("llama")]);
        let url = server.url();
        let output = Cli::new().run(&[&["models"], args, &["--url", &url]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains("is asked for"));
        let _ = server.head();
    }
}

#[test]
fn json_is_a_line_for_each_change_and_one_for_the_outcome() {
    let server = FakeServer::scripted(vec![asked("llama"), (OK, status(&[ready("llama")]))]);
    let url = server.url();
    let output = Cli::new().run(&["models", "--json", "--url", &url, "load", "llama"]);
    let lines: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        (&lines[0]["engine"], &lines[0]["state"]),
        (&json!("llama"), &json!("ready"))
    );
    assert_eq!(
        (&lines[1]["model"], &lines[1]["outcome"]),
        (&json!("llama"), &json!("fulfilled"))
    );
}

#[test]
fn unknown_model_is_told_from_an_unknown_server() {
    let refusal = json!({ "error": { "message": "model `a#b` does not exist", "param": "model" } });
    let server = FakeServer::new("404 Not Found", &refusal);
    let output = Cli::new().run(&["models", "pin", "org/a#b", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("model `a#b` does not exist"), "{said}");
    let head = server.head();
    assert!(
        head.starts_with("POST /kvwarden/models/org/a%23b/pin "),
        "{head}"
    );
}
