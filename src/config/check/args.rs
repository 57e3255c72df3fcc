//! `extra_args` and `env` that would work against what kvwarden sets itself.

use std::collections::BTreeMap;

use crate::config::{
    file::Engine,
    path::KeyPath,
    report::{Report, Section},
};

/// Why a flag is not the author's.
enum Owner {
    /// kvwarden decides it at every start.
    Kvwarden(&'static str),
    /// It has a key, by which kvwarden also plans.
    Key(&'static str),
}
use Owner::{Key, Kvwarden};

const PORT: Owner = Kvwarden("kvwarden gives every start a free port");
const HOST: Owner =
    Kvwarden("engines listen on loopback only, or tenants could go around kvwarden");
const API_KEY: Owner =
    Kvwarden("every start gets a random key, passed where `ps` does not show it");
const NAME: Owner =
    Kvwarden("the engine serves the model under its `id`; more names go to `aliases`");
const MODEL: Owner = Kvwarden("the weights are `source`");
const ORDER: Owner = Kvwarden("what queues inside the engine has to keep kvwarden's order");
const CONFIG: Owner = Kvwarden("a second configuration would hide from `kvwarden check`");
const ROOT: Owner = Kvwarden("kvwarden asks for the paths at the root");
const TLS: Owner = Kvwarden("kvwarden speaks plain HTTP to its engines on loopback");

const COMMON: &[(&str, Owner)] = &[
    ("--port", PORT),
    ("--host", HOST),
    ("--api-key", API_KEY),
    ("--ssl-keyfile", TLS),
    ("--ssl-certfile", TLS),
];
const VLLM: &[(&str, Owner)] = &[
    ("--model", MODEL),
    ("--served-model-name", NAME),
    ("--uds", HOST),
    ("--root-path", ROOT),
    ("--config", CONFIG),
    ("--max-model-len", Key("max_model_len")),
    ("--max-num-seqs", Key("max_concurrent")),
    ("--dtype", Key("dtype")),
    ("--tensor-parallel-size", Key("tensor_parallel_size")),
    ("-tp", Key("tensor_parallel_size")),
    ("--gpu-memory-utilization", Key("gpu_memory_utilization")),
    ("--kv-cache-memory-bytes", Key("kv_cache")),
    ("--kv-offloading-size", Key("kv_cpu")),
    ("--enable-sleep-mode", Key("sleep")),
    ("--max-num-batched-tokens", Key("step_tokens")),
    ("--long-prefill-token-threshold", Key("step_tokens")),
    ("--scheduling-policy", ORDER),
];
const SGLANG: &[(&str, Owner)] = &[
    ("--model", MODEL),
    ("--model-path", MODEL),
    ("--served-model-name", NAME),
    ("--config", CONFIG),
    (
        "--device",
        Kvwarden("`engine` chooses it: `sglang` or `sglang-cpu`"),
    ),
    ("--context-length", Key("max_model_len")),
    ("--max-running-requests", Key("max_concurrent")),
    ("--dtype", Key("dtype")),
    ("--tensor-parallel-size", Key("tensor_parallel_size")),
    ("--tp-size", Key("tensor_parallel_size")),
    ("--tp", Key("tensor_parallel_size")),
    ("--mem-fraction-static", Key("gpu_memory_utilization")),
    ("--enable-hierarchical-cache", Key("kv_cpu")),
    ("--hicache-size", Key("kv_cpu")),
    ("--hicache-storage-backend", Key("kv_ssd")),
    ("--enable-memory-saver", Key("sleep")),
    ("--enable-weights-cpu-backup", Key("sleep")),
    ("--schedule-policy", ORDER),
    ("--enable-priority-scheduling", ORDER),
    ("--schedule-low-priority-values-first", ORDER),
    ("--disable-priority-preemption", ORDER),
    ("--default-priority-value", ORDER),
];
const LLAMACPP: &[(&str, Owner)] = &[
    ("--model", MODEL),
    ("-m", MODEL),
    ("--alias", NAME),
    ("-a", NAME),
    ("--api-key-file", API_KEY),
    ("--ssl-key-file", TLS),
    ("--ssl-cert-file", TLS),
    ("--api-prefix", ROOT),
    ("--ctx-size", Key("max_model_len")),
    ("-c", Key("max_model_len")),
    ("--parallel", Key("max_concurrent")),
    ("-np", Key("max_concurrent")),
    ("--threads", Key("threads")),
    ("-t", Key("threads")),
    ("--threads-batch", Key("threads")),
    ("--cache-ram", Key("kv_cpu")),
    ("-cram", Key("kv_cpu")),
    ("--slot-save-path", Key("kv_ssd")),
];
const SIM: &[(&str, Owner)] = &[
    ("--preset", Key("preset")),
    ("--served-model-name", NAME),
    ("--max-model-len", Key("max_model_len")),
    ("--max-num-seqs", Key("max_concurrent")),
    ("--max-num-batched-tokens", Key("step_tokens")),
    ("--long-prefill-token-threshold", Key("step_tokens")),
    ("--scheduling-policy", ORDER),
];

/// Variables that would undo what kvwarden puts into an engine's environment.
const ENV: &[(&str, Owner)] = &[
    ("VLLM_API_KEY", API_KEY),
    ("LLAMA_API_KEY", API_KEY),
    ("KVWARDEN_ENGINE_KEY", API_KEY),
    ("VLLM_CPU_KVCACHE_SPACE", Key("kv_cache")),
];

fn owned(engine: Engine) -> impl Iterator<Item = &'static (&'static str, Owner)> {
    let own: &[_] = match engine {
        Engine::Vllm | Engine::VllmCpu => VLLM,
        Engine::Sglang | Engine::SglangCpu => SGLANG,
        Engine::Llamacpp => LLAMACPP,
        Engine::Sim => SIM,
        Engine::Attach => &[],
    };
    COMMON.iter().chain(own)
}

/// Reports every argument and variable of a table that is not the author's to set.
pub(super) fn check_owned(
    section: &mut Section<'_>,
    args: &[String],
    env: &BTreeMap<String, String>,
    engine: Engine,
) {
    for (index, arg) in args.iter().enumerate() {
        // vLLM takes `--max_model_len` for `--max-model-len`.
        let flag = arg.split('=').next().unwrap_or_default().replace('_', "-");
        if let Some((name, owner)) = owned(engine).find(|(name, _)| *name == flag) {
            let at = section.path.key("extra_args").index(index);
            report_owned(&at, name, owner, section.report);
        }
    }
    for (name, owner) in ENV.iter().filter(|(name, _)| env.contains_key(*name)) {
        let at = section.path.key("env").key(name);
        report_owned(&at, name, owner, section.report);
    }
}

fn report_owned(at: &KeyPath, name: &str, owner: &Owner, report: &mut Report) {
    match owner {
        Kvwarden(why) => report
            .problem(at, format!("`{name}` is set by kvwarden"))
            .help(*why),
        Key(key) => report
            .problem(at, format!("`{name}` is set from `{key}`"))
            .help(format!("write `{key}` instead; kvwarden plans by it")),
    }
}
