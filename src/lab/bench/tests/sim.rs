//! Three seconds of flood on the smallest preset.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

const TINY: [&str; 4] = ["--engine", "sim", "--preset", "tiny"];

/// The bench ends by itself.
fn bench(args: &[&str], out: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_kvwarden"))
        .args(["bench"])
        .args(args)
        .args(["--duration", "3s"])
        // A debug build on a machine that does other things as well.
        .args(["--max-client-lag", "2s", "--json", "--out"])
        .arg(out)
        .env_remove("KVWARDEN_CONFIG")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn words<'a>(args: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    args.split(' ').chain(more.iter().copied()).collect()
}

/// What was measured in each of these arms, and no other.
fn arms<'r, const N: usize>(report: &'r Value, names: [&str; N]) -> [&'r Value; N] {
    let arms = report["arms"].as_array().unwrap();
    let measured: Vec<_> = arms.iter().map(|arm| &arm["arm"]).collect();
    assert_eq!(measured, names);
    std::array::from_fn(|at| &arms[at])
}

/// A simulated engine that runs already, and is ended by the test.
struct Engine {
    child: Child,
    url: String,
}

impl Engine {
    fn start() -> Self {
        let any = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = any.local_addr().unwrap();
        drop(any);
        let child = Command::new(env!("CARGO_BIN_EXE_kvwarden"))
            .args(["sim-engine", "--preset", "tiny", "--port"])
            .arg(address.port().to_string())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let listens = (0..6000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            TcpStream::connect(address).is_ok()
        });
        assert!(listens, "the engine does not listen within a minute");
        Self {
            child,
            url: format!("http://{address}/"),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn flood_is_measured_and_labelled_simulated() {
    let out = tempfile::tempdir().unwrap();
    let args = "fairness --shape decode --flood 0.1x --tenants 4 --arms solo,fifo";
    let report = bench(&words(args, &TINY), out.path());
    assert_eq!(report["label"], "SIMULATED");
    let [solo, fifo] = arms(&report, ["solo", "fifo"]);
    assert_eq!(solo["noisy"]["sent"], 0);
    assert_eq!(
        solo["quiet"]["sent"], fifo["quiet"]["sent"],
        "arms share one plan"
    );
    assert!(fifo["noisy"]["ok"].as_u64().unwrap() > 10, "{fifo:#}");
    assert!(fifo["queues"]["engine_waiting_p99"].is_number(), "{fifo:#}");
    assert_eq!(fifo["throughput_kept"], 1.0);

    let rows = fs::read_to_string(out.path().join("requests.jsonl")).unwrap();
    let rows: Vec<Value> = rows
        .lines()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    assert!(rows.iter().all(|row| row["label"] == "SIMULATED"));
    let whole = rows.iter().find(|row| row["outcome"] == "ok").unwrap();
    assert!(whole["ttft_ms"].as_f64().unwrap() > 0.0, "{whole}");
    // Lengths are as planned: an eighth of 50 to 2000 tokens.
    for row in rows
        .iter()
        .filter(|row| row["tenant"] == "noisy" && row["outcome"] == "ok")
    {
        let tokens = row["output_tokens"].as_u64().unwrap();
        assert!((6..=250).contains(&tokens), "{row}");
    }

    let svg = fs::read_to_string(out.path().join("fairness.svg")).unwrap();
    assert!(
        svg.contains("SIMULATED") && svg.contains("fifo"),
        "no label in the picture"
    );
    let png = fs::read(out.path().join("fairness.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000);
}

#[test]
fn only_the_bucket_refuses_and_every_discipline_runs() {
    let out = tempfile::tempdir().unwrap();
    let args = "reproduce-hero --arms bucket,drr,fair --bucket-rpm 60";
    let report = bench(&words(args, &TINY), out.path());
    assert_eq!(report["unavailable"], serde_json::json!([]));
    let refused = |arm: &Value| -> u64 {
        let by_code = arm["noisy"]["refused"].as_object().unwrap();
        let rate_limited = by_code.iter().filter(|(code, _)| code.starts_with("429 "));
        rate_limited.map(|(_, count)| count.as_u64().unwrap()).sum()
    };
    let refusals = arms(&report, ["bucket", "drr", "fair"]).map(refused);
    assert!(
        refusals[0] > 10 && refusals[1..] == [0, 0],
        "{refusals:?} {:#}",
        report["arms"][0]["noisy"]
    );
}

#[test]
fn running_server_that_is_no_kvwarden_is_benched() {
    let out = tempfile::tempdir().unwrap();
    let engine = Engine::start();
    let at = ["--base-url", &engine.url, "--model", "sim"];
    let report = bench(
        &words("fairness --scale 0.05 --flood 0.2x", &at),
        out.path(),
    );
    // Whoever started it, it said what it is.
    assert_eq!(report["label"], "SIMULATED");
    let [_, server] = arms(&report, ["solo", "server"]);
    assert!(server["noisy"]["ok"].as_u64() > Some(10), "{server:#}");
    assert!(server["queues"]["engine_running_p50"].is_number());
    let measured = report["capacities"][0]["stages"].as_array().unwrap();
    assert!(measured.len() > 2, "{measured:?}");
}

#[test]
fn own_file_chooses_engine_and_model() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("mine.toml");
    let text = "[[models]]\nid = 'mine'\nengine = 'sim'\npreset = 'tiny'\n\
        [tenants.noisy]\nrate_limit_rpm = 1\n";
    fs::write(&file, text).unwrap();
    let mine = ["--config", file.to_str().unwrap()];
    let report = bench(
        &words("fairness --flood 0.2x --arms fair", &mine),
        out.path(),
    );
    let fair = &report["arms"][0];
    assert!(
        fair["config"].as_str().unwrap().contains("mine"),
        "{fair:#}"
    );
    // Its limits are not what is measured.
    assert_eq!(fair["noisy"]["refused"], serde_json::json!({}));
    assert!(fair["noisy"]["ok"].as_u64() > Some(10), "{fair:#}");
}

#[test]
fn unequal_floods_get_shares_by_weight() {
    let out = tempfile::tempdir().unwrap();
    let args = "fairness --shape unequal --flood 0.3x --weights 2,1 --arms fair --engine sim";
    let report = bench(&words(args, &["--preset", "h100-8b"]), out.path());
    let workload = report["workload"].as_array().unwrap();
    let weights: Vec<_> = workload.iter().map(|party| &party["weight"]).collect();
    assert_eq!(weights, [1, 2, 1, 1]);
    assert_eq!(report["capacities"].as_array().unwrap().len(), 3);
    let fair = &report["arms"][0];
    // Too short for a window of ten seconds.
    assert_eq!(fair["jain"], Value::Null);
    let sent = fair["noisy"]["sent"].as_u64().unwrap();
    assert!(
        sent > 10 && fair["quiet"]["sent"].as_u64() > Some(0),
        "{fair:#}"
    );
}
