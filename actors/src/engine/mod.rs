//! The engines kvwarden can run, one module each.
//!
//! [`EngineKind`] names an engine and its [`Dialect`] says all there is to know of it. [`EngineSpec`]
//! says what a model wants of it, and [`Launch::command`] turns that into argv and environment: a
//! pure function, so that every engine's flags are tested without starting one.

mod attach;
pub mod command;
pub mod control;
mod dialect;
mod fields;
pub mod gauges;
pub(crate) mod kv_disk_gc;
mod llamacpp;
pub mod order;
pub mod probe;
pub mod saved_kv;
mod sglang;
mod sim;
pub mod sleep;
mod vllm;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kvwarden_policy::{
    Generation, ModelId,
    lifecycle::SleepLevels,
    residency::{DeviceSelector, Footprint, Memory, Needs},
    scheduling::Capacity,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::engine::{command::OwnServer, probe::Canary};
pub use dialect::{Dialect, KvOnDisk, KvRoom, Owner, SourceKind};
pub use fields::Fields;
pub use order::{EngineEnd, EngineGone, EngineNews, News, Order, Spawn, Transition};

/// An inference engine kvwarden knows how to talk to, by its name in configurations. What there is to
/// know of it says its [`Dialect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// vLLM on GPUs.
    Vllm,
    /// vLLM's CPU build.
    VllmCpu,
    /// SGLang on GPUs.
    Sglang,
    /// SGLang on the CPU.
    SglangCpu,
    /// llama.cpp's server (`llama-server`, or the same from the wheel `xllamacpp`).
    #[serde(rename = "llamacpp")]
    LlamaCpp,
    /// Our own simulation of a continuous-batching engine.
    Sim,
    /// An OpenAI-compatible server that someone else runs.
    Attach,
    /// A server that the author's own command starts.
    Command,
}

impl EngineKind {
    /// Every engine.
    pub const ALL: [Self; 8] = [
        Self::Vllm,
        Self::VllmCpu,
        Self::Sglang,
        Self::SglangCpu,
        Self::LlamaCpp,
        Self::Sim,
        Self::Attach,
        Self::Command,
    ];

    /// What there is to know of it.
    #[must_use]
    pub fn dialect(self) -> &'static Dialect {
        match self {
            Self::Vllm => &vllm::GPU,
            Self::VllmCpu => &vllm::CPU,
            Self::Sglang => &sglang::GPU,
            Self::SglangCpu => &sglang::CPU,
            Self::LlamaCpp => &llamacpp::DIALECT,
            Self::Sim => &sim::DIALECT,
            Self::Attach => &attach::DIALECT,
            Self::Command => &command::DIALECT,
        }
    }

    /// The name in configurations, and of its private environment.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.dialect().name
    }

    /// The engine of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name in metrics and answers, which builds for GPUs and for CPUs share.
    #[must_use]
    pub fn family(self) -> &'static str {
        self.dialect().family
    }

    /// Writes its family, as `/kvwarden/status` has it.
    ///
    /// # Errors
    /// When the serializer fails.
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde asks for a reference"
    )]
    pub(crate) fn serialize_family<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.family())
    }
}

/// What serves one model.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineSpec {
    /// A child process of ours.
    Child(Box<Launch>),
    /// Somebody else's server.
    Attached(Attached),
}

impl EngineSpec {
    /// What it takes, before anything is measured.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let (footprint, devices, width) = match self {
            Self::Attached(_) => (None, DeviceSelector::Unmanaged, 1),
            Self::Child(launch) => {
                let devices = if launch.uses_gpu() {
                    DeviceSelector::Gpus(launch.gpus.clone())
                } else {
                    DeviceSelector::Host
                };
                let width = launch.flags.tensor_parallel as usize;
                (launch.footprint, devices, width)
            }
        };
        Needs {
            memory: Memory::Estimated(footprint.unwrap_or_default()),
            devices,
            width,
            costs: None,
        }
    }

    /// An engine of the one may stay where the other is wanted: it serves alike and takes as much.
    #[must_use]
    pub fn serves_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Child(one), Self::Child(other)) => {
                one.fingerprint() == other.fingerprint() && one.footprint == other.footprint
            }
            (Self::Attached(one), Self::Attached(other)) => one == other,
            (Self::Child(_), Self::Attached(_)) | (Self::Attached(_), Self::Child(_)) => false,
        }
    }
}

