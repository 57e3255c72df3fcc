//! Every metric: name, labels, unit and help text. No logic.
//!
//! The first seventeen keep the names and labels of the Python KVWarden, so that its dashboards go
//! on working. Label values come from the configuration: a request can never make a new series
//! (unknown tenants count as `_other`).

use std::{collections::HashSet, sync::atomic::AtomicU64};

use kvwarden_policy::lifecycle::SleepLevel;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::journal;

/// A gauge that holds a fraction.
pub type FloatGauge = Gauge<f64, AtomicU64>;

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $name {
            $(#[doc = concat!("Label `", stringify!($field), "`.")] pub $field: String,)*
        }
    )*};
}

labels! {
    /// Labels of `kvwarden_requests_total`.
    Request { model, tenant, status, engine }
    /// By model.
    Model { model }
    /// By model and engine.
    Engine { model, engine }
    /// By tenant.
    Tenant { tenant }
    /// By model and tenant.
    ModelTenant { model, tenant }
    /// By tenant and reason.
    Rejection { tenant, reason }
    /// By reason.
    Reason { reason }
    /// By model, engine and sleep level.
    AtSleepLevel { model, engine, rung }
    /// By sleep level.
    OfSleepLevel { rung }
    /// By result.
    OfResult { result }
    /// By device, and whether it is what there is or what is taken.
    DeviceMemory { device, kind }
    /// By actor.
    Actor { actor }
}

/// Handles to every metric, and the registry that prints them.
pub struct Metrics {
    registry: Registry,
    /// Requests by outcome.
    pub requests: Family<Request, Counter>,
    /// Requests that got another engine before their first token.
    pub requests_retried: Family<Model, Counter>,
    /// Arrival to the last byte.
    pub request_latency: Family<Model, Histogram>,
    /// Output tokens.
    pub tokens_generated: Family<Model, Counter>,
    /// Prompt tokens.
    pub tokens_input: Family<Model, Counter>,
    /// Models that serve.
    pub models_loaded: Gauge,
    /// Times the planner took a model's memory.
    pub model_evictions: Family<Model, Counter>,
    /// Loads that nobody had asked for yet.
    pub model_prefetches: Family<Model, Counter>,
    /// Those of them that a request followed.
    pub model_prefetch_hits: Family<Model, Counter>,
    /// Where an engine rests, 1 for its rung.
    pub model_level: Family<AtSleepLevel, Gauge>,
    /// Bytes an engine is charged for.
    pub model_memory: Family<Engine, Gauge>,
    /// Bytes of KV that it left on disk.
    pub model_saved_kv: Family<Engine, Gauge>,
    /// Bytes of a device.
    pub device_memory: Family<DeviceMemory, Gauge>,
    /// Waking to the first proven token, by the rung it came from.
    pub wake: Family<OfSleepLevel, Histogram>,
    /// Drained to memory given back, by the rung it went to.
    pub demote: Family<OfSleepLevel, Histogram>,
    /// Lines that the event log lost.
    pub events_dropped: Counter,
    /// Times the configuration was read again.
    pub config_reloads: Family<OfResult, Counter>,
    /// Whether it was taken the last time.
    pub config_last_reload_successful: Gauge,
    /// Requests whose use is written down, and those whose use is not.
    pub usage: journal::Counts,
    /// Whether an engine serves.
    pub engine_up: Family<Engine, Gauge>,
    /// Spawn to first proven token.
    pub engine_cold_start: Family<Engine, Histogram>,
    /// Streams that did not end well.
    pub sse_stream_disconnect: Family<Reason, Counter>,
    /// Requests per tenant.
    pub tenant_requests: Family<Tenant, Counter>,
    /// Requests a tenant's own limits refused.
    pub tenant_requests_rejected: Family<Rejection, Counter>,
    /// Arrival to the first token.
    pub tenant_ttft: Family<ModelTenant, Histogram>,
    /// Requests that wait, over all models.
    pub admission_queue_depth: Gauge,
    /// Requests that run, over all models.
    pub admission_in_flight: Gauge,
    /// Arrival in a queue to dispatch.
    pub admission_wait: Histogram,
    /// Requests that queues refused.
    pub admission_rejected: Family<Reason, Counter>,
    /// Requests handed to an engine.
    pub admission_admitted: Counter,
    /// Requests that wait, by model.
    pub model_queue_depth: Family<Model, Gauge>,
    /// Requests that run, by model.
    pub model_in_flight: Family<Model, Gauge>,
    /// Requests that wait inside an engine, by its own account.
    pub engine_waiting: Family<Model, Gauge>,
    /// Requests queued and running, by tenant.
    pub tenant_in_flight: Family<Tenant, Gauge>,
    /// How long a message waited for an actor.
    pub actor_mailbox_wait: Family<Actor, FloatGauge>,
    /// Messages an actor handled.
    pub actor_messages_handled: Family<Actor, Gauge>,
}

