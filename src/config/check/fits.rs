//! Which keys of a model mean something to which engine.

use kvwarden_actors::engine::EngineKind;

use crate::config::{
    file::{ModelTable, given},
    report::Section,
};

/// Keys that not every engine takes, and why the others do not. Which do says each engine.
const RULES: &[(&str, &str)] = &[
    ("source", "`sim` goes by `preset`, `attach` by `url`"),
    ("preset", r#"presets belong to `engine = "sim"`"#),
    (
        "url",
        r#"to use a server that runs already, set `engine = "attach"`"#,
    ),
    (
        "command",
        r#"to start a server by a command of yours, set `engine = "command"`"#,
    ),
    ("stop", "kvwarden knows how to end this engine"),
    ("probe", "kvwarden knows when this engine is up"),
    (
        "served_name",
        "kvwarden tells this engine what to call the model",
    ),
    ("api", "kvwarden knows what this engine answers"),
    (
        "api_key_env",
        "engines that kvwarden starts get a random key",
    ),
    (
        "dtype",
        "the number type of a .gguf file is chosen when the file is made",
    ),
    (
        "tensor_parallel_size",
        "only `vllm` and `sglang` spread one model over GPUs this way",
    ),
    (
        "gpu_memory_utilization",
        "only `vllm` and `sglang` take a share of the GPU",
    ),
    (
        "threads",
        r#"vLLM and SGLang go by variables: `env = { OMP_NUM_THREADS = "2" }`"#,
    ),
    (
        "step_tokens",
        "only vLLM and `sim` are told how much a step computes",
    ),
    (
        "kv_cache",
        "only vLLM takes it; llama.cpp's follows from `max_model_len` and `max_concurrent`",
    ),
    ("kv_cpu", "on a CPU the KV cache is in host memory already"),
    ("kv_ssd", "this engine can't keep KV on disk"),
    ("sleep", "this engine gives memory back only when it stops"),
    ("memory", "kvwarden does not start this server"),
    ("gpus", "it runs on no GPU"),
    (
        "executable",
        "`sim` is kvwarden itself, `attach` starts nothing, and `command` starts its first word",
    ),
    (
        "extra_args",
        "`attach` starts nothing, and `command` is started by the words of a model's `command` alone",
    ),
    ("env", "kvwarden does not start this server"),
];

/// Reports keys that the model's engine has no use for: their author expects something of them.
pub(super) fn check_fits(section: &mut Section<'_>, model: &ModelTable, engine: EngineKind) {
    let given = given(model);
    for (key, why) in RULES {
        // One GPU is true of every engine.
        let is_true = *key == "tensor_parallel_size" && model.tensor_parallel_size <= 1;
        if given.contains_key(*key) && !engine.dialect().takes(key) && !is_true {
            let engine = engine.name();
            section
                .problem(
                    key,
                    format!("`{key}` means nothing to the engine `{engine}`"),
                )
                .help(format!("leave it out: {why}"));
        }
    }
}
