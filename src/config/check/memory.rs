//! Memory: what models take, where they may take it, and whether it can ever be enough.

use crate::{
    config::{
        ModelConfig, ModelSource, Residency,
        file::{File, ModelTable},
        path::KeyPath,
        report::{Report, Section},
        units::format_size,
    },
    weights,
};

pub(super) fn residency(section: &mut Section<'_>, model: &ModelTable) -> Residency {
    let idle_ttl = model.idle_ttl;
    section.positive("memory", model.memory != Some(0));
    section.positive("idle_ttl", idle_ttl.is_none_or(|ttl| !ttl.is_zero()));
    for (index, gpu) in model.gpus.iter().enumerate() {
        let is_index = gpu.parse::<u32>().is_ok();
        if !is_index && !gpu.starts_with("GPU-") && !gpu.starts_with("MIG-") {
            section
                .problem_in("gpus", index, format!("{gpu:?} is no GPU"))
                .help(r#"write an index such as "0" or a UUID as `nvidia-smi -L` prints it"#);
        }
    }
    let pinned = model.pinned;
    if pinned && idle_ttl.is_some() {
        section
            .problem("idle_ttl", "a pinned model is never unloaded")
            .help("leave one out");
    }
    Residency {
        memory: model.memory,
        gpus: model.gpus.clone(),
        pinned,
        idle_ttl,
    }
}

/// The configured capacity. A model that is larger could never start.
pub(super) fn check_gpu_memory(file: &File, models: &[ModelConfig], report: &mut Report) {
    let Some(capacity) = file.gpu.memory else {
        return;
    };
    report
        .section(KeyPath::of("gpu"))
        .positive("memory", capacity > 0);
    for (index, model) in models.iter().enumerate() {
        let needed = needed(model, capacity);
        if needed > capacity && capacity > 0 {
            let message = format!(
                "the model can never be loaded: it takes {} and `gpu.memory` is {}",
                format_size(needed.next_multiple_of(1 << 20)),
                format_size(capacity)
            );
            let help = "raise `gpu.memory`, or lower what it takes: smaller weights, `kv_cache`, \
                        `max_model_len`, `max_concurrent` or `tensor_parallel_size` over more GPUs";
            let at = match model.residency.memory {
                Some(_) => "memory",
                None => "id",
            };
            let mut section = report.section(KeyPath::of("models").index(index));
            section.problem(at, message).help(help);
        }
    }
}

/// As far as it can be told before anything is fetched.
fn needed(model: &ModelConfig, capacity: u64) -> u64 {
    if !model.engine.dialect().is_started() {
        return 0;
    }
    let source = match &model.source {
        ModelSource::Path(path) => path.display().to_string(),
        ModelSource::Preset(name) => name.clone(),
        ModelSource::Pypi(_) | ModelSource::Hub(_) | ModelSource::Url { .. } => String::new(),
    };
    let footprint = weights::footprint(model.engine, &model.flags, &source, model.residency.memory);
    footprint.map_or(0, |footprint| footprint.on(capacity))
}
