//! What `/kvwarden/status` says, as far as commands show it.
//!
//! Engines write log tails and operators write names, so no text from here reaches a terminal with
//! its control characters.

use kvwarden_actors::{device::Reading, engine::saved_kv::Kept, model::Occupancy};
use kvwarden_policy::{
    cost::Usage,
    lifecycle::{SleepLevels, State},
    residency::Until,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
use serde_json::{Map, Value};

/// The status of a server.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    #[serde(rename = "loaded_models", deserialize_with = "in_order")]
    pub(crate) models: Vec<Model>,
    pub(crate) admission: Admission,
    #[serde(deserialize_with = "in_order")]
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) gpu: Gpu,
    #[serde(rename = "metrics")]
    pub(crate) totals: Totals,
    /// Actors that did not answer in time, of whom nothing else is told.
    #[serde(default)]
    pub(crate) unresponsive_actors: Vec<String>,
    /// How the configuration was last read again.
    pub(crate) last_reload: Option<Reload>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Reload {
    pub(crate) error: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) engine: String,
    #[serde(flatten)]
    pub(crate) state: State,
    pub(crate) pid: Option<i32>,
    pub(crate) running: usize,
    pub(crate) max_running: usize,
    pub(crate) waiting: usize,
    pub(crate) record: Record,
    /// At least one.
    pub(crate) engines: Vec<Engine>,
}

/// One engine of a model.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Engine {
    /// The model's name, or `model#2` for a second one.
    pub(crate) engine: String,
    pub(crate) kind: String,
    #[serde(flatten)]
    pub(crate) state: State,
    pub(crate) occupancy: Occupancy,
    /// How deep it can sleep.
    #[serde(rename = "rungs")]
    pub(crate) levels: SleepLevels,
    pub(crate) record: Record,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Record {
    pub(crate) starts: u64,
    pub(crate) failures: u64,
    /// Seconds, oldest first.
    pub(crate) recent_starts: Vec<f64>,
    pub(crate) note: Option<String>,
    pub(crate) log_tail: Vec<String>,
    /// KV that the engine which was stopped last left behind.
    pub(crate) saved: Kept,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tenant {
    pub(crate) id: String,
    pub(crate) in_flight: u64,
    pub(crate) admitted: u64,
    pub(crate) refused: u64,
    pub(crate) used: Usage,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Admission {
    pub(crate) in_flight: usize,
    pub(crate) queue_depth: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) is_draining: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Gpu {
    pub(crate) devices: Reading,
    pub(crate) residents: Vec<Resident>,
    pub(crate) memory: Vec<Memory>,
}

/// An engine as the planner sees it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Resident {
    pub(crate) engine: String,
    pub(crate) devices: Vec<String>,
    /// On each of its devices.
    pub(crate) bytes: u64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Seconds of waiting that it spares.
    pub(crate) value: f64,
    pub(crate) is_pinned: bool,
    pub(crate) until: Option<Until>,
}

/// A device's memory as the planner sees it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Memory {
    pub(crate) id: String,
    /// The greatest number where nobody set a limit.
    pub(crate) capacity: u64,
    pub(crate) taken: u64,
    pub(crate) is_changing: bool,
    pub(crate) is_quarantined: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Totals {
    pub(crate) uptime_s: f64,
    pub(crate) total_requests: u64,
}

impl Status {
    /// Reads a status.
    pub(crate) fn read(json: Value) -> serde_json::Result<Self> {
        serde_json::from_value(without_controls(json))
    }

    /// Some model is broken: trying again will not mend it.
    pub(crate) fn has_broken(&self) -> bool {
        self.models.iter().any(Model::is_broken)
    }
}

impl Gpu {
    /// What the planner says of an engine; nothing until its weights are here.
    pub(crate) fn resident(&self, engine: &str) -> Option<&Resident> {
        let mut residents = self.residents.iter();
        residents.find(|resident| resident.engine == engine)
    }

    /// A device by what people call it: GPUs by the driver's index.
    pub(crate) fn device_name(&self, id: &str) -> String {
        let gpus: &[_] = match &self.devices {
            Reading::Devices { devices } => devices,
            Reading::NotYet | Reading::NoGpu { .. } | Reading::Lost { .. } => &[],
        };
        let gpu = gpus.iter().find(|gpu| gpu.uuid == id);
        gpu.map_or_else(|| id.to_owned(), |gpu| format!("GPU {}", gpu.index))
    }
}

impl Model {
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.state, State::Broken { .. })
    }

    /// Its engine failed, and its last words matter.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_broken() || matches!(self.state, State::Backoff { .. })
    }

    pub(crate) fn aliases(&self) -> impl Iterator<Item = &str> {
        let names = self.names.iter().map(String::as_str);
        names.filter(|name| *name != self.id)
    }

    /// The last line of the log that says anything.
    pub(crate) fn last_words(&self) -> Option<&str> {
        let lines = self.record.log_tail.iter().rev();
        lines.map(|line| line.trim()).find(|line| !line.is_empty())
    }
}

