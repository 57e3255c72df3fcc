//! The simulated engine: our own binary, run as a child like any other.

use std::collections::BTreeMap;

use super::{Args, Launch, Start, vllm};

pub(super) fn args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    vllm::dialect(
        Args::default().pair("--preset", &launch.model),
        launch,
        start,
    )
    .maybe("--max-model-len", launch.flags.max_model_len)
    .0
}

pub(super) fn env(start: Start<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([("VLLM_API_KEY".to_owned(), start.key.to_owned())])
}
