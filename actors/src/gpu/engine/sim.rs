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
        .pair("--max-num-seqs", flags.max_concurrent)
        .maybe("--max-model-len", flags.max_model_len)
        .0
}

pub(super) fn env(start: Start<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([("VLLM_API_KEY".to_owned(), start.key.to_owned())])
}
