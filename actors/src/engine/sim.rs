//! The simulated engine: our own binary, run as a child like any other. It speaks like vLLM.

use std::collections::BTreeMap;

use super::{
    Args, Launch, Start,
    dialect::{
        API_KEY, Dialect, KvOnDisk, KvRoom, NAME, ORDER,
        Owner::{self, Key},
        SourceKind,
    },
    vllm,
};

pub(super) static DIALECT: Dialect = Dialect {
    name: "sim",
    about: "The simulated engine",
    family: "sim",
    has_recipe: false,
    source: SourceKind::Preset,
    uses_gpu: false,
    takes: &[
        "preset",
        "step_tokens",
        "sleep",
        "memory",
        "extra_args",
        "env",
    ],
    owns: OWNS,
    owns_env: &[("VLLM_API_KEY", API_KEY)],
    max_concurrent: 256,
    cuts_prompts: true,
    kv_on_disk: KvOnDisk::Nowhere,
    // Its presets say what they take.
    kv_room: |_| KvRoom::Context,
    args,
    env,
    quirks: vllm::QUIRKS,
    fields: vllm::FIELDS,
    sleep: Some(vllm::SLEEP),
    gauges: Some(vllm::GAUGES),
};

const OWNS: &[(&str, Owner)] = &[
    ("--preset", Key("preset")),
    ("--served-model-name", NAME),
    ("--max-model-len", Key("max_model_len")),
    ("--max-num-seqs", Key("max_concurrent")),
    ("--max-num-batched-tokens", Key("step_tokens")),
    ("--long-prefill-token-threshold", Key("step_tokens")),
    ("--scheduling-policy", ORDER),
];

fn args(launch: &Launch, start: Start<'_>) -> Vec<String> {
    let preset = Args::default().pair("--preset", &launch.model);
    vllm::server_args(preset, launch, start)
        .maybe("--max-model-len", launch.flags.max_model_len)
        .0
}

fn env(_: &Launch, start: Start<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([("VLLM_API_KEY".to_owned(), start.key.to_owned())])
}
