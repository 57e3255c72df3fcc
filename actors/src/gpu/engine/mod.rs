//! The engines kvwarden can run, one module each.
//!
//! An engine is described twice: [`EngineKind`] says what it can do, [`Launch`] how one is started
//! for one model. `command` turns the latter into argv and environment; it is a pure function.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// An inference engine kvwarden knows how to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// vLLM's OpenAI server.
    Vllm,
    /// SGLang's server.
    Sglang,
    /// llama.cpp's server (`llama-server`, or the same from the wheel `xllamacpp`).
    LlamaCpp,
    /// Our own simulation of a continuous-batching engine.
    Sim,
    /// An OpenAI-compatible server that someone else runs.
    Attach,
}

/// How one model's engine is started, short of what changes at every start (port, key).
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Which engine.
    pub kind: EngineKind,
    /// The executable: the model's own, or the one of the engine's private environment.
    pub program: PathBuf,
    /// Arguments that come before all others (a launcher script).
    pub prefix: Vec<String>,
    /// What the engine loads: a path or a hub id.
    pub model: String,
    /// The name the engine serves it under.
    pub served_name: String,
    /// What the configuration says about this model's engine.
    pub flags: EngineFlags,
}

/// The engine-independent settings of a model; each engine's module spells them its own way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineFlags {
    /// No GPU: the CPU build of the engine.
    pub cpu: bool,
    /// How many sequences run at once.
    pub max_concurrent: u32,
    /// Longest context, prompt and output together, in tokens.
    pub max_model_len: Option<u32>,
    /// Number type of the weights, as the engine spells it (`bfloat16`).
    pub dtype: Option<String>,
    /// GPUs one copy of the model is spread over.
    pub tensor_parallel: u32,
    /// Share of each GPU's memory the engine may take, 0 to 1.
    pub gpu_memory_utilization: Option<f64>,
    /// CPU threads, for engines that let us choose.
    pub threads: Option<u32>,
    /// Bytes set aside for the KV cache.
    pub kv_cache_bytes: Option<u64>,
    /// Appended as they are.
    pub extra_args: Vec<String>,
    /// Added to the engine's environment.
    pub env: BTreeMap<String, String>,
}
