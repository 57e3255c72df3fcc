//! What operators look at: metrics, status, the commands.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use kvwarden_integration::{Metrics, Server, eventually, key_hash, kvwarden, workspace};
use serde_json::Value;

use crate::{CHAT, SLOW, TINY, chat, endless, streamed};

/// The names the Python KVWarden had; its dashboards go on working.
const INHERITED: [&str; 17] = [
    "kvwarden_requests_total",
    "kvwarden_request_latency_seconds",
    "kvwarden_tokens_generated_total",
    "kvwarden_tokens_input_total",
    "kvwarden_models_loaded",
    "kvwarden_model_evictions_total",
    "kvwarden_engine_up",
    "kvwarden_engine_cold_start_seconds",
    "kvwarden_sse_stream_disconnect_total",
    "kvwarden_tenant_requests_total",
    "kvwarden_tenant_requests_rejected_total",
    "kvwarden_tenant_ttft_seconds",
    "kvwarden_admission_queue_depth",
    "kvwarden_admission_in_flight",
    "kvwarden_admission_wait_seconds",
    "kvwarden_admission_rejected_total",
    "kvwarden_admission_admitted_total",
];

/// A server to which everything has happened that is counted.
pub(crate) fn used_server() -> Server {
    let tenants = "[tenants.a]\n[tenants.b]\nrate_limit_rpm = 1\n";
    let server = Server::start(&format!(
        "{TINY}{SLOW}max_concurrent = 1\nqueue_size = 1\n{tenants}"
    ));
    for tenant in ["a", "b", "b", "stranger"] {
        let client = server.client().tenant(tenant);
        let _ = client.post(CHAT, &streamed("tiny", 3));
        let _ = client.post(CHAT, &chat("nope", 3));
    }
    let mut running = server.exchange(CHAT, "a", &endless()).answer();
    let _ = running.until("content");
    let crowd: Vec<_> = ["c", "d", "e"]
        .iter()
        .map(|tenant| server.exchange(CHAT, tenant, &endless()))
        .collect();
    wait_for(&server, "kvwarden_admission_rejected_total");
    drop((running, crowd));
    wait_for(&server, "kvwarden_sse_stream_disconnect_total");
    // Engines are asked what waits in them now and then, for the first time some time after their start.
    eventually("the engines to have told what waits", || {
        server.metrics().sum("kvwarden_engine_waiting", &[])
    });
    server
}

fn wait_for(server: &Server, counter: &str) {
    eventually(&format!("{counter} to count"), || {
        let count = server.metrics().sum(counter, &[]);
        count.filter(|count| *count >= 1.0)
    });
}

fn run(args: &[&str]) -> Output {
    let output = Command::new(kvwarden()).args(args).output();
    output.expect("kvwarden runs")
}

