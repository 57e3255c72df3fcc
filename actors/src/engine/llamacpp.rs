//! llama.cpp's server: `llama-server`, or our launcher for the wheel `xllamacpp`, which takes the
//! same flags.

use std::collections::BTreeMap;

use super::{
    Args, EngineFlags, Launch, Start,
    dialect::{
        API_KEY, Dialect, Gauges, KvOnDisk, KvRoom, MODEL, NAME,
        Owner::{self, Key},
        Quirks, ROOT, SourceKind, TLS,
    },
    fields::Fields,
};

pub(super) static DIALECT: Dialect = Dialect {
    name: "llamacpp",
    about: "llama.cpp's server",
    family: "llamacpp",
    has_recipe: true,
    source: SourceKind::Gguf,
    uses_gpu: false,
    takes: &[
        "source",
        "threads",
        "kv_cpu",
        "kv_ssd",
        "memory",
        "gpus",
        "executable",
        "extra_args",
        "env",
    ],
    owns: OWNS,
    owns_env: &[("LLAMA_API_KEY", API_KEY)],
    max_concurrent: 4,
    cuts_prompts: false,
    kv_on_disk: KvOnDisk::Slots,
    kv_room: room,
    args,
    env,
    quirks: Quirks {
        aborts_unstreamed: false,
        orders_by_priority: false,
        salts_prefix_cache: false,
        usage_is_per_choice: true,
        tokenizes_content: true,
    },
    fields: FIELDS,
    sleep: None,
    gauges: Some(Gauges {
        running: &["llamacpp:requests_processing"],
        waiting: &["llamacpp:requests_deferred"],
        // Its calls of `llama_decode`.
        work: &["llamacpp:n_decode_total"],
    }),
};

/// Those of its schema for completions. Not here beside what steers: what its templates tell its parser
/// (`chat_format`, `chat_parser`, `generation_prompt`, triggers and tags), which it believes or dies of, and
/// `backend_sampling`, which rebuilds its graph.
const FIELDS: Fields = Fields::Known(&[
    "adaptive_decay",
    "adaptive_target",
    "add_generation_prompt",
    "add_special",
    "chat_template_kwargs",
    "content",
    "continue_final_message",
    "dry_allowed_length",
    "dry_base",
    "dry_multiplier",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "dynatemp_range",
    "embd_normalize",
    "grammar",
    "ignore_eos",
    "json_schema",
    "min_keep",
    "min_p",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "n_cmpl",
    "n_discard",
    "n_indent",
    "n_keep",
    "n_predict",
    "n_probs",
    "parse_special",
    "parse_tool_calls",
    "post_sampling_probs",
    "reasoning_budget_tokens",
    "reasoning_format",
    "repeat_last_n",
    "repeat_penalty",
    "return_tokens",
    "samplers",
    "t_max_predict_ms",
    "thinking_budget_tokens",
    "timings_per_token",
    "top_k",
    "top_n_sigma",
    "typical_p",
    "verbose",
    "with_pieces",
    "xtc_probability",
    "xtc_threshold",
]);

const OWNS: &[(&str, Owner)] = &[
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

/// It makes room for the whole context at its start, and divides that between its slots.
fn room(flags: &EngineFlags) -> KvRoom {
    context(flags).map_or(KvRoom::Context, KvRoom::Tokens)
}

fn context(flags: &EngineFlags) -> Option<u64> {
    let sequences = flags.capacity.engine_sequences();
    flags.max_model_len.map(|len| u64::from(len) * sequences)
}

fn args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let flags = &launch.flags;
    let slots = flags.kv_ssd_bytes.map(|_| launch.kv_dir.display());
    Args::default()
        .pair("--model", &launch.model)
        .pair("--alias", &launch.served_name)
        .pair("--host", "127.0.0.1")
        .pair("--port", start.port)
        .pair("--parallel", flags.capacity.engine_sequences())
        // It speaks of its work between two batches only, and 2,048 tokens take a CPU minutes.
        .pair("--batch-size", flags.capacity.chunk_tokens)
        // Without pings a SIGTERM waits up to 32 s for idle keep-alive connections.
        .pair("--sse-ping-interval", 1)
        .word("--metrics")
        .word("--slots")
        .maybe("--ctx-size", context(flags))
        .maybe("--threads", launch.threads())
        .maybe("--threads-batch", launch.threads())
        .maybe("--cache-ram", flags.kv_cpu_bytes.map(|bytes| bytes >> 20))
        .maybe("--slot-save-path", slots)
        .0
}

fn env(_: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([("LLAMA_API_KEY".to_owned(), start.key.to_owned())])
}
