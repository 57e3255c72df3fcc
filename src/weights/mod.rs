//! How much memory a model will take, told from its files before anything is started: the sizes of
//! its weights, and what a token of context costs. Only headers are read.

mod gguf;
mod safetensors;
mod shape;

use std::path::Path;

use kvwarden_actors::engine::{EngineFlags, EngineKind, KvRoom, SourceKind};
use kvwarden_policy::{residency::Footprint, simulation::steps};
use shape::Shape;

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
    let dialect = kind.dialect();
    let derived = match dialect.source {
        SourceKind::Url => return None,
        SourceKind::Command => None,
        SourceKind::Preset => simulated(source),
        SourceKind::Weights | SourceKind::Gguf => {
            let room = (dialect.kv_room)(flags);
            read(Path::new(source)).map(|weights| derive(room, flags, weights))
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

fn derive(room: KvRoom, flags: &EngineFlags, weights: Weights) -> Footprint {
    let parts = u64::from(flags.tensor_parallel.max(1));
    let tokens = |tokens: u64| {
        let shape = weights.shape.as_ref();
        let all = shape.map_or(0, |shape| tokens.saturating_mul(shape.kv_bytes_per_token));
        all.div_ceil(parts)
    };
    let (kv, share) = match room {
        KvRoom::Bytes(bytes) => (bytes, None),
        KvRoom::Tokens(room) => (tokens(room), None),
        KvRoom::Context => (tokens(weights.shape.map_or(0, |shape| shape.context)), None),
        KvRoom::Share(share) => (0, Some(share)),
    };
    Footprint {
        weights: weights.bytes.div_ceil(parts),
        kv,
        share,
    }
}

#[cfg(test)]
mod tests;
