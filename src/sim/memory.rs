//! The GPU memory a real engine of this size would hold, and what sleeping does to it.

use kvwarden_policy::simulation::steps::Preset;
use serde::Serialize;

/// What stays while an engine sleeps: CUDA context, graphs, buffers. A sleeping vLLM with a 14B
/// model was seen to hold 1.3 GiB.
const OVERHEAD_BYTES: u64 = 1_395_864_371;

/// Where the weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Weights {
    /// On the GPU.
    Resident,
    /// In host memory (sleep level 1).
    Offloaded,
    /// Nowhere (sleep level 2).
    Discarded,
}

/// The simulated GPU memory of one engine.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    weight_bytes: u64,
    kv_bytes: u64,
    frees_nothing: bool,
    pub(super) weights: Weights,
    pub(super) kv_resident: bool,
    /// The weights' space was given up, and nothing has been loaded into it since.
    pub(super) weights_lost: bool,
}

/// What `/kvwarden-sim/memory` answers.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    simulated: bool,
    weights: Weights,
    kv_cache_resident: bool,
    weights_bytes: u64,
    kv_cache_bytes: u64,
    overhead_bytes: u64,
    total_bytes: u64,
}

// === impl Memory ===

impl Memory {
    pub(super) fn new(preset: &Preset, kv_tokens: u64, frees_nothing: bool) -> Self {
        Self {
            weight_bytes: preset.weight_bytes,
            kv_bytes: preset.kv_bytes_per_token * kv_tokens,
            frees_nothing,
            weights: Weights::Resident,
            kv_resident: true,
            weights_lost: false,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.weights == Weights::Resident && self.kv_resident
    }

    pub(super) fn sleep(&mut self, level: SleepLevel) {
        self.kv_resident = false;
        self.weights = match level {
            SleepLevel::Offload => Weights::Offloaded,
            SleepLevel::Discard => {
                self.weights_lost = true;
                Weights::Discarded
            }
        };
    }

    pub(super) fn report(&self) -> Report {
        let bytes = |held: bool, bytes: u64| if held || self.frees_nothing { bytes } else { 0 };
        let weights_bytes = bytes(self.weights == Weights::Resident, self.weight_bytes);
        let kv_cache_bytes = bytes(self.kv_resident, self.kv_bytes);
        Report {
            simulated: true,
            weights: self.weights,
            kv_cache_resident: self.kv_resident,
            weights_bytes,
            kv_cache_bytes,
            overhead_bytes: OVERHEAD_BYTES,
            total_bytes: weights_bytes + kv_cache_bytes + OVERHEAD_BYTES,
        }
    }
}

/// vLLM's sleep levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SleepLevel {
    /// 1: weights go to host memory.
    Offload,
    /// 2: weights are dropped and must be loaded again after waking.
    Discard,
}
