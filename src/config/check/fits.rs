//! Which keys of a model mean something to which engine.

use Engine::{Attach, Llamacpp, Sglang, SglangCpu, Sim, Vllm, VllmCpu};

use crate::config::{
    file::{Engine, ModelTable, given},
    report::Section,
};

const TORCH: &[Engine] = &[Vllm, VllmCpu, Sglang, SglangCpu];
const GPU: &[Engine] = &[Vllm, Sglang];
const WEIGHTS: &[Engine] = &[Vllm, VllmCpu, Sglang, SglangCpu, Llamacpp];
/// Engines that can have a table of their own.
pub(super) const STARTED: &[Engine] = &[Vllm, VllmCpu, Sglang, SglangCpu, Llamacpp, Sim];

/// Keys that not every engine takes, who takes them, and why they do not fit the others.
const RULES: &[(&str, &[Engine], &str)] = &[
    (
        "source",
        WEIGHTS,
        "`sim` goes by `preset`, `attach` by `url`",
    ),
    ("preset", &[Sim], r#"presets belong to `engine = "sim"`"#),
    (
        "url",
        &[Attach],
        r#"to use a server that runs already, set `engine = "attach"`"#,
    ),
    (
        "api_key_env",
        &[Attach],
        "engines that kvwarden starts get a random key",
    ),
    (
        "dtype",
        TORCH,
        "the number type of a .gguf file is chosen when the file is made",
    ),
    (
        "tensor_parallel_size",
        GPU,
        "only `vllm` and `sglang` spread one model over GPUs this way",
    ),
    (
        "gpu_memory_utilization",
        GPU,
        "only `vllm` and `sglang` take a share of the GPU",
    ),
    (
        "threads",
        &[VllmCpu, SglangCpu, Llamacpp],
        r#"vLLM and SGLang go by variables: `env = { OMP_NUM_THREADS = "2" }`"#,
    ),
    (
        "step_tokens",
        &[Vllm, VllmCpu, Sim],
        "only vLLM and `sim` are told how much a step computes",
    ),
    (
        "kv_cache",
        &[Vllm, VllmCpu],
        "only vLLM takes it; llama.cpp's follows from `max_model_len` and `max_concurrent`",
    ),
    (
        "kv_cpu",
        &[Vllm, Sglang, Llamacpp],
        "on a CPU the KV cache is in host memory already",
    ),
    (
        "kv_ssd",
        &[Vllm, Sglang, Llamacpp],
        "this engine can't keep KV on disk",
    ),
    (
        "sleep",
        &[Vllm, Sglang, Sim],
        "this engine gives memory back only when it stops",
    ),
    ("memory", STARTED, "kvwarden does not start this server"),
    ("gpus", &[Vllm, Sglang, Llamacpp], "it runs on no GPU"),
    ("executable", WEIGHTS, "there is nothing else to run"),
    ("extra_args", STARTED, "kvwarden does not start this server"),
    ("env", STARTED, "kvwarden does not start this server"),
];

/// Reports keys that the model's engine has no use for: their author expects something of them.
pub(super) fn check_fits(section: &mut Section<'_>, model: &ModelTable, engine: Engine) {
    let given = given(model);
    for (key, fits, why) in RULES {
        // One GPU is true of every engine.
        let is_true = *key == "tensor_parallel_size" && model.tensor_parallel_size <= 1;
        if given.contains_key(*key) && !fits.contains(&engine) && !is_true {
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
