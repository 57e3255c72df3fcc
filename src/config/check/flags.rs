//! What the engine of a model is told.

use kvwarden_actors::gpu::engine::EngineFlags;

use super::positive;
use crate::config::{
    file::{Engine, EngineDefaults, Model},
    path::KeyPath,
    report::Report,
};

/// Resolves and checks the numbers of a model.
pub(super) fn flags(
    path: &KeyPath,
    model: &Model,
    engine: Engine,
    defaults: &EngineDefaults,
    report: &mut Report,
) -> EngineFlags {
    let present = [
        ("max_model_len", model.max_model_len),
        ("tensor_parallel_size", model.tensor_parallel_size),
        ("threads", model.threads),
    ];
    for (key, value) in present {
        positive(&path.key(key), value != Some(0), report);
    }
    positive(
        &path.key("kv_cache"),
        model.kv_cache.is_none_or(|size| size.0 > 0),
        report,
    );
    if model
        .gpu_memory_utilization
        .is_some_and(|share| !(share > 0.0 && share <= 1.0))
    {
        let help = "write a share above 0 and up to 1: 0.9 leaves a tenth of the memory free";
        let key = path.key("gpu_memory_utilization");
        report.problem(
            &key,
            "not a share of the GPU's memory",
            Some(help.to_owned()),
        );
    }
    let mut env = defaults.env.clone();
    env.extend(model.env.clone());
    EngineFlags {
        cpu: matches!(engine, Engine::VllmCpu | Engine::SglangCpu),
        max_concurrent: at_least_one(
            path,
            "max_concurrent",
            model.max_concurrent,
            default_concurrency(engine),
            report,
        ),
        max_model_len: model.max_model_len,
        dtype: model.dtype.clone(),
        tensor_parallel: model.tensor_parallel_size.unwrap_or(1),
        gpu_memory_utilization: model.gpu_memory_utilization,
        threads: model.threads,
        kv_cache_bytes: model.kv_cache.map(|size| size.0),
        extra_args: [&defaults.extra_args[..], &model.extra_args[..]].concat(),
        env,
    }
}

/// A number that has a default and makes no sense as zero.
pub(super) fn at_least_one<N: Default + PartialEq>(
    path: &KeyPath,
    key: &str,
    value: Option<N>,
    default: N,
    report: &mut Report,
) -> N {
    let value = value.unwrap_or(default);
    positive(&path.key(key), value != N::default(), report);
    value
}

fn default_concurrency(engine: Engine) -> u32 {
    match engine {
        Engine::Llamacpp => 4,
        Engine::VllmCpu | Engine::SglangCpu => 8,
        Engine::Vllm | Engine::Sglang | Engine::Sim | Engine::Attach => 256,
    }
}
