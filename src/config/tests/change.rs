//! What of a configuration can change while it runs, key by key.

use super::*;
use crate::config::change::{plan, revision};

const BASE: &str = r#"
listen = "127.0.0.1:8000"

[tenants.a]
weight = 1

[tenants.b]

[[models]]
id = "m"
engine = "sim"

[[models]]
replica_of = "m"
engine = "sim"

[[models]]
id = "far"
engine = "attach"
url = "http://127.0.0.1:1"
"#;

/// What changes when `from` becomes `to` in the text.
fn change(from: &str, to: &str) -> String {
    assert!(BASE.contains(from), "{from}");
    let (_, changes) = plan(&load(BASE), load(&BASE.replacen(from, to, 1)));
    changes.to_string()
}

#[test]
fn same_file_changes_nothing() {
    assert_eq!(change("", "# a comment\n"), "nothing changed");
}

#[test]
fn tenants_come_change_and_go() {
    let key = format!("api_keys = [\"sha256:{}\"]", "0".repeat(64));
    for (from, to, expected) in [
        (
            "[tenants.b]",
            "[tenants.b]\n[tenants.c]",
            "tenants added: c",
        ),
        ("[tenants.b]", "", "tenants removed: b"),
        ("weight = 1", "weight = 2", "tenants changed: a"),
        ("weight = 1", &key, "tenants changed: a"),
        (
            "weight = 1",
            "group = \"g\"\n[groups.g]",
            "tenants changed: a",
        ),
        // What a tenant does not say itself it inherits.
        (
            "[tenants.a]",
            "[tenant_defaults]\nrate_limit_rpm = 5\n[tenants.a]",
            "tenants changed: a, b; settings changed: tenant_defaults",
        ),
    ] {
        assert_eq!(change(from, to), expected, "{to}");
    }
}

#[test]
fn queue_and_planner_of_a_model_change_in_place() {
    for key in [
        "queue_size = 7",
        "aliases = [\"n\"]",
        "short_name = \"n\"",
        "long_prompt_tokens = 9",
        "pinned = true",
        "idle_ttl = \"5m\"",
        "autostart = false",
        "start_timeout = \"7s\"",
        "stop_grace = \"7s\"",
    ] {
        let changes = change("id = \"m\"", &format!("id = \"m\"\n{key}"));
        assert_eq!(changes, "models changed: m", "{key}");
    }
    // Somebody else's server stays what it is.
    let far = change("id = \"far\"", "id = \"far\"\nmax_concurrent = 3");
    assert_eq!(far, "models changed: far");
}

#[test]
fn what_an_engine_is_started_with_needs_another_engine() {
    let other = "models changed: m; engines that give way to new ones:";
    for key in [
        "extra_args = [\"--x\"]",
        "max_model_len = 999",
        "memory = \"3GiB\"",
        "env = { A = \"b\" }",
    ] {
        let first = change("id = \"m\"", &format!("id = \"m\"\n{key}"));
        assert_eq!(first, format!("{other} m"), "{key}");
        let replica = change("replica_of = \"m\"", &format!("replica_of = \"m\"\n{key}"));
        assert_eq!(replica, format!("{other} m#2"), "{key}");
    }
    // How many run at once is said to all engines of the model, also by a preset.
    for key in ["preset = \"tiny\"", "max_concurrent = 3"] {
        let all = change("id = \"m\"", &format!("id = \"m\"\n{key}"));
        assert_eq!(all, format!("{other} m, m#2"), "{key}");
    }
    assert_eq!(
        change("127.0.0.1:1", "127.0.0.1:2"),
        other.replace(": m;", ": far;") + " far"
    );
}

#[test]
fn models_and_replicas_come_and_go() {
    let replica = "\n[[models]]\nreplica_of = \"m\"\nengine = \"sim\"";
    for (from, to, expected) in [
        (
            "[[models]]",
            "[[models]]\nid = \"n\"\nengine = \"sim\"\n[[models]]",
            "models added: n",
        ),
        (
            "id = \"far\"",
            "id = \"further\"",
            "models added: further; models removed: far",
        ),
        (replica, "", "models changed: m"),
    ] {
        assert_eq!(change(from, to), expected, "{to}");
    }
    // With a second model the first one may sleep; its engine stays.
    let (one, two) = (
        load(MODEL),
        load(&format!("{MODEL}[[models]]\nid = \"n\"\n")),
    );
    assert_ne!(one.models[0], two.models[0]);
    assert!(plan(&one, two).1.engines.is_empty());
}

#[test]
fn what_needs_a_restart_stays_as_it_is_and_is_told_each_time() {
    for (from, to, key) in [
        (":8000", ":9000", "listen"),
        ("listen", "workers = 3\nlisten", "workers"),
        ("listen", "log_level = \"debug\"\nlisten", "log_level"),
        ("listen", "data_dir = \"d\"\nlisten", "data_dir"),
        ("listen", "state_dir = \"s\"\nlisten", "state_dir"),
        ("listen", "gpu.memory = \"90GiB\"\nlisten", "gpu.memory"),
        ("listen", "log.events = \"e\"\nlisten", "log"),
        (
            "id = \"m\"",
            "id = \"m\"\nscheduling = \"fifo\"",
            "scheduling of m",
        ),
    ] {
        let running = load(BASE);
        let wanted = load(&BASE.replacen(from, to, 1));
        let (next, changes) = plan(&running, wanted.clone());
        assert_eq!(next, running, "{key}");
        let expected = format!("changes once kvwarden is restarted: {key}");
        assert_eq!(changes.to_string(), expected);
        assert_eq!(plan(&next, wanted).1, changes, "{key}");
    }
}

#[test]
fn settings_of_the_node_change_in_place() {
    for (line, key) in [
        ("limits.queue_timeout = \"1m\"", "limits"),
        ("auth.tenant_header = \"never\"", "auth"),
        ("gpu.max_wait = \"1m\"", "gpu.max_wait"),
    ] {
        let changes = change("listen", &format!("{line}\nlisten"));
        assert_eq!(changes, format!("settings changed: {key}"));
    }
}

#[test]
fn revision_follows_what_an_engine_is_prepared_by() {
    let of = |text: &str| revision(&load(&BASE.replacen("id = \"m\"", text, 1)).models[0]);
    let base = of("id = \"m\"");
    assert_eq!(base, of("id = \"m\"\nqueue_size = 7"));
    assert_ne!(base, of("id = \"m\"\nstop_grace = \"7s\""));
    assert_ne!(base, of("id = \"m\"\nextra_args = [\"--x\"]"));
}
