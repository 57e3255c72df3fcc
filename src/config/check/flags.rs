//! What the engine of a model is told.

use kvwarden_actors::engine::{EngineFlags, EngineKind, KvOnDisk};
use kvwarden_policy::{
    lifecycle::{SleepLevel, SleepLevels},
    scheduling::Capacity,
    simulation::steps,
};

use super::{
    own_server::own_server,
    source::{Context, PRESETS},
};
use crate::config::{
    file::{EngineDefaults, ModelTable},
    report::Section,
};

/// Resolves and checks the numbers of a model.
pub(super) fn flags(
    section: &mut Section<'_>,
    model: &ModelTable,
    engine: EngineKind,
    defaults: &EngineDefaults,
    context: &Context<'_>,
) -> EngineFlags {
    section.positive("max_model_len", model.max_model_len != Some(0));
    section.positive("tensor_parallel_size", model.tensor_parallel_size > 0);
    section.positive("threads", model.threads != Some(0));
    section.positive("kv_cache", model.kv_cache != Some(0));
    let share = model.gpu_memory_utilization;
    if share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
        section
            .problem("gpu_memory_utilization", "not a share of the GPU's memory")
            .help("write a share above 0 and up to 1: 0.9 leaves a tenth of the memory free");
    }
    let mut env = defaults.env.clone();
    env.extend(model.env.clone());
    EngineFlags {
        capacity: capacity(section, model, engine),
        max_model_len: model.max_model_len,
        dtype: model.dtype.clone(),
        tensor_parallel: model.tensor_parallel_size,
        gpu_memory_utilization: model.gpu_memory_utilization,
        threads: model.threads,
        kv_cache_bytes: model.kv_cache,
        kv_cpu_bytes: model.kv_cpu.filter(|bytes| *bytes > 0),
        kv_ssd_bytes: kv_ssd(section, model, engine),
        levels: levels(model, engine, context.has_several_models),
        own: own_server(section, model, engine, &env, context),
        extra_args: [&defaults.extra_args[..], &model.extra_args[..]].concat(),
        env,
    }
}

/// Enough for some long conversations on a small model; the node's own limit is `max_saved_kv`.
const SAVED_SLOTS: u64 = 512 << 20;

fn kv_ssd(section: &mut Section<'_>, model: &ModelTable, engine: EngineKind) -> Option<u64> {
    let kv_on_disk = engine.dialect().kv_on_disk;
    let through_memory = match kv_on_disk {
        KvOnDisk::Files | KvOnDisk::FilesWithoutLimit => true,
        KvOnDisk::Slots | KvOnDisk::Nowhere => false,
    };
    let given = model.kv_ssd;
    if through_memory && given.is_some_and(|bytes| bytes > 0) && model.kv_cpu.is_none() {
        section
            .problem("kv_ssd", "`kv_ssd` needs `kv_cpu`")
            .help(r#"add `kv_cpu`, such as "8GiB": blocks go to disk by way of host memory"#);
    }
    let default = (kv_on_disk == KvOnDisk::Slots).then_some(SAVED_SLOTS);
    given.or(default).filter(|bytes| *bytes > 0)
}

/// L1 is for who asks for it: it takes as much host memory as the model has weights.
fn levels(model: &ModelTable, engine: EngineKind, has_several_models: bool) -> SleepLevels {
    let sleeps = engine.dialect().sleep.is_some();
    match &model.sleep {
        Some(allowed) => allowed.iter().copied().map(SleepLevel::from).collect(),
        None if sleeps && has_several_models => SleepLevels::default()
            .with(SleepLevel::Parked)
            .with(SleepLevel::L2),
        None => SleepLevels::default(),
    }
}

/// A number that has a default and makes no sense as zero.
fn at_least_one<N: Default + PartialEq>(
    section: &mut Section<'_>,
    key: &str,
    value: Option<N>,
    default: N,
) -> N {
    let value = value.unwrap_or(default);
    section.positive(key, value != N::default());
    value
}

/// What the engine is told to do at once. Where it can't be told (SGLang, llama.cpp, an attached
/// server), vLLM's default step is assumed and nothing of how it cuts long prompts.
fn capacity(section: &mut Section<'_>, model: &ModelTable, engine: EngineKind) -> Capacity {
    let dialect = engine.dialect();
    let default = dialect.max_concurrent;
    let sequences = at_least_one(section, "max_concurrent", model.max_concurrent, default);
    let preset = model.preset.as_deref().unwrap_or(PRESETS[0]);
    let preset = steps::preset(preset).filter(|_| dialect.is_simulated());
    let default = preset.map_or(STEP_TOKENS, |preset| preset.max_num_batched_tokens);
    let step = at_least_one(section, "step_tokens", model.step_tokens, default);
    let kv_tokens = preset.map(|preset| preset.kv_tokens.into());
    let of_engine = Capacity::of_engine(sequences.into(), step.into(), kv_tokens);
    // No engine starts whose step is smaller than its batch.
    let step_tokens = of_engine.step_tokens.max(of_engine.engine_sequences());
    let chunk_tokens = match dialect.cuts_prompts {
        true => of_engine.chunk_tokens,
        false => step_tokens,
    };
    Capacity {
        step_tokens,
        chunk_tokens,
        ..of_engine
    }
}

/// vLLM's default on most hardware.
const STEP_TOKENS: u32 = 2048;
