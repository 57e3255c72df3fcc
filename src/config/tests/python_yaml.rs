//! The YAML of the Python KVWarden.

use std::time::Duration;

use kvwarden_actors::engine::EngineKind;

use super::*;
use crate::config::{ModelSource, TenantHeader};

fn try_yaml(text: &str) -> Result<Loaded, ConfigError> {
    load_at("node.yaml", text, &[])
}

fn warned(text: &str) -> Vec<String> {
    let warnings = try_yaml(text)
        .unwrap_or_else(|error| panic!("{}", error.render()))
        .warnings;
    let line = |p: &Problem| format!("{} {}: {}", p.at.map_or(0, |at| at.0), p.key, p.message);
    warnings.iter().map(line).collect()
}

/// Every key the Python KVWarden reads, with values that differ from its defaults.
const ALL_KEYS: &str = r#"
host: 127.0.0.1
port: 8001
gpu_budget_fraction: 0.92
max_concurrent: 256
admission_queue_size: 2048
engine_start_timeout_s: 420
health_check_interval_s: 5
log_level: WARNING
metrics_port: 9091
tenant_defaults:
  max_concurrent_requests: 512
  rate_limit_rpm: 6000
  rate_limit_burst: 10
  max_gpu_memory_gb: 20.0
  priority: 2
  scheduling: drr
cache:
  tiers:
    - {name: gpu, capacity_gb: 40.0, latency_ms: 0.01}
  eviction_frequency_weight: 0.5
  eviction_recency_weight: 0.5
  block_size_tokens: 32
models:
  - model_id: "org/Model-8B"
    short_name: model
    engine: sglang
    tensor_parallel_size: 2
    gpu_memory_utilization: 0.4
    max_model_len: 4096
    dtype: float16
    port: 8100
    extra_args: ["--enable-metrics"]
"#;

#[test]
fn every_key_that_counted_counts() {
    let config = try_yaml(ALL_KEYS).unwrap().config;
    assert_eq!(config.listen.to_string(), "127.0.0.1:8001");
    assert_eq!(config.log_level, "warn");
    let limits = &config.tenant_defaults;
    assert_eq!(limits.requests, Some((6000, 10)));
    assert_eq!(limits.concurrency, Some(512));
    assert_eq!(limits.priority, 2);
    let model = &config.models[0];
    assert_eq!(model.id.as_str(), "org/Model-8B");
    assert_eq!(model.engine, EngineKind::Sglang);
    assert_eq!(model.aliases, ["model"]);
    assert_eq!(model.source, ModelSource::Hub("org/Model-8B".to_owned()));
    assert_eq!(model.start_timeout, Duration::from_secs(420));
    assert_eq!(model.queue_size, 2048);
    assert_eq!(model.flags.capacity.sequences, 256);
    assert_eq!(model.flags.tensor_parallel, 2);
    assert_eq!(model.flags.gpu_memory_utilization, Some(0.4));
    assert_eq!(model.flags.dtype.as_deref(), Some("float16"));
    assert_eq!(model.flags.extra_args, ["--enable-metrics"]);
}

#[test]
fn every_key_without_effect_is_told() {
    let expected = [
        "4 gpu_budget_fraction: `gpu_budget_fraction` has no effect",
        "8 health_check_interval_s: `health_check_interval_s` has no effect",
        "10 metrics_port: `metrics_port` has no effect",
        "15 tenant_defaults.max_gpu_memory_gb: `max_gpu_memory_gb` has no effect",
        "17 tenant_defaults.scheduling: `scheduling` has no effect",
        "20 cache.tiers[0]: the tier `gpu` has no effect",
        "20 cache.tiers[0].latency_ms: `latency_ms` has no effect",
        "21 cache.eviction_frequency_weight: `eviction_frequency_weight` has no effect",
        "22 cache.eviction_recency_weight: `eviction_recency_weight` has no effect",
        "23 cache.block_size_tokens: `block_size_tokens` has no effect",
        "32 models[0].port: `port` has no effect",
    ];
    assert_eq!(warned(ALL_KEYS), expected);
}

#[test]
fn tiers_below_the_gpu_are_divided_among_models_that_can_use_them() {
    let text = "
host: 127.0.0.1
models: [{model_id: a}, {model_id: b, engine: sglang}]
cache:
  tiers: [{name: cpu, capacity_gb: 8}, {name: ssd, capacity_gb: 100}]
";
    let loaded = try_yaml(text).unwrap();
    let tiers = loaded.config.models.iter().map(|model| {
        let flags = &model.flags;
        (flags.kv_cpu_bytes, flags.kv_ssd_bytes)
    });
    let part = (Some(4 << 30), Some(50 << 30));
    assert_eq!(tiers.collect::<Vec<_>>(), [part, part]);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn what_it_left_out_has_the_values_it_had() {
    let loaded = try_yaml("models:\n- model_id: Org/Model-8B\n").unwrap();
    let config = loaded.config;
    assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.auth.tenant_header, TenantHeader::Always);
    assert_eq!(config.tenant_defaults.requests, Some((600, 600)));
    assert_eq!(config.tenant_defaults.concurrency, Some(64));
    let model = &config.models[0];
    assert_eq!(model.aliases, ["model-8b"]);
    assert_eq!(model.flags.capacity.sequences, 128);
    assert_eq!(model.flags.max_model_len, Some(8192));
    assert_eq!(model.flags.gpu_memory_utilization, Some(0.85));
    assert_eq!(model.start_timeout, Duration::from_secs(300));
    // It believed everybody on every address; that is kept, and said.
    assert!(loaded.warnings[0].message.contains("X-Tenant-ID"));
}