const LATENCY: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const COLD_START: [f64; 6] = [10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const SWAP: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const TTFT: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
const WAIT: [f64; 11] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0,
];

impl Metrics {
    /// All metrics, at zero.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a list, one entry for each metric")]
    pub fn register() -> Self {
        let mut registry = Registry::with_prefix("kvwarden");
        let r = &mut registry;
        let metrics = Self {
            requests: add(r, "requests", "Requests, by outcome"),
            requests_retried: add(
                r,
                "requests_retried",
                "Requests put back into the queue because their engine went away before the first token",
            ),
            request_latency: seconds(r, "request_latency", "Arrival to last byte", || {
                Histogram::new(LATENCY)
            }),
            tokens_generated: add(
                r,
                "tokens_generated",
                "Output tokens, as engines count them",
            ),
            tokens_input: add(r, "tokens_input", "Prompt tokens, as engines count them"),
            models_loaded: add(r, "models_loaded", "Models that serve now"),
            model_evictions: add(
                r,
                "model_evictions",
                "Times the planner took the memory of one of the model's engines, in whole or in part",
            ),
            model_prefetches: add(
                r,
                "model_prefetches",
                "Times the model was loaded before it was asked",
            ),
            model_prefetch_hits: add(
                r,
                "model_prefetch_hits",
                "Of those, how many a request followed before the memory was taken again",
            ),
            model_level: add(
                r,
                "model_rung",
                "1 for the rung where the engine rests, or comes from while it changes, else 0",
            ),
            model_memory: add_bytes(
                r,
                "model_memory",
                "Memory the engine is charged for, on all its devices",
            ),
            model_saved_kv: add_bytes(
                r,
                "model_saved_kv",
                "KV on disk that the engine left behind when it was last stopped",
            ),
            device_memory: add_bytes(
                r,
                "device_memory",
                "Memory of the device as the planner sees it: all that models may have, and what is taken",
            ),
            wake: seconds(r, "wake", "Waking to first proven token, by rung", || {
                Histogram::new(SWAP)
            }),
            demote: seconds(r, "demote", "Drained to memory given back, by rung", || {
                Histogram::new(SWAP)
            }),
            events_dropped: add(
                r,
                "events_dropped",
                "Lines that the event log could not take or write",
            ),
            config_reloads: add(
                r,
                "config_reloads",
                "Times the configuration was read again, by result",
            ),
            config_last_reload_successful: add(
                r,
                "config_last_reload_successful",
                "1 if the configuration was taken when it was last read, 0 if the one before is kept",
            ),
            usage: journal::Counts {
                kept: add(
                    r,
                    "usage_rows_kept",
                    "Requests whose use of tokens is in the usage database",
                ),
                dropped: add(
                    r,
                    "usage_rows_dropped",
                    "Requests whose use of tokens could not be written down",
                ),
            },
            engine_up: add(r, "engine_up", "1 while the model's engine serves, else 0"),
            engine_cold_start: seconds(
                r,
                "engine_cold_start",
                "Spawn to first proven token",
                || Histogram::new(COLD_START),
            ),
            sse_stream_disconnect: add(
                r,
                "sse_stream_disconnect",
                "Streams that ended before their end, by reason",
            ),
            tenant_requests: add(r, "tenant_requests", "Requests, by tenant"),
            tenant_requests_rejected: add(
                r,
                "tenant_requests_rejected",
                "Requests refused by the tenant's own limits",
            ),
            tenant_ttft: seconds(r, "tenant_ttft", "Arrival to first non-empty token", || {
                Histogram::new(TTFT)
            }),
            admission_queue_depth: add(r, "admission_queue_depth", "Requests that wait"),
            admission_in_flight: add(r, "admission_in_flight", "Requests on an engine"),
            admission_wait: add_with(r, "admission_wait", "Queueing time", Histogram::new(WAIT)),
            admission_rejected: add(
                r,
                "admission_rejected",
                "Requests refused because of the node or a model's queue",
            ),
            admission_admitted: add(r, "admission_admitted", "Requests handed to an engine"),
            model_queue_depth: add(r, "model_queue_depth", "Requests that wait, by model"),
            model_in_flight: add(r, "model_in_flight", "Requests on an engine, by model"),
            engine_waiting: add(
                r,
                "engine_waiting",
                "Requests that wait inside the engine, as it says itself; absent while it says nothing",
            ),
            tenant_in_flight: add(
                r,
                "tenant_in_flight",
                "Requests queued and running, by tenant",
            ),
            actor_mailbox_wait: add_seconds(
                r,
                "actor_mailbox_wait",
                "How long the actor's latest pulse waited in its mailbox",
            ),
            actor_messages_handled: add(r, "actor_messages_handled", "Messages the actor handled"),
            registry: Registry::default(),
        };
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        // That of the start was.
        metrics.config_last_reload_successful.set(1);
        registry.register("build", "The running version", Info::new(version));
        Self {
            registry,
            ..metrics
        }
    }

