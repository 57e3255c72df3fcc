//! A YAML file of the Python KVWarden 0.1, key by key, and what it comes to in the TOML form.
//!
//! Its defaults are kept with it: a file that names no limits had 600 requests per minute there and
//! has them here. The exception is what never had an effect.

use std::time::Duration;

use kvwarden_actors::engine::EngineKind;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    file::{File, ModelTable, TenantHeader, TenantTable},
    name::{LONGEST_MODEL_NAME, is_name},
};

/// The top of the file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct PythonFile {
    host: Option<String>,
    port: Option<u16>,
    gpu_budget_fraction: Option<f64>,
    models: Option<Vec<PythonModel>>,
    cache: Option<PythonCache>,
    tenant_defaults: Option<PythonTenant>,
    max_concurrent: Option<u32>,
    admission_queue_size: Option<usize>,
    engine_start_timeout_s: Option<u64>,
    health_check_interval_s: Option<f64>,
    log_level: Option<String>,
    metrics_port: Option<u16>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct PythonCache {
    tiers: Vec<PythonTier>,
    eviction_frequency_weight: Option<f64>,
    eviction_recency_weight: Option<f64>,
    block_size_tokens: Option<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct PythonTier {
    name: Option<String>,
    capacity_gb: Option<f64>,
    latency_ms: Option<f64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct PythonModel {
    model_id: Option<String>,
    short_name: Option<String>,
    #[schemars(with = "Option<String>")]
    engine: Option<EngineKind>,
    tensor_parallel_size: Option<u32>,
    gpu_memory_utilization: Option<f64>,
    max_model_len: Option<u32>,
    dtype: Option<String>,
    port: Option<u16>,
    extra_args: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct PythonTenant {
    max_concurrent_requests: Option<u32>,
    rate_limit_rpm: Option<u32>,
    rate_limit_burst: Option<u32>,
    max_gpu_memory_gb: Option<f64>,
    priority: Option<i32>,
    scheduling: Option<String>,
}

impl PythonFile {
    /// The same in the TOML form.
    pub(crate) fn into_file(self) -> File {
        let host = self.host.unwrap_or_else(|| "0.0.0.0".to_owned());
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host,
        };
        let mut file = File {
            listen: format!("{host}:{}", self.port.unwrap_or(8080)),
            tenant_defaults: self.tenant_defaults.unwrap_or_default().into_defaults(),
            ..File::default()
        };
        if let Some(level) = &self.log_level {
            log_level(level).clone_into(&mut file.log_level);
        }
        // It believed the header from everybody, and its files have no other way to tell tenants apart.
        file.auth.tenant_header = TenantHeader::Always;
        let start_timeout = Duration::from_secs(self.engine_start_timeout_s.unwrap_or(300));
        let models = self.models.unwrap_or_default().into_iter();
        file.models = models
            .map(|model| ModelTable {
                max_concurrent: self.max_concurrent.or(model.known(128)),
                queue_size: self.admission_queue_size.unwrap_or(1024),
                start_timeout: Some(start_timeout),
                ..model.into_model()
            })
            .collect();
        add_short_names(&mut file.models);
        self.cache.unwrap_or_default().divide(&mut file.models);
        file
    }
}

impl PythonCache {
    /// The tiers were the node's; each model that can use one gets an equal part. What the GPU tier
    /// has is what `gpu_memory_utilization` leaves.
    fn divide(&self, models: &mut [ModelTable]) {
        let offloads =
            |model: &&mut ModelTable| model.engine.is_some_and(|engine| engine.dialect().uses_gpu);
        let parts = models.iter_mut().filter(offloads).count();
        let part = |name| {
            let mut tiers = self.tiers.iter();
            let tier = tiers.find(|tier| tier.name.as_deref() == Some(name))?;
            Some(bytes(tier.capacity_gb?, parts)).filter(|size| *size > 0)
        };
        let (cpu, ssd) = (part("cpu"), part("ssd"));
        for model in models.iter_mut().filter(offloads) {
            model.kv_cpu = cpu;
            // Blocks reach the disk by way of host memory.
            model.kv_ssd = ssd.filter(|_| cpu.is_some());
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a part of a size is no exact number of bytes"
)]
fn bytes(gigabytes: f64, parts: usize) -> u64 {
    (gigabytes * f64::from(1 << 30) / parts.max(1) as f64) as u64
}

impl PythonModel {
    fn engine(&self) -> EngineKind {
        self.engine.unwrap_or(EngineKind::Vllm)
    }

    /// A default of the Python KVWarden, for the engines that it had: others have their own, and some
    /// don't know the key.
    fn known<T>(&self, value: T) -> Option<T> {
        matches!(self.engine(), EngineKind::Vllm | EngineKind::Sglang).then_some(value)
    }

    fn into_model(self) -> ModelTable {
        let engine = Some(self.engine());
        let dtype = self.known("bfloat16").map(str::to_owned);
        let (share, length) = (self.known(0.85), self.known(8192));
        let id = self.model_id.as_ref();
        // An empty name stood for none, and the id's own for nothing new.
        let is_new = |name: &String| !name.is_empty() && Some(name) != id;
        ModelTable {
            short_name: self.short_name.filter(is_new),
            id: self.model_id,
            engine,
            tensor_parallel_size: self.tensor_parallel_size.unwrap_or(1),
            gpu_memory_utilization: self.gpu_memory_utilization.or(share),
            max_model_len: self.max_model_len.or(length),
            dtype: self.dtype.or(dtype),
            extra_args: self.extra_args.unwrap_or_default(),
            ..ModelTable::default()
        }
    }
}

impl PythonTenant {
    fn into_defaults(self) -> TenantTable {
        TenantTable {
            priority: self.priority.unwrap_or(1),
            rate_limit_rpm: Some(self.rate_limit_rpm.unwrap_or(600)),
            rate_limit_burst: self.rate_limit_burst,
            max_concurrent_requests: Some(self.max_concurrent_requests.unwrap_or(64)),
            ..TenantTable::default()
        }
    }
}

/// A model without a short name was shown by the last part of its id. That routes here, where it
/// can only mean this one model.
fn add_short_names(models: &mut [ModelTable]) {
    let names = models
        .iter()
        .flat_map(|model| model.id.iter().chain(&model.short_name));
    let mut taken: Vec<String> = names.cloned().collect();
    for model in models.iter_mut().filter(|model| model.short_name.is_none()) {
        let id = model.id.as_deref().unwrap_or_default();
        let short = id.rsplit('/').next().unwrap_or(id).to_lowercase();
        if is_name(&short, LONGEST_MODEL_NAME) && !taken.contains(&short) {
            taken.push(short.clone());
            model.short_name = Some(short);
        }
    }
}

/// Python's names of log levels.
fn log_level(python: &str) -> &str {
    match python {
        "CRITICAL" | "FATAL" => "error",
        "WARNING" => "warn",
        "NOTSET" => "trace",
        other => other,
    }
}
