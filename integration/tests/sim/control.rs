//! What operators do to models: who may, by which requests, and how the command line follows it.

use std::process::Output;

use kvwarden_integration::{Exchange, Server, Stub, key_hash, said};
use serde_json::Value;

use crate::{CHAT, chat};

/// A model whose name needs care in a path, and which can park.
const AWKWARD: &str = r#"
[[models]]
id = "org/model:q4"
short_name = "m"
engine = "sim"
preset = "tiny"
autostart = false
sleep = ["parked"]
"#;

const VERBS: [&str; 7] = [
    "load",
    "unload",
    "park",
    "sleep",
    "deep-sleep",
    "pin",
    "unpin",
];

/// A bare request, since clients mend what is wrong with theirs.
fn status(server: &Server, method: &str, path: &str, headers: &str) -> u16 {
    let head = format!("{method} {path} HTTP/1.1\r\n{headers}content-length: 0\r\n\r\n");
    Exchange::raw(server.port, head.as_bytes()).answer().status
}

const JSON: &str = "content-type: application/json\r\n";

fn models(server: &Server, args: &[&str]) -> Output {
    server.command("models", args)
}

fn generation(server: &Server) -> Value {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    status["loaded_models"]["org/model:q4"]["generation"].clone()
}

#[test]
fn without_keys_only_requests_addressed_to_this_machine_are_wishes() {
    let server = Server::start(AWKWARD);
    let host = |host: &str| format!("host: {host}\r\n{JSON}");
    for verb in VERBS {
        let path = format!("/kvwarden/models/m/{verb}");
        for foreign in ["evil.example", "localhost.evil.example", "192.0.2.1:80", ""] {
            assert_eq!(
                status(&server, "POST", &path, &host(foreign)),
                403,
                "{foreign}"
            );
        }
    }
    // A wish that is heard starts the model.
    assert_eq!(generation(&server), 0);
    for own in ["localhost", "127.0.0.1:1", "[::1]:1"] {
        let path = "/kvwarden/models/m/unload";
        assert_eq!(status(&server, "POST", path, &host(own)), 202, "{own}");
    }
}

#[test]
fn only_an_operators_key_is_taken() {
    let (admin, tenant) = (key_hash("sk-admin"), key_hash("sk-tenant"));
    let server = Server::start(&format!(
        "[auth]\nadmin_keys = [\"{admin}\"]\n[tenants.a]\napi_keys = [\"{tenant}\"]\n{AWKWARD}"
    ));
    let wish = |key: Option<&str>| {
        let client = server.client();
        let client = key.map_or(client.clone(), |key| client.key(key));
        client.post("/kvwarden/models/m/unload", &Value::Null)
    };
    let _ = wish(None).expect_error(401);
    let _ = wish(Some("sk-tenant")).expect_error(403);
    let _ = wish(Some("sk-other")).expect_error(403);
    let _ = wish(Some("sk-admin")).expect(202);
    // With the key it matters no more under which name the server was reached.
    let headers = format!("host: node.example\r\nauthorization: Bearer sk-admin\r\n{JSON}");
    let path = "/kvwarden/models/m/unload";
    assert_eq!(status(&server, "POST", path, &headers), 202);
}

#[test]
fn pages_of_other_sites_can_send_nothing_that_counts() {
    let server = Server::start(AWKWARD);
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let path = "/kvwarden/models/m/load";
        let reply = server.client().send("POST", path, kind, b"");
        let _ = reply.expect_error(415);
    }
    let bare = status(
        &server,
        "POST",
        "/kvwarden/models/m/load",
        "host: localhost\r\n",
    );
    assert_eq!(bare, 415);
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"] {
        let headers = format!("host: localhost\r\n{JSON}");
        let status = status(&server, method, "/kvwarden/models/m/load", &headers);
        assert!(matches!(status, 404 | 405), "{method}: {status}");
    }
    assert_eq!(generation(&server), 0);
}

#[test]
fn unknown_models_and_verbs_are_404() {
    let server = Server::start(AWKWARD);
    for path in ["nope/load", "m/wake_up", "m/load/now", "/load", "m/LOAD"] {
        let reply = server
            .client()
            .post(&format!("/kvwarden/models/{path}"), &Value::Null);
        let _ = reply.expect_error(404);
    }
    assert_eq!(generation(&server), 0);
}

#[test]
fn no_way_to_write_a_wish_reaches_an_engine() {
    let stub = Stub::start(Stub::answer("200 OK", "application/json", "{}"));
    let server = Server::start(&stub.config());
    let headers = format!("host: localhost\r\n{JSON}");
    for path in [
        "/kvwarden/models/stub/..%2f..%2f..%2fsleep",
        "/kvwarden/models/stub/%2e%2e/sleep",
        "/kvwarden/models/../../sleep",
        "/kvwarden/models/stub/sleep/../../../../sleep",
        "/kvwarden/models/%73tub/sleep%3flevel=2",
        "/kvwarden/models/stub%2fsleep",
        "/kvwarden/models/http:%2f%2f127.0.0.1%2fsleep/sleep",
        "/kvwarden/models/stub/sleep;level=2",
        "//kvwarden/models/stub/sleep",
        "/kvwarden/models/stub%00/sleep",
    ] {
        let status = status(&server, "POST", path, &headers);
        assert!(matches!(status, 400 | 404), "{path}: {status}");
    }
    let heard = stub.requests();
    let is_ours = |request: &&String| {
        request.starts_with("GET /base/v1/models ") || request.starts_with("GET /base/metrics ")
    };
    let others: Vec<_> = heard.iter().filter(|request| !is_ours(request)).collect();
    assert!(others.is_empty(), "the engine heard {others:?}");
}

#[test]
fn command_line_loads_parks_and_unloads_and_tells_each_step() {
    let server = Server::start(AWKWARD);
    let id = "org/model:q4";
    for (verb, last) in [
        ("load", "ready"),
        ("park", "parked"),
        ("load", "ready"),
        ("unload", "cold"),
    ] {
        let output = models(&server, &[verb, id]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{verb}: {said}");
        assert!(said.contains(&format!("{id}: {last}\n")), "{verb}: {said}");
        assert!(said.ends_with("done\n"), "{verb}: {said}");
    }
    let _ = server.client().post(CHAT, &chat("m", 2)).expect(200);
    let table = said(&models(&server, &[]));
    assert!(
        table.contains("org/model:q4 (m)") && table.contains("ready"),
        "{table}"
    );
}

#[test]
fn level_that_the_engine_does_not_have_is_told() {
    let server = Server::start(AWKWARD);
    assert_eq!(models(&server, &["load", "m"]).status.code(), Some(0));
    let output = models(&server, &["deep-sleep", "m"]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("and not asleep (L2)"), "{said}");
}

#[test]
fn model_of_a_broken_engine_is_told_and_unknown_ones_are_errors() {
    let fault = "extra_args = [\"--no-such-flag\"]\n";
    let server = Server::start(&format!("{AWKWARD}{fault}"));
    let output = models(&server, &["load", "m"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let output = models(&server, &["load", "nope"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("does not exist"),
        "{}",
        said(&output)
    );
}