    /// Forgets what there was of models, engines, tenants, actors and devices, which may be gone.
    pub fn clear_gauges(&self) {
        self.model_level.clear();
        self.model_memory.clear();
        self.model_saved_kv.clear();
        self.device_memory.clear();
        self.engine_up.clear();
        self.model_queue_depth.clear();
        self.model_in_flight.clear();
        self.engine_waiting.clear();
        self.tenant_in_flight.clear();
        self.actor_mailbox_wait.clear();
        self.actor_messages_handled.clear();
    }

    /// The metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When a value can't be formatted.
    pub fn open_metrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

trait Registered: prometheus_client::registry::Metric + Clone {}
impl<M: prometheus_client::registry::Metric + Clone> Registered for M {}

fn add<M: Registered + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn add_seconds<M: Registered + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    add_with(registry, name, help, M::default())
}

fn add_bytes<M: Registered + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}

fn add_with<M: Registered>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn seconds<L>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    make: fn() -> Histogram,
) -> Family<L, Histogram>
where
    L: EncodeLabelSet + Clone + std::hash::Hash + Eq + std::fmt::Debug + Send + Sync + 'static,
{
    add_with(registry, name, help, Family::new_with_constructor(make))
}

/// A rung as a label.
#[must_use]
pub fn level(level: SleepLevel) -> &'static str {
    match level {
        SleepLevel::Ready => "ready",
        SleepLevel::Parked => "parked",
        SleepLevel::L1 => "l1",
        SleepLevel::L2 => "l2",
        SleepLevel::Cold => "cold",
    }
}

