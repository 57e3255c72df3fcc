//! Reads the YAML of the Python KVWarden 0.1, which loads unchanged: what that one read but did not
//! use, and what it did not read, gives a warning and no problem.

use serde_json::Value;

use super::{
    file::File,
    path::KeyPath,
    places::Source,
    python::PythonFile,
    read::{nearest, read},
    report::Report,
    schema::Schema,
};

/// Keys it has that do nothing here, and why.
const NO_EFFECT: [(&str, &str); 10] = [
    (
        "gpu_budget_fraction",
        "it only was printed; `gpu_memory_utilization` of each model counts",
    ),
    (
        "health_check_interval_s",
        "engines are watched all the time",
    ),
    (
        "metrics_port",
        "nothing listened there; `/metrics` is on the API's port",
    ),
    (
        "tenant_defaults.scheduling",
        "tenants always share fairly, by tokens",
    ),
    (
        "tenant_defaults.max_gpu_memory_gb",
        "it only was printed; memory belongs to models",
    ),
    (
        "cache.eviction_frequency_weight",
        "engines evict their own blocks",
    ),
    (
        "cache.eviction_recency_weight",
        "engines evict their own blocks",
    ),
    ("cache.block_size_tokens", "engines choose their block size"),
    ("cache.tiers[].latency_ms", "nothing is planned by it"),
    (
        "models[].port",
        r#"engines get a free port on loopback; to use a server that runs already, write `engine = "attach"` and its `url` in the TOML form"#,
    ),
];

/// Reads the YAML form into the mirror of the TOML form.
pub(crate) fn read_yaml(document: &mut Value, repeated: &[KeyPath], report: &mut Report) -> File {
    let (python, unknown) = read::<PythonFile>(document, report);
    warn_repeated(repeated, report);
    warn_unknown(&unknown, report);
    warn_no_effect(document, &KeyPath::root(), "", report);
    warn_tiers(document, report);
    let file = python.into_file();
    name_sources(file.models.len(), report);
    file
}

/// Where the values of the mirror stand in this file, for later problems.
fn name_sources(models: usize, report: &mut Report) {
    let mut from = |key, name: KeyPath| report.comes_from(key, Source::Key(name));
    from(KeyPath::of("listen"), KeyPath::of("host"));
    // There is no key for the header; being open is what is worth a warning.
    from(
        KeyPath::of("auth").key("tenant_header"),
        KeyPath::of("host"),
    );
    for index in 0..models {
        let model = KeyPath::of("models").index(index);
        from(model.key("id"), model.key("model_id"));
        from(model.key("source"), model.key("model_id"));
        from(model.key("max_concurrent"), KeyPath::of("max_concurrent"));
        from(model.key("queue_size"), KeyPath::of("admission_queue_size"));
        from(
            model.key("start_timeout"),
            KeyPath::of("engine_start_timeout_s"),
        );
    }
}

fn warn_repeated(repeated: &[KeyPath], report: &mut Report) {
    for path in repeated {
        let message = "stands here more than once; the last one counts".to_owned();
        report.warning_at_key(path, message);
    }
}

fn warn_unknown(unknown: &[KeyPath], report: &mut Report) {
    let (python, native) = (Schema::of::<PythonFile>(), Schema::of::<File>());
    for path in unknown {
        let name = path.last_key().unwrap_or_default();
        let help = if native.at(path).is_some() {
            Some(format!(
                "`{name}` is a key of the TOML form, which can do all that this one can"
            ))
        } else {
            let keys = python.keys(&path.parent().unwrap_or_default());
            nearest(name, &keys).map(|near| format!("did you mean `{near}`?"))
        };
        let message = format!("`{name}` is not a known key and has no effect");
        report.warning_at_key(path, message).help = help;
    }
}

fn warn_tiers(document: &Value, report: &mut Report) {
    let path = KeyPath::of("cache").key("tiers");
    let tiers = document["cache"]["tiers"].as_array();
    for (index, tier) in tiers.into_iter().flatten().enumerate() {
        let at = path.index(index);
        match tier["name"].as_str() {
            Some("cpu" | "ssd") => {}
            Some("gpu") => report
                .warning(&at, "the tier `gpu` has no effect")
                .help("`gpu_memory_utilization` of each model decides it"),
            _ => report
                .warning(&at, "the tier has no effect")
                .help("tiers are `gpu`, `cpu` and `ssd`"),
        }
    }
}

/// `shape` is the path without numbers.
fn warn_no_effect(value: &Value, path: &KeyPath, shape: &str, report: &mut Report) {
    if let Some((_, why)) = NO_EFFECT.iter().find(|(key, _)| *key == shape)
        && value.as_u64() != Some(0)
    {
        let key = path.last_key().unwrap_or_default();
        report
            .warning_at_key(path, format!("`{key}` has no effect"))
            .help(*why);
    }
    if let Value::Array(list) = value {
        for (index, element) in list.iter().enumerate() {
            warn_no_effect(element, &path.index(index), &format!("{shape}[]"), report);
        }
    }
    if let Value::Object(table) = value {
        for (key, value) in table {
            let shape = format!("{shape}.{key}");
            warn_no_effect(value, &path.key(key), shape.trim_start_matches('.'), report);
        }
    }
}
