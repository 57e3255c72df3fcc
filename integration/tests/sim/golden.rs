//! What scripts and dashboards are built on: the commands and their help, what `check` says, the shape
//! of the status, the metrics and their labels. A change to one of these files is a change to the
//! product's surface; `BLESS=1` writes them anew.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use kvwarden_integration::{kvwarden, said, workspace};
use serde_json::Value;

use crate::operators::used_server;

fn file(name: &str) -> PathBuf {
    workspace().join("integration/tests/sim/golden").join(name)
}

/// Compares with the file of that name.
fn is_as_before(name: &str, now: &str) {
    let path = file(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, now).expect("a golden file is written");
    }
    let before = fs::read_to_string(&path).expect("a golden file");
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let (old, new) = (lines(&before), lines(now));
    let gone: Vec<_> = old.difference(&new).collect();
    let come: Vec<_> = new.difference(&old).collect();
    assert!(
        before == now,
        "{name} differs; gone: {gone:#?}, come: {come:#?}"
    );
}

/// The help of a command and of all below it.
fn help(command: &[&str]) -> String {
    let output = Command::new(kvwarden())
        .args(command)
        .arg("--help")
        .env("COLUMNS", "100")
        .output()
        .expect("kvwarden runs");
    let own = said(&output);
    let below = own
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // A description that goes on on its next line stands further right.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help");
    let below: String = below
        .map(|name| help(&[command, &[name]].concat()))
        .collect();
    format!("=== kvwarden {}\n{own}\n{below}", command.join(" "))
}

#[test]
fn commands_and_their_help_are_as_before() {
    is_as_before("help.txt", &help(&[]));
}

#[test]
fn check_says_the_same_of_good_and_bad_files() {
    let configs = workspace().join("configs");
    let mut files: Vec<_> = fs::read_dir(configs)
        .expect("the examples")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    files.sort();
    files.push(file("bad.toml"));
    let all: String = files
        .iter()
        .map(|path| {
            let relative = path.strip_prefix(workspace()).expect("a file of ours");
            let output = Command::new(kvwarden())
                .args(["check", "--json"])
                .arg(relative)
                .current_dir(workspace())
                .output();
            said(&output.expect("kvwarden runs"))
        })
        .collect();
    is_as_before("check.json", &all);
}

/// Every key of it, by its path; models' own names are left out.
fn keys_of(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            into.insert(path.to_owned());
        }
        Value::Array(items) => {
            into.insert(format!("{path}[]"));
            for item in items {
                keys_of(item, &format!("{path}[]"), into);
            }
        }
        // Which of its keys are there depends on the machine.
        Value::Object(_) if path == ".gpu.devices" => {
            into.insert(path.to_owned());
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let is_model = path == ".loaded_models";
                let name = if is_model { "MODEL" } else { name };
                keys_of(field, &format!("{path}.{name}"), into);
            }
        }
    }
}

#[test]
fn status_has_the_same_keys() {
    let server = used_server();
    let status = server.client().get("/kvwarden/status").expect(200).json();
    let mut keys = BTreeSet::new();
    keys_of(&status, "", &mut keys);
    let text: String = keys.into_iter().map(|key| key + "\n").collect();
    is_as_before("status.txt", &text);
}

#[test]
fn metrics_have_the_same_names_and_labels() {
    let server = used_server();
    let page = server.client().get("/metrics").expect(200);
    let page = page.text();
    let mut series = BTreeSet::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        series.insert(labels_of(line));
    }
    let families = page
        .lines()
        .filter(|line| line.starts_with("# "))
        .map(str::to_owned);
    let text: String = families
        .chain(series)
        .map(|line| format!("{line}\n"))
        .collect();
    is_as_before("metrics.txt", &text);
}

/// The name and the labels' names of a series.
fn labels_of(line: &str) -> String {
    let Some((name, rest)) = line.split_once('{') else {
        return line.split(' ').next().unwrap_or_default().to_owned();
    };
    let labels = rest.split('"').step_by(2);
    let names: String = labels
        .map(|between| between.trim_start_matches(','))
        .take_while(|between| between.ends_with('='))
        .collect::<Vec<_>>()
        .join(" ");
    format!("{name}{{{names}}}")
}