/// OpenMetrics text as the classic Prometheus text format (version 0.0.4), in which the name of a
/// counter includes its `_total` and units are not declared.
#[must_use]
pub fn classic(open_metrics: &str) -> String {
    let of_type = |kind: &str| -> HashSet<&str> {
        let types = open_metrics
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .filter_map(|line| line.strip_suffix(kind)?.strip_suffix(' '))
            .collect()
    };
    let (counters, infos) = (of_type("counter"), of_type("info"));
    let mut classic = String::with_capacity(open_metrics.len() + 256);
    for line in open_metrics.lines() {
        let is_dropped = line.starts_with("# UNIT ") || line == "# EOF";
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            _ if is_dropped => continue,
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                classic.push_str(&format!("# {what} {name}_total {rest}"));
            }
            (Some("#"), Some("TYPE"), Some(name), Some("info")) => {
                classic.push_str(&format!("# TYPE {name}_info gauge"));
            }
            (Some("#"), Some(what), Some(name), Some(rest)) if infos.contains(name) => {
                classic.push_str(&format!("# {what} {name}_info {rest}"));
            }
            _ => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_text_names_counters_with_total_and_has_no_units() {
        let metrics = Metrics::register();
        let request = Request {
            model: "m".to_owned(),
            tenant: "t".to_owned(),
            status: "ok".to_owned(),
            engine: "sim".to_owned(),
        };
        metrics.requests.get_or_create(&request).inc();
        let text = classic(&metrics.open_metrics().unwrap());
        assert!(
            text.contains("# TYPE kvwarden_requests_total counter\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "kvwarden_requests_total{model=\"m\",tenant=\"t\",status=\"ok\",engine=\"sim\"} 1"
            ),
            "{text}"
        );
        assert!(!text.contains("UNIT") && !text.contains("EOF"), "{text}");
    }

    const PYTHON_NAMES: [&str; 17] = [
        "requests_total",
        "request_latency_seconds",
        "tokens_generated_total",
        "tokens_input_total",
        "models_loaded",
        "model_evictions_total",
        "engine_up",
        "engine_cold_start_seconds",
        "sse_stream_disconnect_total",
        "tenant_requests_total",
        "tenant_requests_rejected_total",
        "tenant_ttft_seconds",
        "admission_queue_depth",
        "admission_in_flight",
        "admission_wait_seconds",
        "admission_rejected_total",
        "admission_admitted_total",
    ];

    #[test]
    fn names_of_the_python_kvwarden_are_kept() {
        let metrics = Metrics::register();
        let m = || "x".to_owned();
        let engine = Engine {
            model: m(),
            engine: m(),
        };
        metrics
            .requests
            .get_or_create(&Request {
                model: m(),
                tenant: m(),
                status: m(),
                engine: m(),
            })
            .inc();
        for counters in [&metrics.tokens_generated, &metrics.tokens_input] {
            counters.get_or_create(&Model { model: m() }).inc();
        }
        metrics
            .request_latency
            .get_or_create(&Model { model: m() })
            .observe(1.0);
        metrics.engine_up.get_or_create(&engine).set(1);
        metrics
            .model_evictions
            .get_or_create(&Model { model: m() })
            .inc();
        metrics
            .engine_cold_start
            .get_or_create(&engine)
            .observe(1.0);
        for reasons in [&metrics.sse_stream_disconnect, &metrics.admission_rejected] {
            reasons.get_or_create(&Reason { reason: m() }).inc();
        }
        metrics
            .tenant_requests
            .get_or_create(&Tenant { tenant: m() })
            .inc();
        let rejection = Rejection {
            tenant: m(),
            reason: m(),
        };
        metrics
            .tenant_requests_rejected
            .get_or_create(&rejection)
            .inc();
        let ttft = ModelTenant {
            model: m(),
            tenant: m(),
        };
        metrics.tenant_ttft.get_or_create(&ttft).observe(1.0);
        let text = classic(&metrics.open_metrics().unwrap());
        for name in PYTHON_NAMES {
            assert!(
                text.contains(&format!("# TYPE kvwarden_{name} ")),
                "{name} in {text}"
            );
        }
    }
}
