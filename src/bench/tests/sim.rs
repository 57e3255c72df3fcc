//! Three seconds of flood on the smallest preset.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

/// Long enough for a server to start twice on a busy machine; the bench ends by itself.
fn bench(args: &[&str], out: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_kvwarden"))
        .args(["bench"])
        .args(args)
        .args(["--engine", "sim", "--preset", "tiny", "--duration", "3s"])
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

#[test]
fn flood_is_measured_and_labelled_simulated() {
    let out = tempfile::tempdir().unwrap();
    let args = [
        "fairness",
        "--shape",
        "decode",
        "--flood",
        "0.1x",
        "--tenants",
        "4",
        "--arms",
        "solo,fifo",
    ];
    let report = bench(&args, out.path());
    assert_eq!(report["label"], "SIMULATED");
    let arms = report["arms"].as_array().unwrap();
    let names: Vec<_> = arms.iter().map(|arm| &arm["arm"]).collect();
    assert_eq!(names, ["solo", "fifo"]);
    let [solo, fifo] = [&arms[0], &arms[1]];
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
    let noisy = rows
        .iter()
        .filter(|row| row["tenant"] == "noisy" && row["outcome"] == "ok");
    assert!(noisy.into_iter().all(|row| {
        row["output_tokens"]
            .as_u64()
            .is_some_and(|n| (6..=250).contains(&n))
    }));

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
    let args = [
        "reproduce-hero",
        "--arms",
        "bucket,drr,fair",
        "--bucket-rpm",
        "60",
    ];
    let report = bench(&args, out.path());
    assert_eq!(report["unavailable"], serde_json::json!([]));
    let refused = |arm: &Value| -> u64 {
        let by_code = arm["noisy"]["refused"].as_object().unwrap();
        let rate_limited = by_code.iter().filter(|(code, _)| code.starts_with("429 "));
        rate_limited.map(|(_, count)| count.as_u64().unwrap()).sum()
    };
    let refusals: Vec<_> = report["arms"]
        .as_array()
        .unwrap()
        .iter()
        .map(refused)
        .collect();
    assert!(
        refusals[0] > 10 && refusals[1..] == [0, 0],
        "{refusals:?} {:#}",
        report["arms"][0]["noisy"]
    );
}
