//! The command line, with the real binary: exit codes, JSON, what a pipe gets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod replay;
mod unit_file;
mod wishes;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Output},
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A home of its own, so that neither the user's files nor settings are looked at.
struct Cli {
    home: TempDir,
}

impl Cli {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvwarden"));
        command
            .args(args)
            .env("KVWARDEN_DATA_DIR", self.home.path().join("data"))
            .env("KVWARDEN_STATE_DIR", self.home.path().join("state"))
            .env_remove("KVWARDEN_KEY")
            .env_remove("KVWARDEN_CONFIG");
        command
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", stdout(output), stderr(output)))
}

/// A port that nobody listens on: it was free a moment ago.
fn silent_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A server for so many requests. Its thread returns the requests' heads.
struct FakeServer {
    address: SocketAddr,
    heads: JoinHandle<String>,
}

impl FakeServer {
    fn new(status: &str, body: &Value) -> Self {
        Self::scripted(vec![(status, body.clone())])
    }

    /// Answers one request with each.
    fn scripted(answers: Vec<(&str, Value)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |(status, body): (&str, Value)| {
            let body = body.to_string();
            format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let answers: Vec<_> = answers.into_iter().map(answer).collect();
        let one = move |answer: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let head = read_head(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
            head
        };
        let heads = thread::spawn(move || answers.into_iter().map(one).collect());
        Self { address, heads }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn head(self) -> String {
        self.heads.join().unwrap()
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn model(id: &str, state: &Value) -> Value {
    let record = json!({ "starts": 3, "failures": 1, "stale": 0, "dispatched": 77,
        "recent_starts": [61.0], "note": null, "log_tail": [],
        "saved": { "slots": 0, "tokens": 0, "bytes": 0, "note": null } });
    let mut engine = json!({
        "engine": id, "kind": "vllm", "occupancy": { "running": 2, "unacked": 0 },
        "rungs": ["ready", "parked", "cold"], "record": record,
    });
    let mut model = json!({
        "id": id, "names": [id, "short"], "engine": "vllm",
        "generation": 3, "autostart": true, "url": "http://127.0.0.1:4001", "pid": 4242,
        "waiting": 5, "running": 2, "max_running": 16, "oldest_wait": 0.5,
        "record": record,
        "vitals": { "handled": 1, "mailbox_wait": 0.0 },
    });
    for (key, value) in state.as_object().unwrap() {
        model[key] = value.clone();
        engine[key] = value.clone();
    }
    model["engines"] = json!([engine]);
    model
}

fn ready(id: &str) -> Value {
    model(id, &json!({ "state": "ready" }))
}

fn broken(id: &str) -> Value {
    let mut model = model(id, &json!({ "state": "broken", "class": "bad_flag" }));
    model["record"]["note"] = json!("the engine did not know a flag");
    model["record"]["log_tail"] = json!([
        "usage: ..",
        "\u{1b}[31munrecognized arguments: --wrng\u{1b}[0m"
    ]);
    model
}

fn status(models: &[Value]) -> Value {
    let loaded: serde_json::Map<_, _> = models
        .iter()
        .map(|model| (model["id"].as_str().unwrap().to_owned(), model.clone()))
        .collect();
    json!({
        "version": "0.1.0",
        "loaded_models": loaded,
        "queue_depths": {},
        "admission": {
            "in_flight": 2, "queue_depth": 5, "max_in_flight": 16384, "is_draining": false,
        },
        "tenants": { "acme": {
            "id": "acme", "is_named": true, "in_flight": 7, "admitted": 90, "refused": 4,
            "used": { "prompt_tokens": 1000, "cached_tokens": 600, "completion_tokens": 250 },
            "vitals": { "handled": 1, "mailbox_wait": 0.0 },
        } },
        "gpu": {
            "engines": [], "residents": [], "memory": [],
            "devices": { "state": "devices", "devices": [{
                "index": 0, "uuid": "GPU-0", "name": "NVIDIA H100", "total": 80_u64 << 30,
                "used": 40_u64 << 30, "utilization": 93, "temperature": 61,
            }] },
        },
        "router": { "tenants": 1, "models": 1, "is_draining": false },
        "metrics": { "uptime_s": 7260.0, "total_requests": 94 },
    })
}

// === what needs no server ===

#[test]
fn version_is_told_as_json() {
    let output = Cli::new().run(&["version", "--json"]);
    assert!(output.status.success());
    assert_eq!(json_of(&output)["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn help_shows_every_command_and_examples() {
    let output = Cli::new().run(&["--help"]);
    let text = stdout(&output);
    for part in [
        "status",
        "models",
        "doctor",
        "Examples:",
        "kvwarden serve --config",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("sim-engine"));
}

#[test]
fn check_exits_with_0_for_a_good_file_and_2_for_a_bad_one() {
    let cli = Cli::new();
    let good = cli.file("good.toml", "[[models]]\nid = \"m\"\nengine = \"sim\"\n");
    let bad = cli.file("bad.toml", "[[models]]\nid = \"m\"\nengnie = \"sim\"\n");
    assert_eq!(cli.run(&["check", &good]).status.code(), Some(0));
    let output = cli.run(&["check", &bad]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("engnie"), "{}", stderr(&output));
}

#[test]
fn hash_of_a_new_key_is_one_that_a_configuration_takes() {
    let cli = Cli::new();
    let made = json_of(&cli.run(&["key", "--json"]));
    assert!(made["key"].as_str().unwrap().starts_with("sk-kvw-"));
    let text = format!(
        "[[models]]\nid = \"m\"\nengine = \"sim\"\n[tenants.a]\napi_keys = [{}]\n",
        made["hash"]
    );
    let output = cli.run(&["check", &cli.file("node.toml", &text)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn engine_list_is_json_with_every_engine() {
    let engines = json_of(&Cli::new().run(&["engine", "list", "--json"]));
    let engines = engines.as_array().unwrap();
    assert!(engines.iter().any(|engine| engine["name"] == "vllm"));
    assert!(engines.iter().all(|engine| engine["state"] == "missing"));
}

// === doctor ===

#[test]
fn doctor_tells_at_least_a_dozen_findings_as_json() {
    let cli = Cli::new();
    let output = cli.run(&["doctor", "--json"]);
    let report = json_of(&output);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 12, "{report:#}");
    for check in checks {
        let state = check["state"].as_str().unwrap();
        let needs_fix = matches!(state, "warning" | "problem");
        assert!(needs_fix || matches!(state, "ok" | "not_applicable"));
        assert_eq!(check["fix"].is_string(), needs_fix, "{check}");
        assert!(!check["finding"].as_str().unwrap().is_empty());
    }
    let has_problem = checks.iter().any(|check| check["state"] == "problem");
    assert_eq!(report["ok"], !has_problem);
    assert_eq!(output.status.code(), Some(i32::from(has_problem)));
    let left = fs::read_dir(cli.home.path()).unwrap().count();
    assert_eq!(left, 0, "it only looks");
}

#[test]
fn doctor_holds_the_machine_against_the_configuration() {
    let cli = Cli::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let hang_up = thread::spawn(move || drop(taken.accept()));
    let text = format!(
        "listen = \"{listen}\"\nstate_dir = \"/{}\"\n[[models]]\nid = \"m\"\nengine = \"sim\"\n",
        "long/".repeat(30)
    );
    let output = cli.run(&["doctor", "--json", "--config", &cli.file("n.toml", &text)]);
    let report = json_of(&output);
    let state = |name: &str| {
        let mut checks = report["checks"].as_array().unwrap().iter();
        let check = checks.find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("{name}: {report:#}"))["state"].clone()
    };
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(state("configuration"), "ok");
    assert_eq!(state("listen address"), "problem");
    assert_eq!(state("socket path"), "problem");
    assert_eq!(state("python"), "not_applicable");
    hang_up.join().unwrap();
}

#[test]
fn doctor_names_what_is_wrong_with_a_configuration() {
    let cli = Cli::new();
    let bad = cli.file("bad.toml", "listne = \"x\"\n");
    let output = cli.run(&["doctor", "--config", &bad]);
    assert_eq!(output.status.code(), Some(1));
    let line = stdout(&output).lines().next().unwrap();
    assert!(
        line.contains("problem") && line.contains("configuration"),
        "{line}"
    );
    assert!(stdout(&output).contains(&format!("fix: kvwarden check {bad}")));
}

// === status and models ===

#[test]
fn status_without_a_server_says_what_to_start() {
    let port = silent_port().to_string();
    for command in ["status", "models"] {
        let output = Cli::new().run(&[command, "--port", &port]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stdout(&output), "");
        let said = stderr(&output);
        assert!(
            said.contains("nothing listens at http://127.0.0.1:"),
            "{said}"
        );
        assert!(said.contains("kvwarden serve --config"), "{said}");
    }
}

#[test]
fn status_shows_models_tenants_devices_and_totals() {
    let server = FakeServer::new("200 OK", &status(&[ready("llama")]));
    let output = Cli::new().run(&["status", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        server
            .head()
            .starts_with("GET /kvwarden/status HTTP/1.1\r\n")
    );
    let text = stdout(&output);
    let parts = [
        "up 2 h 1 min",
        "94 requests",
        "llama",
        "ready",
        "4242",
        "2/16",
        "acme",
        "1,000",
        "NVIDIA H100",
        "40.0 GiB of 80.0 GiB",
        "93 %",
    ];
    for part in parts {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn broken_model_is_exit_code_3_with_its_last_words() {
    let server = FakeServer::new("200 OK", &status(&[broken("llama")]));
    let output = Cli::new().run(&["status", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(3));
    let text = stdout(&output);
    assert!(
        text.contains("llama: the engine did not know a flag"),
        "{text}"
    );
    assert!(
        text.contains("llama said last: unrecognized arguments: --wrng"),
        "{text}"
    );
}

#[test]
fn json_is_the_servers_own() {
    let mut answer = status(&[broken("llama")]);
    answer["a_key_of_a_later_version"] = json!([1, 2]);
    for command in ["status", "models"] {
        let server = FakeServer::new("200 OK", &answer);
        let output = Cli::new().run(&[command, "--json", "--url", &server.url()]);
        assert_eq!(stdout(&output), format!("{answer:#}\n"));
        assert_eq!(output.status.code(), Some(3));
    }
}

#[test]
fn models_are_one_line_each() {
    let state = json!({ "state": "starting", "phase": "loading", "pid": null, "url": null });
    let server = FakeServer::new("200 OK", &status(&[ready("llama"), model("qwen", &state)]));
    let output = Cli::new().run(&["models", "--url", &server.url()]);
    let lines: Vec<_> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 3, "{}", stdout(&output));
    let parts = ["short", "vllm", "ready", "2/16", "1 min 1 s"];
    for part in parts {
        assert!(lines[1].contains(part), "{}", lines[1]);
    }
    assert!(lines[2].contains("loading"));
}

#[test]
fn missing_key_is_asked_for() {
    let refusal = json!({ "error": { "message": "no" } });
    let server = FakeServer::new("401 Unauthorized", &refusal);
    let output = Cli::new().run(&["status", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("auth.admin_keys with --key or KVWARDEN_KEY"),
        "{said}"
    );
}

#[test]
fn key_is_sent_and_a_tenants_is_told_from_an_operators() {
    let refusal = json!({ "error": { "message": "no" } });
    let server = FakeServer::new("403 Forbidden", &refusal);
    let mut command = Cli::new().command(&["status", "--url", &server.url()]);
    let output = command.env("KVWARDEN_KEY", "sk-tenant").output().unwrap();
    let head = server.head().to_lowercase();
    assert!(
        head.contains("authorization: bearer sk-tenant\r\n"),
        "{head}"
    );
    let said = stderr(&output);
    assert!(said.contains("a tenant's will not do"), "{said}");
    assert!(!said.contains("sk-tenant"));
}

#[test]
fn other_servers_are_not_taken_for_kvwarden() {
    let server = FakeServer::new("200 OK", &json!({ "hello": "world" }));
    let output = Cli::new().run(&["status", "--url", &server.url()]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("does not answer like kvwarden"), "{said}");
}

#[test]
fn servers_reason_to_refuse_is_passed_on() {
    let refusal = json!({ "error": { "message": "kvwarden is stopping" } });
    let server = FakeServer::new("503 Service Unavailable", &refusal);
    let output = Cli::new().run(&["status", "--url", &server.url()]);
    let said = stderr(&output);
    assert!(said.contains("503") && said.contains("kvwarden is stopping"));
}

#[test]
fn pipe_gets_no_colours() {
    let cli = Cli::new();
    let server = FakeServer::new("200 OK", &status(&[broken("llama")]));
    let url = server.url();
    let commands: [&[&str]; 6] = [
        &["status", "--url", &url],
        &["doctor"],
        &["engine", "list"],
        &["key"],
        &["--help"],
        &["check", "/nonexistent/node.toml"],
    ];
    for args in commands {
        let output = cli.run(args);
        let has_escape = |bytes: &[u8]| bytes.contains(&0x1b);
        assert!(
            !has_escape(&output.stdout) && !has_escape(&output.stderr),
            "{args:?}"
        );
    }
}
