//! The systemd unit that comes with kvwarden: it names options that there are, and systemd takes it.

use std::{fs, path::PathBuf, process::Command};

use super::{Cli, stderr, stdout};

const INSTALLED: &str = "/usr/local/bin/kvwarden";

fn unit() -> String {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(dir.join("configs/kvwarden.service")).unwrap()
}

fn value(key: &str) -> String {
    let unit = unit();
    let mut lines = unit.lines();
    let found = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.unwrap().to_owned()
}

#[test]
fn every_option_that_it_names_exists_and_so_does_every_variable() {
    let start = value("ExecStart");
    let words: Vec<_> = start.split(' ').collect();
    assert_eq!(&words[..2], [INSTALLED, "serve"]);
    let cli = Cli::new();
    let help = cli.run(&["serve", "--help"]);
    for option in words.iter().filter(|word| word.starts_with("--")) {
        assert!(stdout(&help).contains(option), "{option}");
    }
    let set = unit();
    let set = set
        .lines()
        .filter_map(|line| line.strip_prefix("Environment=KVWARDEN_"));
    let set: Vec<_> = set.filter_map(|line| line.split('=').next()).collect();
    assert_eq!(set, ["STATE_DIR", "DATA_DIR"]);
}

#[test]
fn engines_outlive_the_service_and_its_stop_waits_for_the_drain() {
    assert_eq!(value("KillMode"), "process");
    assert_eq!(value("Delegate"), "yes");
    assert_eq!(value("Type"), "notify");
    // The defaults of limits.drain_timeout and stop_grace, and what is spent on top.
    let stop: u32 = value("TimeoutStopSec").parse().unwrap();
    assert!(stop > 30 + 30 + 10 + 5);
}

#[test]
fn systemd_takes_it() {
    let cli = Cli::new();
    let here = unit().replace(INSTALLED, env!("CARGO_BIN_EXE_kvwarden"));
    let file = cli.file("kvwarden.service", &here);
    let verified = Command::new("systemd-analyze")
        .args(["verify", &file])
        .output();
    // Where there is no systemd, nobody will use it either.
    let Ok(verified) = verified else {
        return;
    };
    let said = stderr(&verified);
    assert!(verified.status.success(), "{said}");
    assert!(!said.contains("kvwarden.service"), "{said}");
}