/// The values of an object, in the order they came.
fn in_order<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let values = Map::deserialize(deserializer)?.into_iter().map(|(_, v)| v);
    values
        .map(|value| serde_json::from_value(value).map_err(D::Error::custom))
        .collect()
}

fn without_controls(json: Value) -> Value {
    match json {
        Value::String(text) => Value::String(plain(&text)),
        Value::Array(items) => items.into_iter().map(without_controls).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| (key, without_controls(value)))
            .collect(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => other,
    }
}

/// Colours taken out, every other control character made a space.
fn plain(text: &str) -> String {
    let text = anstream::adapter::strip_str(text).to_string();
    text.replace(char::is_control, " ")
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// One model that serves and one that is broken, one tenant, no GPU.
    pub(in crate::cli) fn status() -> Value {
        let model = |id: &str| {
            let record = json!({ "starts": 2, "failures": 1, "stale": 0, "dispatched": 9,
                "recent_starts": [9.5, 12.25], "note": null, "log_tail": [],
                "saved": { "slots": 2, "tokens": 900, "bytes": 3 << 20, "note": null } });
            json!({
                "id": id, "names": [id, format!("{id}-alias")], "engine": "sim", "state": "ready",
                "generation": 2, "autostart": true, "url": "http://127.0.0.1:1", "pid": 42,
                "waiting": 1, "running": 3, "max_running": 8, "oldest_wait": null,
                "record": record,
                "engines": [{ "engine": id, "kind": "sim", "state": "ready",
                    "occupancy": { "running": 3, "unacked": 0 },
                    "rungs": ["ready", "parked", "cold"], "record": record }],
            })
        };
        let tail = json!(["first", "\u{1b}[31mCUDA\u{1b}[0m\tout of memory", ""]);
        let mut broken = model("b");
        let mut engine = broken["engines"][0].clone();
        for part in [&mut broken, &mut engine] {
            part["state"] = json!("broken");
            part["class"] = json!("out_of_memory");
            part["record"]["note"] = json!("not enough memory");
            part["record"]["log_tail"] = tail.clone();
        }
        broken["engines"] = json!([engine]);
        json!({
            "version": "0.1.0",
            "loaded_models": { "z": model("z"), "b": broken },
            "admission": { "in_flight": 3, "queue_depth": 1, "max_in_flight": 64, "is_draining": false },
            "tenants": { "acme": { "id": "acme", "is_named": true, "in_flight": 4, "admitted": 1234,
                "refused": 5, "used": { "prompt_tokens": 1_500_000, "cached_tokens": 10, "completion_tokens": 7 } } },
            "gpu": { "engines": ["z"], "devices": { "state": "no_gpu", "reason": "no driver" },
                "residents": [{ "engine": "z", "rung": "ready", "devices": ["host"],
                    "bytes": 5_u64 << 30, "rate": 0.5, "value": 1.25,
                    "is_pinned": false, "until": null }],
                "memory": [{ "id": "host", "capacity": 8_u64 << 30, "taken": 5_u64 << 30,
                    "is_changing": true, "is_quarantined": false }] },
            "metrics": { "uptime_s": 3661.2, "total_requests": 1239 },
        })
    }

    #[test]
    fn models_keep_the_order_of_the_configuration() {
        let status = Status::read(status()).unwrap();
        let ids: Vec<_> = status
            .models
            .iter()
            .map(|model| model.id.as_str())
            .collect();
        assert_eq!(ids, ["z", "b"]);
        assert!(status.has_broken());
    }

    #[test]
    fn engine_output_loses_its_control_characters() {
        let status = Status::read(status()).unwrap();
        assert_eq!(status.models[1].last_words(), Some("CUDA out of memory"));
        assert_eq!(plain("a\u{9b}31mb\nc"), "a 31mb c");
    }

    #[test]
    fn alias_is_every_name_but_the_canonical_one() {
        let status = Status::read(status()).unwrap();
        assert_eq!(status.models[0].aliases().collect::<Vec<_>>(), ["z-alias"]);
    }
}
