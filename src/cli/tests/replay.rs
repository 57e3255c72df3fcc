//! `kvwarden replay`: what is made up can be saved, read back and compared.

use std::fs;

use super::{Cli, json_of, stderr, stdout};

#[test]
fn replay_compares_policies_over_a_saved_log_and_draws_them() {
    let cli = Cli::new();
    let [log, svg, png] = ["log.jsonl", "stalls.svg", "stalls.png"].map(|name| cli.file(name, ""));
    let cell = [
        "replay",
        "--generate",
        "agents-half-cheap",
        "--policy",
        "all",
    ];
    let made = cli.run(&[&cell[..], &["--json", "--save", &log, "--plot", &svg]].concat());
    let made = json_of(&made);
    let read = cli.run(&["replay", &log, "--policy", "all", "--json", "--plot", &png]);
    let read = json_of(&read);
    assert_eq!(read["label"], "SIMULATED");
    assert_eq!(read["requests"], made["requests"]);
    let policies = read["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 9);
    assert!(
        policies
            .iter()
            .all(|policy| policy["starts"].as_u64() > Some(0))
    );
    assert!(fs::read_to_string(svg).unwrap().contains("clairvoyant"));
    assert!(fs::read(png).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn replay_prints_a_row_per_policy_and_more_memory_stalls_less() {
    let cli = Cli::new();
    let cell = [
        "replay",
        "--generate",
        "zipf-one-cheap",
        "--policy",
        "lru,kvwarden",
    ];
    let output = cli.run(&cell);
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(
        lines[0].starts_with("SIMULATED: zipf-one-cheap, seed 1"),
        "{lines:?}"
    );
    assert!(
        lines[2].trim().starts_with("kvwarden") && lines[3].trim().starts_with("lru"),
        "{lines:?}"
    );
    let stall = |more: &[&str]| {
        let output = cli.run(&[&cell[..], more, &["--json"]].concat());
        json_of(&output)["policies"][0]["stall_s"].as_f64().unwrap()
    };
    let (one, four) = (stall(&[]), stall(&["--gpus", "4"]));
    assert!(four < one / 4.0, "{four} of {one}");
    assert!((stall(&["--capacity", "64GiB"]) - four).abs() < one / 4.0);
}

#[test]
fn replay_says_which_line_of_a_log_is_wrong() {
    let cli = Cli::new();
    let log = cli.file("log.jsonl", "{}\n{}\n");
    let output = cli.run(&["replay", &log]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 1"), "{}", stderr(&output));
}

#[test]
fn replay_without_a_log_reads_the_one_in_the_state_directory() {
    let output = Cli::new().run(&["replay"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("state/usage.db"),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("--generate"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn replay_of_a_log_without_events_says_how_a_server_keeps_them() {
    let cli = Cli::new();
    let log = cli.file("log.jsonl", "");
    let output = cli.run(&["replay", &log]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.contains("[log] events = true"), "{told}");
}
