//! What to say about a key that the TOML form does not have.

use super::{file::File, path::KeyPath, read::nearest, report::Report, schema::Schema};

/// Keys with another name elsewhere (the Python KVWarden, vLLM, SGLang, llama.cpp), and what they
/// are here.
const RENAMED: &[(&[&str], &str)] = &[
    (
        &["host", "bind"],
        r#"write `listen = "HOST:PORT"` at the top of the file"#,
    ),
    (
        &["port"],
        r#"write `listen = "HOST:PORT"` at the top of the file; engines get a free port"#,
    ),
    (
        &["metrics_port"],
        "leave it out: `/metrics` is on the address of `listen`",
    ),
    (
        &["gpu_budget_fraction"],
        "set `gpu_memory_utilization` of each model",
    ),
    (
        &["gpu_memory_fraction", "mem_fraction_static"],
        "it is called `gpu_memory_utilization`",
    ),
    (
        &["max_gpu_memory_gb"],
        "leave it out: memory belongs to models (`gpu_memory_utilization`, `kv_cache`)",
    ),
    (
        &["cache"],
        "leave it out: the engine manages its KV cache; `kv_cache` of a model sets its size",
    ),
    (&["admission_queue_size"], "set `queue_size` of each model"),
    (
        &["engine_start_timeout_s"],
        r#"set `start_timeout = "300s"` of a model or an engine"#,
    ),
    (
        &["health_check_interval_s"],
        "leave it out: engines are watched all the time",
    ),
    (
        &["max_num_seqs", "max_running_requests", "parallel"],
        "it is called `max_concurrent`",
    ),
    (&["max_num_batched_tokens"], "it is called `step_tokens`"),
    (&["context_length"], "it is called `max_model_len`"),
    (
        &["ctx_size", "n_ctx"],
        "it is called `max_model_len`, per request",
    ),
    (&["tp", "tp_size"], "it is called `tensor_parallel_size`"),
    (&["model"], "the name is `id`, the weights are `source`"),
    (&["model_path", "path"], "it is called `source`"),
    (
        &["name"],
        "the name of a model is `id`; the name of a tenant stands in its heading, [tenants.NAME]",
    ),
    (&["base_url"], "it is called `url`, without `/v1`"),
    (
        &["api_key"],
        "write the SHA-256 of a tenant's key in `api_keys` (`kvwarden key` makes both); for `attach`, name a variable in `api_key_env`",
    ),
    (
        &["key"],
        "write the SHA-256 of a tenant's key in `api_keys`; `kvwarden key` makes both",
    ),
    (
        &["rpm", "requests_per_minute"],
        "it is called `rate_limit_rpm`",
    ),
    (&["burst"], "it is called `rate_limit_burst`"),
    (&["tpm"], "it is called `tokens_per_minute`"),
    (&["tpd"], "it is called `tokens_per_day`"),
    (&["max_queue_size"], "it is called `max_queued_requests`"),
    (&["org"], "it is called `group`"),
];

/// Reports the unknown keys of a TOML file.
pub(crate) fn report_unknown(unknown: &[KeyPath], report: &mut Report) {
    if unknown.is_empty() {
        return;
    }
    let schema = Schema::of::<File>();
    for path in unknown {
        let name = path.last_key().unwrap_or_default();
        report
            .problem_at_key(path, format!("`{name}` is not a known key"))
            .help(help(&schema, path, name));
    }
}

fn help(schema: &Schema, path: &KeyPath, name: &str) -> String {
    // A key of another table comes before a likeness to one of this table: `max_model_len` above
    // [[models]] is in the wrong place, not misspelt.
    let tables = schema.tables();
    let owner = tables.iter().find(|table| table.keys().contains(&name));
    if let Some(table) = owner.filter(|table| !is_in(path, table.key)) {
        return match table.key {
            "" => format!("`{name}` belongs at the top of the file, before the first [table]"),
            _ => format!("`{name}` belongs in {}", table.heading),
        };
    }
    if let Some((_, help)) = RENAMED.iter().find(|(old, _)| old.contains(&name)) {
        return (*help).to_owned();
    }
    let keys = schema.keys(&path.parent().unwrap_or_default());
    match nearest(name, &keys) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", keys.join(", ")),
    }
}

fn is_in(path: &KeyPath, table: &str) -> bool {
    match table {
        "" => path.steps().len() == 1,
        key => path.steps().len() > 1 && path.to_string().starts_with(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_renamed_key_is_also_a_key_where_it_is_refused() {
        // A name that one table has and another has not is answered by its owner instead.
        let schema = Schema::of::<File>();
        for old in RENAMED.iter().flat_map(|(names, _)| *names) {
            let tables = schema.tables();
            let is_owned = tables.iter().any(|table| table.keys().contains(old));
            assert!(!is_owned, "`{old}` is a key now");
        }
    }
}
