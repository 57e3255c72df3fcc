//! SGLang (`sglang.launch_server`), through a launcher that reads the key from the environment:
//! SGLang itself takes it from argv only, which every user of the machine can read.

use std::{collections::BTreeMap, path::Path};

use kvwarden_policy::lifecycle::{SleepLevel, SleepLevels};
use serde_json::{Value, json};

use super::{
    Args, Launch, Start,
    dialect::{
        API_KEY, CONFIG, Call, Dialect, Gauges, KvOnDisk, KvRoom, MODEL, NAME, ORDER,
        Owner::{self, Key, Kvwarden},
        Quirks, Sleep, SourceKind,
    },
    fields::Fields,
    vllm::DEFAULT_SHARE,
};

pub(super) static GPU: Dialect = Dialect {
    name: "sglang",
    about: "SGLang on GPUs",
    family: "sglang",
    has_recipe: true,
    source: SourceKind::Weights,
    uses_gpu: true,
    takes: &[
        "source",
        "dtype",
        "tensor_parallel_size",
        "gpu_memory_utilization",
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
    cuts_prompts: false,
    kv_on_disk: KvOnDisk::Files,
    kv_room: |flags| KvRoom::Share(flags.gpu_memory_utilization.unwrap_or(DEFAULT_SHARE)),
    args: gpu_args,
    env: gpu_env,
    quirks: QUIRKS,
    fields: FIELDS,
    sleep: Some(SLEEP),
    gauges: Some(GAUGES),
};

pub(super) static CPU: Dialect = Dialect {
    name: "sglang-cpu",
    about: "SGLang on the CPU",
    family: "sglang",
    has_recipe: true,
    source: SourceKind::Weights,
    uses_gpu: false,
    takes: &[
        "source",
        "dtype",
        "threads",
        "memory",
        "executable",
        "extra_args",
        "env",
    ],
    owns: OWNS,
    owns_env: OWNS_ENV,
    max_concurrent: 8,
    cuts_prompts: false,
    kv_on_disk: KvOnDisk::Nowhere,
    kv_room: |_| KvRoom::Tokens(CPU_KV_TOKENS),
    args: cpu_args,
    env: cpu_env,
    quirks: QUIRKS,
    // A release kills it.
    fields: FIELDS,
    sleep: None,
    gauges: Some(GAUGES),
};

const OWNS: &[(&str, Owner)] = &[
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

const KEY_VARIABLE: &str = "KVWARDEN_ENGINE_KEY";
const OWNS_ENV: &[(&str, Owner)] = &[(KEY_VARIABLE, API_KEY)];

/// Not here beside what steers: what makes answers large or tells what is cached
/// (`return_routed_experts`, `return_cached_tokens_details`).
const FIELDS: Fields = Fields::Known(&[
    "add_generation_prompt",
    "add_special_tokens",
    "chat_template_kwargs",
    "continue_final_message",
    "ebnf",
    "ignore_eos",
    "images_config",
    "input_ids",
    "json_schema",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "min_p",
    "min_tokens",
    "mm_processor_kwargs",
    "no_stop_trim",
    "reasoning",
    "regex",
    "repetition_penalty",
    "return_meta_info",
    "return_prompt_token_ids",
    "return_spec_tokens_details",
    "return_token_ids",
    "sampling_logprobs_mode",
    "separate_reasoning",
    "skip_special_tokens",
    "stop_regex",
    "stop_token_ids",
    "stream_reasoning",
    "task",
    "thinking",
    "top_k",
    "use_audio_in_video",
    "video_config",
    "watermark",
]);

const QUIRKS: Quirks = Quirks {
    aborts_unstreamed: false,
    orders_by_priority: true,
    salts_prefix_cache: true,
    usage_is_per_choice: false,
    tokenizes_content: false,
};

const GAUGES: Gauges = Gauges {
    running: &["sglang:num_running_reqs"],
    waiting: &["sglang:num_queue_reqs"],
    // A prompt's tokens count as they are computed.
    work: &["sglang:realtime_tokens_total"],
};

/// Without a GPU SGLang sizes its KV cache from all of the machine's memory; this many tokens are
/// 0.7 GiB for a 135M model.
const CPU_KV_TOKENS: u64 = 32_768;

// === start ===

fn gpu_args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let flags = &launch.flags;
    let parallel = Some(flags.tensor_parallel).filter(|n| *n > 1);
    let args = common_args(launch, start)
        .maybe("--tp-size", parallel)
        .maybe("--mem-fraction-static", flags.gpu_memory_utilization)
        .flag_if("--enable-memory-saver", flags.may_sleep())
        .flag_if(
            "--enable-weights-cpu-backup",
            flags.levels.contains(SleepLevel::L1),
        );
    let Some(host) = flags.kv_cpu_bytes else {
        return args.0;
    };
    // It counts in whole decimal gigabytes.
    args.word("--enable-hierarchical-cache")
        .pair("--hicache-size", host.div_ceil(1_000_000_000))
        .maybe(
            "--hicache-storage-backend",
            flags.kv_ssd_bytes.map(|_| "file"),
        )
        .0
}

fn cpu_args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    common_args(launch, start)
        .pair("--device", "cpu")
        .pair("--attention-backend", "torch_native")
        .pair("--sampling-backend", "pytorch")
        .word("--disable-overlap-schedule")
        .pair("--max-total-tokens", CPU_KV_TOKENS)
        .0
}