/// A server that somebody else runs.
#[derive(Clone, PartialEq, Eq)]
pub struct Attached {
    /// Base URL, path included, without `/v1` and without a slash at the end.
    pub base: String,
    /// Its API key.
    pub api_key: Option<String>,
    /// The name it serves the model under.
    pub served_name: String,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// How one model's engine is started, short of what changes at every start (port, key).
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Which engine.
    pub kind: EngineKind,
    /// The executable: the model's own, or the one of the engine's private environment.
    pub program: PathBuf,
    /// What the executable is a version of, so that nothing one build wrote is read by another.
    pub build: String,
    /// Arguments that come before all others (a launcher script).
    pub prefix: Vec<String>,
    /// What the engine loads: a path, a hub id, or a preset of the simulated engine.
    pub model: String,
    /// The name the engine serves it under.
    pub served_name: String,
    /// What the configuration says about this model's engine.
    pub flags: EngineFlags,
    /// What it will take of each device, where that can be told.
    pub footprint: Option<Footprint>,
    /// GPUs it may use, by index or UUID. Empty: all.
    pub gpus: Vec<String>,
    /// Processors that this machine lets us use, which the engine shares with kvwarden.
    pub cores: u32,
    /// Where it keeps KV on disk: a directory of this model's own.
    pub kv_dir: PathBuf,
    /// How long a start may take.
    pub start_timeout: Duration,
    /// How long the engine gets between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
}

/// The engine-independent settings of a model; each engine's module spells them its own way.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineFlags {
    /// What the engine is to do at once.
    pub capacity: Capacity,
    /// Longest context of one sequence, prompt and output together, in tokens.
    pub max_model_len: Option<u32>,
    /// Number type of the weights, as the engine spells it (`bfloat16`).
    pub dtype: Option<String>,
    /// GPUs one copy of the model is spread over.
    pub tensor_parallel: u32,
    /// Share of each GPU's memory the engine may take, 0 to 1.
    pub gpu_memory_utilization: Option<f64>,
    /// CPU threads, if the author chose.
    pub threads: Option<u32>,
    /// Bytes set aside for the KV cache.
    pub kv_cache_bytes: Option<u64>,
    /// Bytes of host memory for KV that leaves the device.
    pub kv_cpu_bytes: Option<u64>,
    /// Bytes of disk for KV that leaves memory.
    pub kv_ssd_bytes: Option<u64>,
    /// How deep the engine may be put to sleep instead of being stopped.
    pub levels: SleepLevels,
    /// A server of the author's own, on the engine `command`.
    pub own: Option<Box<OwnServer>>,
    /// Appended as they are.
    pub extra_args: Vec<String>,
    /// Added to the engine's environment.
    pub env: BTreeMap<String, String>,
}

impl EngineFlags {
    /// It may be put to sleep at all.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.levels != SleepLevels::default()
    }
}

/// A process to start.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments. No secret is among them: argv is world-readable.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
}

/// What changes at every start.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The loopback port to listen on.
    pub port: u16,
    /// The key the engine asks of its callers.
    pub key: &'a str,
    /// The GPUs it shall use, as CUDA names them. Empty: all that it finds.
    pub gpus: &'a [String],
}

/// Up to this many processors are few: vLLM's core and its worker, which wait for each other by
/// spinning, its API server and kvwarden leave none of them for the threads that compute.
const FEW_CORES: u32 = 4;

impl Launch {
    /// An engine on the CPU leaves nothing of them to kvwarden and to its own other work unless it is
    /// told to.
    fn has_few_cores(&self) -> bool {
        self.cores <= FEW_CORES
    }

    /// How many threads an engine is to compute with on the CPU. None: as it chooses. Threads wait for
    /// each other by spinning, so one that has to wait for a processor costs all of them their time.
    fn threads(&self) -> Option<u32> {
        let all_but_one = self
            .has_few_cores()
            .then(|| self.cores.saturating_sub(1).max(1));
        self.flags.threads.or(all_but_one)
    }

    /// It computes on GPUs.
    #[must_use]
    pub fn uses_gpu(&self) -> bool {
        self.kind.dialect().uses_gpu || self.asks_for("devices")
    }

    /// Its author asks for what that name stands for.
    fn asks_for(&self, name: &str) -> bool {
        let command = self.flags.own.iter().flat_map(|own| &own.command);
        let mut words = command.chain(self.flags.env.values());
        words.any(|word| command::placeholders(word).any(|found| found == name))
    }

