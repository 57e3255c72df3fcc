//! The proof on a GPU: what of it can be looked at without one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn gpu() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu")
}

#[test]
fn script_tells_its_steps_in_the_order_in_which_a_cut_run_tells_most() {
    let mut script = Command::new(gpu().join("run.sh"));
    let said = script.arg("--list").output().expect("bash and python3");
    let steps = String::from_utf8_lossy(&said.stdout);
    let steps: Vec<_> = steps.lines().collect();
    let order = [
        "doctor",
        "hero",
        "decode_flood",
        "prefill_flood",
        "rungs",
        "kv_offload",
        "leaks",
    ];
    assert_eq!(steps, order, "{said:?}");
}

#[test]
fn wheels_are_pinned_once_each_and_torch_is_not_among_them() {
    let list = fs::read_to_string(gpu().join("wheels.txt")).expect("the list");
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let pins = lines.map(|line| line.split_once("==").expect("a pin"));
    let mut names: Vec<_> = pins.map(|(name, _)| name).collect();
    assert_eq!(names.first(), Some(&"vllm"));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "named twice");
    let of_torch = |name: &&str| *name == "torch" || name.starts_with("nvidia-");
    assert!(!names.iter().any(of_torch), "the host's own");
}
