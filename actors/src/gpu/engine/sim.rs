//! The simulated engine: our own binary, run as a child like any other.

use std::collections::BTreeMap;

use super::{Args, Launch, Start};

pub(super) fn args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let flags = &launch.flags;
    Args::default()
        .pair("--preset", &launch.model)
        .pair("--host", "127.0.0.1")
        .pair("--port", start.port)
        .pair("--served-model-name", &launch.served_name)
        .pair("--max-num-seqs", flags.capacity.engine_sequences())
        .pair("--max-num-batched-tokens", flags.capacity.step_tokens)
        // A step full of long prompts keeps room for a short one.
        .pair(
            "--long-prefill-token-threshold",
            flags.capacity.chunk_tokens,
        )
        // What queues inside stays in the order of our own queue.
        .pair("--scheduling-policy", "priority")
        .maybe("--max-model-len", flags.max_model_len)
        .0
}

pub(super) fn env(start: Start<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([("VLLM_API_KEY".to_owned(), start.key.to_owned())])
}
