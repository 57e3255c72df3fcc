//! Memory and what a model may do with it.

use kvwarden_policy::lifecycle::{SleepLevel, SleepLevels};

use super::*;

const SIM_8B: u64 = 16_060_522_496 + 131_072 * 440_000;

#[test]
fn model_that_can_never_fit_is_refused_with_both_sizes() {
    let text = format!("[gpu]\nmemory = \"8GiB\"\n{MODEL}");
    let (told, help) = told(&text);
    assert_eq!(
        told,
        format!(
            "models[0].id: the model can never be loaded: it takes {}MiB and `gpu.memory` is 8GiB",
            SIM_8B.div_ceil(1 << 20)
        )
    );
    assert!(help.contains("gpu.memory"), "{help}");
    let own = problem(&format!("{text}memory = \"9GiB\"\n"));
    assert_eq!(own.key.as_str(), "models[0].memory");
    assert_eq!(own.at, Some((6, 10)));
    let config = load(&format!("{text}memory = \"8GiB\"\n"));
    assert_eq!(config.gpu.memory, Some(8 << 30));
}

#[test]
fn sleep_is_for_nodes_with_several_models_unless_it_is_asked_for() {
    let levels = |text: &str| load(text).models[0].flags.levels;
    let none = SleepLevels::default();
    assert_eq!(levels(MODEL), none);
    let two = format!("{MODEL}{}", MODEL.replace("\"m\"", "\"n\""));
    assert_eq!(
        levels(&two),
        none.with(SleepLevel::Parked).with(SleepLevel::L2)
    );
    let asked = format!("{MODEL}sleep = [\"l1\"]\n");
    assert_eq!(levels(&asked), none.with(SleepLevel::L1));
    let never = two.replacen("\"sim\"", "\"sim\"\nsleep = []", 1);
    assert_eq!(levels(&never), none);
}

#[test]
fn disk_is_reached_through_host_memory() {
    let flags = &load(&model("vllm", "kv_cpu = \"4GiB\"\nkv_ssd = \"20GiB\"")).models[0].flags;
    assert_eq!(flags.kv_cpu_bytes, Some(4 << 30));
    assert_eq!(flags.kv_ssd_bytes, Some(20 << 30));
}

#[test]
fn llamacpp_keeps_slots_unless_told_not_to() {
    let ssd = |keys: &str| {
        let text = model("llamacpp", &format!("source = \"pypi:a/b.gguf\"\n{keys}"));
        load(&text).models[0].flags.kv_ssd_bytes
    };
    assert_eq!(ssd(""), Some(512 << 20));
    assert_eq!(ssd("kv_ssd = \"0B\""), None);
}

#[test]
fn model_may_be_pinned_and_kept_to_gpus() {
    let keys = "pinned = true\ngpus = [\"0\", \"GPU-1b2c\", \"MIG-3d\"]";
    let residency = &load(&model("vllm", keys)).models[0].residency;
    assert!(residency.pinned);
    assert_eq!(residency.gpus, ["0", "GPU-1b2c", "MIG-3d"]);
}