#[test]
fn engines_that_it_never_had_keep_their_own_defaults() {
    let model = |engine: &str, keys: &str| {
        let text =
            format!("host: 127.0.0.1\nmodels:\n- model_id: org/m\n  engine: {engine}\n{keys}");
        try_yaml(&text).map(|loaded| loaded.config.models[0].flags.clone())
    };
    for (engine, sequences) in [("vllm-cpu", 8), ("sglang-cpu", 8), ("sim", 256)] {
        let flags = model(engine, "").unwrap();
        assert_eq!((flags.dtype, flags.max_model_len), (None, None), "{engine}");
        assert_eq!(flags.gpu_memory_utilization, None, "{engine}");
        assert_eq!(flags.capacity.sequences, sequences, "{engine}");
    }
    // What it lacks it says, and blames the file for nothing that is not in it.
    for (engine, lacks) in [("llamacpp", "model_id"), ("attach", "url")] {
        let problems = model(engine, "").unwrap_err().problems;
        let keys: Vec<_> = problems
            .iter()
            .map(|problem| problem.key.to_string())
            .collect();
        assert_eq!(
            keys,
            [format!("models[0].{lacks}")],
            "{engine}: {problems:?}"
        );
    }
    let problems = model("vllm-cpu", "  gpu_memory_utilization: 0.5\n")
        .unwrap_err()
        .problems;
    assert!(
        problems[0]
            .key
            .to_string()
            .ends_with("gpu_memory_utilization")
    );
}

#[test]
fn open_host_is_kept_and_warned_about_at_its_line() {
    let told = warned("host: 0.0.0.0\nmodels: [{model_id: a}]\n");
    assert_eq!(told.len(), 1);
    assert!(
        told[0].starts_with("1 host: whoever reaches 0.0.0.0:8080"),
        "{told:?}"
    );
}

#[test]
fn short_names_it_made_up_never_clash() {
    let text = "models:\n- model_id: a/M\n- model_id: b/M\n- {model_id: c, short_name: c}\n";
    let models = try_yaml(text).unwrap().config.models;
    let aliases: Vec<_> = models.iter().map(|model| model.aliases.concat()).collect();
    assert_eq!(aliases, ["m", "", ""]);
}

#[test]
fn anchors_and_merge_keys_work() {
    let text = r#"
baseline: &baseline
  host: 127.0.0.1
  port: 8001
  models:
    - &model
      model_id: org/a
      gpu_memory_utilization: 0.4
    - <<: *model
      model_id: org/b
<<: *baseline
port: 8002
"#;
    let loaded = try_yaml(text).unwrap();
    assert_eq!(loaded.config.listen.to_string(), "127.0.0.1:8002");
    let [a, b] = &loaded.config.models[..] else {
        panic!("two models");
    };
    assert_eq!((a.id.as_str(), b.id.as_str()), ("org/a", "org/b"));
    assert_eq!(b.flags.gpu_memory_utilization, Some(0.4));
    assert_eq!(
        warned(text),
        ["2 baseline: `baseline` is not a known key and has no effect"]
    );
}

#[test]
fn unknown_key_is_a_warning_with_the_nearest() {
    let text = "host: 127.0.0.1\nmodels:\n- model_id: a\n  max_model_length: 5\ntenants: {a: {}}\n";
    let warnings = try_yaml(text).unwrap().warnings;
    let help: Vec<_> = warnings.iter().map(|w| w.help.clone().unwrap()).collect();
    assert_eq!(help[0], "did you mean `max_model_len`?");
    assert!(help[1].contains("TOML form"), "{}", help[1]);
}

#[test]
fn later_of_two_equal_keys_counts_and_is_told() {
    let text = "host: 127.0.0.1\nport: 1\nport: 2\nmodels: [{model_id: a}]\n";
    assert_eq!(try_yaml(text).unwrap().config.listen.port(), 2);
    assert_eq!(
        warned(text),
        ["3 port: stands here more than once; the last one counts"]
    );
}

#[test]
fn problems_are_told_by_the_keys_of_the_yaml() {
    let text = "host: nowhere\nmax_concurrent: 0\nmodels:\n  - model_id: a b\n    engine: tgi\n";
    let expected = [
        "1:7 host",
        "2:17 max_concurrent",
        "4:15 models[0].model_id",
        "5:13 models[0].engine",
    ];
    assert_eq!(places(try_yaml(text)), expected);
}

#[test]
fn yaml_that_is_none_has_one_problem_with_a_place() {
    assert_eq!(places(try_yaml("models:\n  - a: [1\n")), ["2:8 "]);
    for text in ["", "- a\n", "just text"] {
        assert!(try_yaml(text).is_err());
    }
}