fn common_args(launch: &Launch, start: Start<'_>) -> Args {
    let flags = &launch.flags;
    Args::default()
        .pair("--model-path", &launch.model)
        .pair("--host", "127.0.0.1")
        .pair("--port", start.port)
        .pair("--served-model-name", &launch.served_name)
        .pair("--max-running-requests", flags.capacity.engine_sequences())
        .word("--enable-metrics")
        // What queues inside stays in the order of our own queue: lower first, as the tags are. They
        // differ by thousands, which must not make it throw out what runs.
        .word("--enable-priority-scheduling")
        .word("--schedule-low-priority-values-first")
        .word("--disable-priority-preemption")
        .pair("--default-priority-value", 0)
        // `usage.prompt_tokens_details.cached_tokens`: what a prompt really cost.
        .word("--enable-cache-report")
        .maybe("--context-length", flags.max_model_len)
        .maybe("--dtype", flags.dtype.as_ref())
}

fn gpu_env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    let mut env = common_env(launch, start);
    if let Some(bytes) = launch.flags.kv_ssd_bytes {
        let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
        // It keeps to the limit by itself.
        let dir = launch.kv_dir.display().to_string();
        set("SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR", dir);
        set("SGLANG_HICACHE_FILE_BACKEND_MAX_SIZE", bytes.to_string());
    }
    env
}

fn cpu_env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    let mut env = common_env(launch, start);
    env.insert("SGLANG_USE_CPU_ENGINE".to_owned(), "1".to_owned());
    let threads = launch.threads().map(|threads| threads.to_string());
    env.extend(threads.map(|threads| ("OMP_NUM_THREADS".to_owned(), threads)));
    env
}

fn common_env(launch: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([(KEY_VARIABLE.to_owned(), start.key.to_owned())]);
    if Path::new(&launch.model).is_absolute() {
        env.insert("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
    }
    env
}

// === sleep ===

const SLEEP: Sleep = Sleep {
    described_at: "/server_info",
    levels,
    down,
    up,
};

const ALL: &[&str] = &["kv_cache", "weights", "cuda_graph"];

/// The endpoints are always there; without the memory saver they end in an error.
fn levels(info: &Value) -> SleepLevels {
    let on = |flag: &str| info[flag] == true;
    let none = SleepLevels::default();
    if !on("enable_memory_saver") {
        return none;
    }
    let parked = none.with(SleepLevel::Parked);
    match on("enable_weights_cpu_backup") {
        true => parked.with(SleepLevel::L1),
        false => parked,
    }
}

/// It either backs weights up always or never.
fn down(from: SleepLevel, to: SleepLevel) -> Option<Vec<Call>> {
    use SleepLevel::{Cold, L1, L2, Parked, Ready};
    match (from, to) {
        (Ready, Parked) => Some(vec![release(&["kv_cache"])]),
        (Ready, L1) => Some(vec![release(ALL)]),
        (Parked, L1) => Some(vec![release(&["weights", "cuda_graph"])]),
        (Ready | Parked, Ready | L2 | Cold) | (Parked, Parked) | (L1 | L2 | Cold, _) => None,
    }
}

fn up(from: SleepLevel) -> Vec<Call> {
    match from {
        SleepLevel::Parked => vec![resume(&["kv_cache"])],
        SleepLevel::L1 => vec![resume(ALL)],
        SleepLevel::L2 | SleepLevel::Ready | SleepLevel::Cold => Vec::new(),
    }
}

fn release(tags: &[&str]) -> Call {
    Call {
        path: "/release_memory_occupation",
        body: json!({ "tags": tags }),
    }
}

fn resume(tags: &[&str]) -> Call {
    Call {
        path: "/resume_memory_occupation",
        body: json!({ "tags": tags }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_released_and_resumed_once() {
        let tags = |calls: Vec<Call>| {
            let all = calls.into_iter().map(|call| call.body["tags"].clone());
            let mut tags: Vec<String> = all
                .flat_map(|tags| serde_json::from_value::<Vec<String>>(tags).unwrap())
                .collect();
            tags.sort();
            tags
        };
        let parked = down(SleepLevel::Ready, SleepLevel::Parked).unwrap();
        let deeper = down(SleepLevel::Parked, SleepLevel::L1).unwrap();
        let released = tags([parked, deeper].concat());
        assert_eq!(released, tags(up(SleepLevel::L1)));
    }
}
