//! What of a configuration can change while it runs, key by key.

use super::*;
use crate::config::change::{Changes, Difference, plan, revision};

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
fn change(from: &str, to: &str) -> Changes {
    assert!(BASE.contains(from), "{from}");
    plan(&load(BASE), load(&BASE.replacen(from, to, 1))).1
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn same_file_changes_nothing() {
    assert_eq!(change("", "# a comment\n"), Changes::default());
    assert_eq!(change("", "").to_string(), "nothing changed");
}

#[test]
fn tenants_come_change_and_go() {
    let tenants = |from, to| change(from, to).tenants;
    let added = tenants("[tenants.b]", "[tenants.b]\n[tenants.c]");
    assert_eq!(added.added, ["c"]);
    assert_eq!(tenants("[tenants.b]", "").removed, ["b"]);
    assert_eq!(tenants("weight = 1", "weight = 2").changed, ["a"]);
    let key = format!("api_keys = [\"sha256:{}\"]", "0".repeat(64));
    assert_eq!(tenants("weight = 1", &key).changed, ["a"]);
    let group = "group = \"g\"\n[groups.g]\nweight = 3";
    assert_eq!(tenants("weight = 1", group).changed, ["a"]);
    // What a tenant does not say itself it inherits.
    let defaults = change(
        "[tenants.a]",
        "[tenant_defaults]\nrate_limit_rpm = 5\n[tenants.a]",
    );
    assert_eq!(defaults.tenants.changed, ["a", "b"]);
    assert_eq!(defaults.settings, ["tenant_defaults"]);
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
        let expected = Changes {
            models: Difference {
                changed: names(&["m"]),
                ..Difference::default()
            },
            ..Changes::default()
        };
        assert_eq!(changes, expected, "{key}");
    }
}

#[test]
fn what_an_engine_is_started_with_needs_another_engine() {
    for key in [
        "extra_args = [\"--x\"]",
        "max_model_len = 999",
        "memory = \"3GiB\"",
        "env = { A = \"b\" }",
    ] {
        let changes = change("id = \"m\"", &format!("id = \"m\"\n{key}"));
        assert_eq!(changes.engines, ["m"], "{key}");
        assert_eq!(changes.models.changed, ["m"], "{key}");
        let replica = change("replica_of = \"m\"", &format!("replica_of = \"m\"\n{key}"));
        assert_eq!(replica.engines, ["m#2"], "{key}");
        assert_eq!(replica.models.changed, ["m"], "{key}");
    }
    // A preset says how many run at once; that is said to all engines of the model, though not to
    // somebody else's server.
    let all = change("id = \"m\"", "id = \"m\"\npreset = \"tiny\"");
    assert_eq!(all.engines, ["m", "m#2"]);
    let all = change("id = \"m\"", "id = \"m\"\nmax_concurrent = 3");
    assert_eq!(all.engines, ["m", "m#2"]);
    let far = change("id = \"far\"", "id = \"far\"\nmax_concurrent = 3");
    assert_eq!(
        (far.engines, far.models.changed),
        (names(&[]), names(&["far"]))
    );
    assert_eq!(change("127.0.0.1:1", "127.0.0.1:2").engines, ["far"]);
}

#[test]
fn models_and_replicas_come_and_go() {
    let added = change(
        "[[models]]",
        "[[models]]\nid = \"n\"\nengine = \"sim\"\n[[models]]",
    );
    assert_eq!(added.models.added, ["n"]);
    // With a second model the first one may sleep; its engine stays.
    assert_eq!(added.engines, names(&[]));
    assert_eq!(
        change("id = \"far\"", "id = \"further\"").models.removed,
        ["far"]
    );
    let replica = "\n[[models]]\nreplica_of = \"m\"\nengine = \"sim\"";
    let fewer = change(replica, "");
    assert_eq!(
        (fewer.models.changed, fewer.engines),
        (names(&["m"]), names(&[]))
    );
}

#[test]
fn what_needs_a_restart_stays_as_it_is_and_is_told_each_time() {
    for (from, to, key) in [
        (":8000", ":9000", "listen"),
        ("listen", "log_level = \"debug\"\nlisten", "log_level"),
        ("listen", "data_dir = \"d\"\nlisten", "data_dir"),
        ("listen", "state_dir = \"s\"\nlisten", "state_dir"),
        (
            "[tenants.a]",
            "[gpu]\nmemory = \"90GiB\"\n[tenants.a]",
            "gpu.memory",
        ),
        ("[tenants.a]", "[log]\nevents = \"e\"\n[tenants.a]", "log"),
        (
            "id = \"m\"",
            "id = \"m\"\nscheduling = \"fifo\"",
            "scheduling of m",
        ),
    ] {
        let running = load(BASE);
        let wanted = load(&BASE.replacen(from, to, 1));
        let (next, changes) = plan(&running, wanted.clone());
        let expected = Changes {
            needs_restart: names(&[key]),
            ..Changes::default()
        };
        assert_eq!((&next, changes), (&running, expected.clone()), "{key}");
        assert_eq!(plan(&next, wanted).1, expected, "{key}");
    }
}

#[test]
fn settings_of_the_node_change_in_place() {
    for (table, key) in [
        ("[limits]\nqueue_timeout = \"1m\"", "limits"),
        ("[auth]\ntenant_header = \"never\"", "auth"),
        ("[gpu]\nmax_wait = \"1m\"", "gpu.max_wait"),
    ] {
        let changes = change("[tenants.a]", &format!("{table}\n[tenants.a]"));
        let expected = Changes {
            settings: names(&[key]),
            ..Changes::default()
        };
        assert_eq!(changes, expected);
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