    /// The same for two starts exactly if their engines serve alike: build, arguments and settings
    /// are the same. What changes at every start does not count, nor what kvwarden itself goes by, nor
    /// whether they can sleep: that is asked of each engine that runs, and a second model in the file
    /// must not cost the first one its place.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut awake = self.clone();
        awake.flags.levels = SleepLevels::default();
        let start = Start {
            port: 0,
            key: "",
            gpus: &[],
        };
        let Command { program, args, env } = awake.command(start, []);
        let mut all = format!("{:?}", (&self.build, program, args, env, &self.gpus));
        if self.flags.own.is_some() {
            // Other engines are told it among their arguments.
            all.push_str(&self.served_name);
        }
        // It may hold secrets of the configuration's `env`, so their hash is all that is kept.
        let hash = Sha256::digest(all);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The process that serves this model. `inherited` is our own environment, of which the engine
    /// gets what [`is_inherited`] lets through.
    #[must_use]
    pub fn command(
        &self,
        start: Start<'_>,
        inherited: impl IntoIterator<Item = (String, String)>,
    ) -> Command {
        let dialect = self.kind.dialect();
        let (args, env) = ((dialect.args)(self, start), (dialect.env)(self, start));
        let mut whole: BTreeMap<_, _> = inherited
            .into_iter()
            .filter(|(name, _)| is_inherited(name))
            .collect();
        whole.extend(env);
        if self.uses_gpu() && !start.gpus.is_empty() {
            // In the driver's order; CUDA's own puts the fastest first.
            whole.insert("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned());
            whole.insert("CUDA_VISIBLE_DEVICES".to_owned(), start.gpus.join(","));
        }
        whole.extend(self.authors_env(start));
        let args = self.prefix.iter().cloned().chain(args);
        Command {
            program: self.program.clone(),
            args: args.chain(self.flags.extra_args.iter().cloned()).collect(),
            env: whole,
        }
    }
}

impl Launch {
    /// What ends it where a signal to its own processes does not.
    #[must_use]
    pub fn stop_command(
        &self,
        start: Start<'_>,
        inherited: impl IntoIterator<Item = (String, String)>,
    ) -> Option<Command> {
        let (program, args) = command::stop(self, start)?;
        let Command { env, .. } = self.command(start, inherited);
        let program = PathBuf::from(program);
        Some(Command { program, args, env })
    }

    fn authors_env(&self, start: Start<'_>) -> BTreeMap<String, String> {
        let mut env = self.flags.env.clone();
        if self.flags.own.is_some() {
            for value in env.values_mut() {
                *value = command::fill(value, self, start);
            }
        }
        env
    }
}

/// What an engine may see of our environment. Everything else, other services' secrets above all,
/// stays here; what a model needs on top goes into its `env` table.
fn is_inherited(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "TERM",
        "HF_TOKEN",
    ];
    const FAMILIES: [&str; 10] = [
        "LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "HF_HUB_", "HF_HOME", "VLLM_", "SGLANG_",
        "OMP_",
    ];
    NAMES.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Where a running engine answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The model it serves.
    pub model: ModelId,
    /// Which engine it is.
    pub kind: EngineKind,
    /// Which start of it.
    pub generation: Generation,
    /// Base URL without `/v1`.
    pub base: String,
    /// The key it asks for.
    pub api_key: Option<String>,
    /// The name it knows the model by.
    pub served_name: String,
    /// How deep it can sleep.
    #[serde(rename = "rungs")]
    pub levels: SleepLevels,
    /// What it answered when it was new.
    pub canary: Canary,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} generation {} at {}",
            self.model, self.generation, self.base
        )
    }
}

/// `--flag value` pairs, with flags that have no value left out.
#[derive(Default)]
struct Args(Vec<String>);

#[expect(
    clippy::needless_pass_by_value,
    reason = "numbers and references read better at the call"
)]
impl Args {
    fn word(mut self, word: impl ToString) -> Self {
        self.0.push(word.to_string());
        self
    }

    fn pair(self, flag: &str, value: impl ToString) -> Self {
        self.word(flag).word(value)
    }

    fn flag_if(self, flag: &str, is_wanted: bool) -> Self {
        if is_wanted { self.word(flag) } else { self }
    }

    fn maybe(self, flag: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.pair(flag, value),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests;
