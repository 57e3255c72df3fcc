//! Which keys of a model mean something to which engine.

use Engine::{Attach, Llamacpp, Sglang, SglangCpu, Sim, Vllm, VllmCpu};

use crate::config::{
    file::{Engine, Model},
    path::KeyPath,
    report::Report,
};

/// A key that not every engine takes.
struct Rule {
    key: &'static str,
    given: fn(&Model) -> bool,
    fits: &'static [Engine],
    /// Why it does not fit the others.
    why: &'static str,
}

const TORCH: &[Engine] = &[Vllm, VllmCpu, Sglang, SglangCpu];
const GPU: &[Engine] = &[Vllm, Sglang];
const WEIGHTS: &[Engine] = &[Vllm, VllmCpu, Sglang, SglangCpu, Llamacpp];
const STARTED: &[Engine] = &[Vllm, VllmCpu, Sglang, SglangCpu, Llamacpp, Sim];

const RULES: &[Rule] = &[
    Rule {
        key: "source",
        given: |model| model.source.is_some(),
        fits: WEIGHTS,
        why: "`sim` goes by `preset`, `attach` by `url`",
    },
    Rule {
        key: "preset",
        given: |model| model.preset.is_some(),
        fits: &[Sim],
        why: r#"presets belong to `engine = "sim"`"#,
    },
    Rule {
        key: "url",
        given: |model| model.url.is_some(),
        fits: &[Attach],
        why: r#"to use a server that runs already, set `engine = "attach"`"#,
    },
    Rule {
        key: "api_key_env",
        given: |model| model.api_key_env.is_some(),
        fits: &[Attach],
        why: "engines that kvwarden starts get a random key",
    },
    Rule {
        key: "dtype",
        given: |model| model.dtype.is_some(),
        fits: TORCH,
        why: "the number type of a .gguf file is chosen when the file is made",
    },
    Rule {
        key: "tensor_parallel_size",
        // 1 is true of every engine.
        given: |model| model.tensor_parallel_size.is_some_and(|size| size > 1),
        fits: GPU,
        why: "only `vllm` and `sglang` spread one model over GPUs this way",
    },
    Rule {
        key: "gpu_memory_utilization",
        given: |model| model.gpu_memory_utilization.is_some(),
        fits: GPU,
        why: "only `vllm` and `sglang` take a share of the GPU",
    },
    Rule {
        key: "threads",
        given: |model| model.threads.is_some(),
        fits: &[Llamacpp],
        why: r#"vLLM and SGLang go by variables: `env = { OMP_NUM_THREADS = "2" }`"#,
    },
    Rule {
        key: "step_tokens",
        given: |model| model.step_tokens.is_some(),
        fits: &[Vllm, VllmCpu, Sim],
        why: "only vLLM and `sim` are told how much a step computes",
    },
    Rule {
        key: "kv_cache",
        given: |model| model.kv_cache.is_some(),
        fits: &[Vllm, VllmCpu],
        why: "only vLLM takes it; llama.cpp's follows from `max_model_len` and `max_concurrent`",
    },
    Rule {
        key: "kv_cpu",
        given: |model| model.kv_cpu.is_some(),
        fits: &[Vllm, Sglang, Llamacpp],
        why: "on a CPU the KV cache is in host memory already",
    },
    Rule {
        key: "kv_ssd",
        given: |model| model.kv_ssd.is_some(),
        fits: &[Vllm, Sglang, Llamacpp],
        why: "this engine can't keep KV on disk",
    },
    Rule {
        key: "sleep",
        given: |model| model.sleep.as_ref().is_some_and(|rungs| !rungs.is_empty()),
        fits: &[Vllm, Sglang, Sim],
        why: "this engine gives memory back only when it stops",
    },
    Rule {
        key: "memory",
        given: |model| model.memory.is_some(),
        fits: STARTED,
        why: "kvwarden does not start this server",
    },
    Rule {
        key: "gpus",
        given: |model| !model.gpus.is_empty(),
        fits: &[Vllm, Sglang, Llamacpp],
        why: "it runs on no GPU",
    },
    Rule {
        key: "executable",
        given: |model| model.executable.is_some(),
        fits: WEIGHTS,
        why: "there is nothing else to run",
    },
    Rule {
        key: "extra_args",
        given: |model| !model.extra_args.is_empty(),
        fits: STARTED,
        why: "kvwarden does not start this server",
    },
    Rule {
        key: "env",
        given: |model| !model.env.is_empty(),
        fits: STARTED,
        why: "kvwarden does not start this server",
    },
];

/// Reports keys that the model's engine has no use for: their author expects something of them.
pub(super) fn check_fits(path: &KeyPath, model: &Model, engine: Engine, report: &mut Report) {
    let misfit = |rule: &&Rule| (rule.given)(model) && !rule.fits.contains(&engine);
    for Rule { key, why, .. } in RULES.iter().filter(misfit) {
        let message = format!("`{key}` means nothing to the engine `{}`", engine.name());
        report.problem(&path.key(key), message, format!("leave it out: {why}"));
    }
}