/// The standard output of a command that succeeds.
fn said(args: &[&str]) -> String {
    let output = run(args);
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {problem}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_inherited_metric_is_there() {
    let server = used_server();
    let page = server.metrics();
    let is_declared = |name: &&str| {
        // OpenMetrics declares a counter without its `_total`.
        let family = name.trim_end_matches("_total");
        [*name, family]
            .iter()
            .any(|known| page.page().contains(&format!("# TYPE {known} ")))
    };
    let missing: Vec<_> = INHERITED.iter().filter(|name| !is_declared(name)).collect();
    assert!(missing.is_empty(), "{missing:?} not in\n{}", page.page());
    let labels = [
        "model=\"org/tiny-model\"",
        "tenant=\"a\"",
        "engine=\"sim\"",
        "status=\"ok\"",
    ];
    assert_eq!(
        page.sum("kvwarden_requests_total", &labels),
        Some(1.0),
        "{}",
        page.page()
    );
    assert_eq!(page.sum("kvwarden_engine_up", &labels[..1]), Some(1.0));
    assert_eq!(
        page.sum("kvwarden_tokens_generated_total", &labels[..1]),
        Some(9.0)
    );
    assert_eq!(
        page.sum("kvwarden_tenant_requests_rejected_total", &["tenant=\"b\""]),
        Some(1.0)
    );
}

#[test]
fn what_clients_did_wrong_is_no_error_of_ours() {
    let (key, admin) = (key_hash("sk-a"), key_hash("sk-admin"));
    let server = Server::start(&format!(
        "[auth]\nadmin_keys = [\"{admin}\"]\n[tenants.a]\napi_keys = [\"{key}\"]\n{TINY}"
    ));
    let client = server.client().key("sk-a");
    let _ = client.post(CHAT, &chat("nope", 1)).expect_error(404);
    let _ = client.post(CHAT, &serde_json::json!([])).expect_error(400);
    for stranger in ["sk-x", "sk-y"] {
        let stranger = server.client().key(stranger).tenant(stranger);
        let _ = stranger.post(CHAT, &chat("tiny", 1)).expect_error(401);
    }
    let page = server.client().key("sk-admin").get("/metrics").expect(200);
    let metrics = Metrics::new(page.text());
    let count = |labels: &[&str]| metrics.sum("kvwarden_requests_total", labels);
    let wrong = "status=\"client_error\"";
    assert_eq!(count(&[wrong, "tenant=\"a\""]), Some(2.0));
    assert_eq!(count(&[wrong, "tenant=\"_unauthenticated\""]), Some(2.0));
    assert_eq!(count(&["status=\"error\""]), None);
}

#[test]
fn what_waits_inside_the_engine_is_shown_while_the_engine_tells() {
    let mut server = Server::start(SLOW);
    let told = |server: &Server| server.metrics().sum("kvwarden_engine_waiting", &[]);
    eventually("the engine's own queue", || {
        told(&server).filter(|waiting| *waiting == 0.0)
    });
    let status = server.client().get("/kvwarden/status").expect(200).json();
    assert_eq!(status["loaded_models"]["slow"]["engine_waiting"], 0);
    server.engine().kill();
    eventually("nobody to tell", || told(&server).is_none().then_some(()));
    server.wait_until_ready(std::time::Duration::from_secs(30));
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let server = used_server();
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match started {
        Ok(promtool) => promtool,
        Err(error) => {
            let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!is_ci, "promtool (Debian package `prometheus`): {error}");
            return;
        }
    };
    let page = server.metrics();
    let mut input = promtool.stdin.take().expect("a pipe");
    input
        .write_all(page.page().as_bytes())
        .expect("promtool reads");
    drop(input);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{said}\n{}",
        page.page()
    );
}

#[test]
fn status_and_models_are_there_for_programs_and_for_people() {
    let server = used_server();
    let json = server.client().get("/kvwarden/status").expect(200).json();
    assert!(json.is_object(), "{json}");
    let url = format!("http://127.0.0.1:{}", server.port);
    for command in ["status", "models"] {
        for (format, is_json) in [(&[][..], false), (&["--json"], true)] {
            let args = [&[command, "--url", &url], format].concat();
            let said = said(&args);
            assert!(said.contains("org/tiny-model"), "{args:?}: {said}");
            assert_eq!(
                serde_json::from_str::<Value>(&said).is_ok(),
                is_json,
                "{said}"
            );
        }
    }
}

#[test]
fn admin_key_guards_metrics_and_status() {
    let admin = key_hash("sk-admin");
    let server = Server::start(&format!("[auth]\nadmin_keys = [\"{admin}\"]\n{TINY}"));
    for path in ["/metrics", "/kvwarden/status"] {
        let _ = server.client().get(path).expect_error(401);
        let _ = server.client().key("sk-wrong").get(path).expect_error(403);
        let _ = server.client().key("sk-admin").get(path).expect(200);
    }
    let _ = server.client().get("/health").expect(200);
}

#[test]
fn commands_that_need_no_server_print_json_too() {
    let config = workspace().join("configs/quickstart_sim.toml");
    let config = config.to_str().expect("a path that is text");
    let commands = [
        &["version"][..],
        &["doctor"],
        &["engine", "list"],
        &["check", config],
    ];
    for command in commands {
        let args = [command, &["--json"]].concat();
        // What doctor finds on this machine is no matter here, only that it says it.
        let output = run(&args);
        let parsed = serde_json::from_slice::<Value>(&output.stdout);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(parsed.is_ok(), "{args:?}: {parsed:?} {problem}");
    }
}

#[test]
fn no_secret_is_in_argv_log_or_state() {
    let server = used_server();
    let key = server.engine().key;
    for process in server.processes() {
        assert!(!process.args.concat().contains(&key), "{:?}", process.args);
    }
    assert!(!server.log().concat().contains(&key));
    // What the next kvwarden is handed over is the one exception; `adoption` looks at who may read it.
    let found = Command::new("grep")
        .args(["-rl", "--exclude=*.handover", &key])
        .arg(server.home())
        .output()
        .expect("grep runs");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}
