//! llama.cpp's server: `llama-server`, or our launcher for the wheel `xllamacpp`, which takes the
//! same flags.

use std::collections::BTreeMap;

use super::{Args, Launch, Start};

pub(super) fn args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let flags = &launch.flags;
    // llama.cpp divides one context between its slots.
    let context = flags
        .max_model_len
        .map(|len| u64::from(len) * flags.capacity.engine_sequences());
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
        .maybe("--ctx-size", context)
        .maybe("--threads", launch.threads())
        .maybe("--threads-batch", launch.threads())
        .maybe("--cache-ram", flags.kv_cpu_bytes.map(|bytes| bytes >> 20))
        .maybe("--slot-save-path", slots)
        .0
}

pub(super) fn env(start: Start<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([("LLAMA_API_KEY".to_owned(), start.key.to_owned())])
}
