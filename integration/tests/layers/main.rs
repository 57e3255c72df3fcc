//! Which folder may import which: the order of the layers, kept by reading the sources.
//!
//! Cargo keeps the direction between the crates (policy knows no actors, actors no HTTP); these tests
//! keep it between the folders of each, and between the files of those folders whose files have an
//! order. `cargo test -p kvwarden-integration --test layers -- --nocapture`
//! prints the folders with what they import; `KVWARDEN_TREE=DIR` reads another checkout.
#![expect(
    clippy::print_stdout,
    reason = "whoever asks for it sees the folders and what they import"
)]

mod imports;

use std::{collections::BTreeSet, path::PathBuf};

use imports::imports;
use kvwarden_integration::workspace;

/// From the top down: a layer may import the ones below it, and the modules within one layer each
/// other.
type Layers = &'static [&'static [&'static str]];

const KVWARDEN: Layers = &[
    &["cli"],
    &["lab"],
    &["serve"],
    &["http"],
    &["metrics"],
    &["journal"],
    &["config"],
    &["weights"],
    &["install"],
    &["shim"],
    &["sim"],
    &["layout"],
    &["terminal"],
    &["panic"],
];

const ACTORS: Layers = &[
    &["overview"],
    // The actors and what they say to each other: they know each other by nature.
    &[
        "gpu", "ledger", "model", "observer", "protocol", "router", "tenant", "ticket", "vitals",
    ],
    &["process"],
    &["engine"],
    &["device"],
    &["files"],
];

const POLICY: Layers = &[
    &["simulation"],
    &["residency"],
    &["lifecycle"],
    &["scheduling"],
    &["stall"],
    &["startup"],
    &["routing"],
    &["backoff"],
    &["failure"],
    &["cost"],
    &["tier"],
    &["quota"],
    &["bucket"],
    &["id"],
];

const PROCESS: Layers = &[
    &["attached"],
    &["supervise"],
    &["prove", "startup", "transition"],
    &["start"],
    &["task"],
    &["end"],
    &["handover", "orphans"],
    &["child", "shim"],
    &["cgroup", "leadership", "tree"],
];

const HTTP: Layers = &[
    &["server"],
    &["admin"],
    &["exchange"],
    &["attempt"],
    &["relay"],
    &["waiting"],
    &["answer"],
    &["record"],
    &["shared"],
    &["view"],
    &["series"],
    &["tokenize"],
    &["request"],
    &["refusal"],
    &["reason"],
    &["format", "pipe", "salt", "socket", "upstream"],
    &["limits"],
];

#[test]
fn folders_of_the_binary_import_downwards_only() {
    import_downwards_only("src", &[], KVWARDEN);
}

#[test]
fn folders_of_the_actors_import_downwards_only() {
    import_downwards_only("actors/src", &[], ACTORS);
}

#[test]
fn folders_of_the_policy_import_downwards_only() {
    import_downwards_only("actors/policy/src", &[], POLICY);
}

#[test]
fn parts_of_an_engines_task_import_downwards_only() {
    import_downwards_only("actors/src", &["process"], PROCESS);
}

#[test]
fn parts_of_a_requests_way_import_downwards_only() {
    import_downwards_only("src", &["http"], HTTP);
}

fn import_downwards_only(crate_root: &str, folder: &[&str], layers: Layers) {
    let tree = std::env::var_os("KVWARDEN_TREE").map(PathBuf::from);
    let root = tree.as_deref().unwrap_or(workspace()).join(crate_root);
    let imports = imports(&root, folder);
    let height = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    let mut upwards = Vec::new();
    for (from, to) in &imports {
        println!(
            "{from} > {}",
            Vec::from_iter(to.iter().map(String::as_str)).join(" ")
        );
        let is_upwards = |to: &&String| height(to) < height(from);
        upwards.extend(
            to.iter()
                .filter(is_upwards)
                .map(|to| format!("{from} > {to}")),
        );
    }
    let arrows: usize = imports.values().map(BTreeSet::len).sum();
    println!(
        "{}: {} modules, {arrows} arrows, {} upwards",
        root.display(),
        imports.len(),
        upwards.len()
    );
    let unknown: Vec<_> = imports
        .keys()
        .filter(|module| height(module).is_none())
        .collect();
    assert!(unknown.is_empty(), "in no layer: {unknown:?}");
    assert!(upwards.is_empty(), "imports that run upwards: {upwards:#?}");
}
