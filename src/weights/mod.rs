//! How much memory a model will take, told from its files before anything is started: the sizes of
//! its weights, and what a token of context costs. Only headers are read.

mod gguf;
mod safetensors;
mod shape;

use std::path::Path;

use kvwarden_actors::engine::{EngineFlags, EngineKind, Footprint, SGLANG_CPU_KV_TOKENS};
use kvwarden_policy::simulation::steps;
use shape::Shape;

/// What vLLM takes of a GPU by default, and SGLang of most.
const DEFAULT_SHARE: f64 = 0.9;
/// What vLLM's CPU build sets aside for KV by default.
const VLLM_CPU_KV: u64 = 1 << 30;

/// The bytes of a model's weights, and of its KV cache per token if that could be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weights {
    bytes: u64,
    shape: Option<Shape>,
}

/// What an engine will take of each device. `source` is what it loads: a path, else a preset's name
/// or a hub id. None where neither that nor `memory`, which its author set, tells.
#[must_use]
pub fn footprint(
    kind: EngineKind,
    flags: &EngineFlags,
    source: &str,
    memory: Option<u64>,
) -> Option<Footprint> {
    let derived = match kind {
        EngineKind::Attach => return None,
        EngineKind::Sim => simulated(source),
        EngineKind::Vllm | EngineKind::Sglang | EngineKind::LlamaCpp => {
            read(Path::new(source)).map(|weights| derive(kind, flags, weights))
        }
    };
    let Some(memory) = memory else {
        return derived;
    };
    let weights = derived.map_or(memory, |footprint| footprint.weights.min(memory));
    Some(Footprint {
        weights,
        kv: memory - weights,
        share: None,
    })
}

fn simulated(preset: &str) -> Option<Footprint> {
    let preset = steps::preset(preset)?;
    Some(Footprint {
        weights: preset.weight_bytes,
        kv: preset.kv_bytes_per_token * u64::from(preset.kv_tokens),
        share: None,
    })
}

fn read(path: &Path) -> Option<Weights> {
    let weights = if path.is_dir() {
        safetensors::bytes(path).map(|bytes| Weights {
            bytes,
            shape: shape::read(&path.join("config.json")),
        })
    } else if path.is_file() {
        gguf::read(path)
    } else {
        return None;
    };
    let told = |error: &std::io::Error| {
        tracing::warn!(path = %path.display(), %error, "the size of the weights is unknown");
    };
    weights.inspect_err(told).ok()
}

fn derive(kind: EngineKind, flags: &EngineFlags, weights: Weights) -> Footprint {
    let parts = u64::from(flags.tensor_parallel.max(1));
    let tokens = |tokens: u64| {
        let shape = weights.shape.as_ref();
        shape.map_or(0, |shape| tokens.saturating_mul(shape.kv_bytes_per_token))
    };
    let (kv, share) = match (kind, flags.cpu, flags.kv_cache_bytes) {
        (EngineKind::Vllm, true, bytes) => (bytes.unwrap_or(VLLM_CPU_KV), None),
        // Set per GPU already.
        (EngineKind::Vllm, false, Some(bytes)) => (bytes.saturating_mul(parts), None),
        (EngineKind::Sglang, true, _) => (tokens(SGLANG_CPU_KV_TOKENS.into()), None),
        (EngineKind::Vllm | EngineKind::Sglang, false, _) => {
            let share = flags.gpu_memory_utilization.unwrap_or(DEFAULT_SHARE);
            (0, Some(share))
        }
        (EngineKind::LlamaCpp | EngineKind::Sim | EngineKind::Attach, _, _) => {
            (tokens(llamacpp_context(flags, &weights)), None)
        }
    };
    Footprint {
        weights: weights.bytes.div_ceil(parts),
        kv: kv.div_ceil(parts),
        share,
    }
}

/// llama.cpp makes room for the whole context at its start.
fn llamacpp_context(flags: &EngineFlags, weights: &Weights) -> u64 {
    let own = || weights.shape.map_or(0, |shape| shape.context);
    let of_slots = |len: u32| u64::from(len) * flags.capacity.engine_sequences();
    flags.max_model_len.map_or_else(own, of_slots)
}

#[cfg(test)]
mod tests;
