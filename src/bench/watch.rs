//! What queues where while a run lasts, and whether a limit nobody set was what queued.

use std::{cell::RefCell, fs, rc::Rc, time::Duration};

use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    load::Live,
    server::{get, get_json},
};

/// How often is looked.
const PERIOD: Duration = Duration::from_millis(100);

/// Where engines find the key they guard their pages with.
const KEYS: [&str; 3] = ["VLLM_API_KEY", "LLAMA_API_KEY", "KVWARDEN_ENGINE_KEY"];

/// What engines call their running and waiting requests.
const RUNNING: [&str; 3] = [
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
];
const WAITING: [&str; 3] = [
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
];

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Look {
    /// Seconds since the start of the run.
    pub at: f64,
    /// Requests that clients wait for.
    pub open: f64,
    /// Requests that wait in kvwarden.
    pub queued: Option<f64>,
    /// Requests the engine may run at once, as kvwarden was told.
    pub slots: Option<f64>,
    /// Requests the engine computes.
    pub running: Option<f64>,
    /// Requests that wait in the engine.
    pub waiting: Option<f64>,
}

/// All looks of an arm, summed up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Queues {
    /// How many looks.
    pub looks: usize,
    /// Median of requests the engine computed.
    pub engine_running_p50: Option<f64>,
    /// 99th percentile of requests waiting in the engine.
    pub engine_waiting_p99: Option<f64>,
    /// Most of them.
    pub engine_waiting_max: Option<f64>,
    /// Part of the looks with at most two requests waiting in the engine (goal F5: 0.99).
    pub engine_waiting_at_most_2: Option<f64>,
    /// Median of requests waiting in kvwarden.
    pub queued_p50: Option<f64>,
    /// Most of them.
    pub queued_max: Option<f64>,
}

/// An engine's own pages.
#[derive(Clone, Debug, Default, PartialEq)]
struct Engine {
    base: String,
    key: Option<String>,
}

/// Looks ten times a second, until dropped.
pub async fn watch(base: &str, begin: Instant, live: &Rc<Live>, looks: &RefCell<Vec<Look>>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // Runs begin when all engines serve, and last as long as they do. A server that is not ours has
    // no status page, and may be an engine itself.
    let engine = match get_json(&status_url(base)).await {
        Ok(status) => engine_in(&status),
        Err(_) => Some(Engine {
            base: base.to_owned(),
            key: None,
        }),
    };
    loop {
        ticks.tick().await;
        let ended = live.ok.get() + live.refused.get() + live.failed.get();
        let mut look = Look {
            at: begin.elapsed().as_secs_f64(),
            open: live.sent.get().saturating_sub(ended) as f64,
            ..Look::default()
        };
        let status = get_json(&status_url(base)).await.unwrap_or_default();
        read_status(&status, &mut look);
        if let Some(engine) = &engine {
            look_into(engine, &mut look).await;
        }
        looks.borrow_mut().push(look);
    }
}

fn status_url(base: &str) -> String {
    format!("{base}/kvwarden/status")
}

/// Of an engine that tells nothing, nothing is known.
async fn look_into(engine: &Engine, look: &mut Look) {
    let url = format!("{}/metrics", engine.base);
    if let Ok((200, page)) = get(&url, engine.key.as_deref()).await {
        look.running = gauge(&page, &RUNNING).or(look.running);
        look.waiting = gauge(&page, &WAITING);
    }
}

/// Where kvwarden's first model runs. The key is new at every start and known to kvwarden and the
/// engine alone; the engine's environment has it, for the same user to read.
fn engine_in(status: &Value) -> Option<Engine> {
    let model = first_model(status)?;
    let key = model["pid"].as_u64().and_then(|pid| {
        let environ = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
        let entries = environ
            .split('\0')
            .filter_map(|entry| entry.split_once('='));
        let mut keys = entries.filter(|(name, _)| KEYS.contains(name));
        keys.next().map(|(_, key)| key.to_owned())
    });
    Some(Engine {
        base: model["url"].as_str()?.to_owned(),
        key,
    })
}

fn first_model(status: &Value) -> Option<&Value> {
    status["loaded_models"].as_object()?.values().next()
}

/// Takes in kvwarden's own view of its first model.
fn read_status(status: &Value, look: &mut Look) {
    if let Some(model) = first_model(status) {
        look.queued = model["waiting"].as_f64();
        look.running = model["running"].as_f64();
        look.slots = model["max_running"].as_f64();
    }
}

/// The sum of a gauge over its labels.
fn gauge(page: &str, names: &[&str]) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = names.iter().find_map(|name| line.strip_prefix(name))?;
        // Another metric may begin with the same name.
        let rest = rest
            .strip_prefix('{')
            .or(rest.strip_prefix(' ').map(|_| rest))?;
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

// === impl Queues ===

impl Queues {
    /// Of the looks after the warm-up.
    #[must_use]
    pub fn of(looks: &[Look]) -> Self {
        let sorted = |value: fn(&Look) -> Option<f64>| {
            let mut all: Vec<f64> = looks.iter().filter_map(value).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let at = |all: &[f64], percent: usize| {
            let rank = (all.len() * percent).div_ceil(100);
            rank.checked_sub(1).map(|at| all[at])
        };
        let (running, waiting) = (sorted(|look| look.running), sorted(|look| look.waiting));
        let queued = sorted(|look| look.queued);
        let short = waiting.iter().filter(|count| **count <= 2.0).count();
        Self {
            looks: looks.len(),
            engine_running_p50: at(&running, 50),
            engine_waiting_p99: at(&waiting, 99),
            engine_waiting_max: waiting.last().copied(),
            engine_waiting_at_most_2: (!waiting.is_empty())
                .then(|| short as f64 / waiting.len() as f64),
            queued_p50: at(&queued, 50),
            queued_max: queued.last().copied(),
        }
    }
}

/// A limit that nobody set: the engine runs the same number of requests all the time, below what it
/// was allowed, nothing waits inside it, and requests queue in front of it. A connection pool of 100
/// looks exactly like that, and its figures are those of the pool.
#[must_use]
pub fn hidden_cap(looks: &[Look]) -> Option<String> {
    let crowded: Vec<_> = looks
        .iter()
        .filter(|look| {
            look.running
                .is_some_and(|running| look.open > running * 1.05 + 4.0)
        })
        .collect();
    if crowded.len() < 20 || crowded.len() * 2 < looks.len() {
        return None;
    }
    let idle = crowded
        .iter()
        .filter(|look| look.waiting.unwrap_or(0.0) < 1.0);
    if idle.count() * 10 < crowded.len() * 9 {
        return None;
    }
    let mut running: Vec<f64> = crowded.iter().filter_map(|look| look.running).collect();
    running.sort_by(f64::total_cmp);
    let (low, flat, high) = (
        running[running.len() / 10],
        running[running.len() / 2],
        running[running.len() * 9 / 10],
    );
    let is_flat = high - low <= (flat * 0.02).max(1.0);
    let slots = crowded.iter().find_map(|look| look.slots);
    let is_own_limit = slots.is_some_and(|slots| flat >= slots * 0.94);
    // Where nobody told the limit, a round number is the sign.
    let is_round = [10.0, 16.0].iter().any(|step| flat % step < 0.5);
    if !is_flat || is_own_limit || (slots.is_none() && !is_round) {
        return None;
    }
    let allowed = slots.map_or(String::new(), |slots| format!(" of {slots:.0} it may run"));
    Some(format!(
        "a hidden cap binds: the engine ran a flat {flat:.0} requests{allowed} with none waiting in \
         it while others queued; these figures are those of the cap"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(running: impl Fn(usize) -> f64, waiting: f64, slots: Option<f64>) -> Vec<Look> {
        let look = |at: usize| Look {
            at: at as f64 / 10.0,
            open: 400.0,
            running: Some(running(at)),
            waiting: Some(waiting),
            slots,
            ..Look::default()
        };
        (0..100).map(look).collect()
    }

    #[test]
    fn connection_pool_of_a_hundred_is_found() {
        let warning = hidden_cap(&looks(|_| 100.0, 0.0, Some(256.0))).unwrap();
        assert!(warning.contains("flat 100 requests of 256"), "{warning}");
        assert!(hidden_cap(&looks(|_| 100.0, 0.0, None)).is_some());
    }

    #[test]
    fn full_engine_is_no_hidden_cap() {
        assert_eq!(hidden_cap(&looks(|_| 256.0, 0.0, Some(256.0))), None);
        assert_eq!(hidden_cap(&looks(|_| 100.0, 30.0, Some(256.0))), None);
        // Bound by the KV cache: the number follows the lengths.
        let varying = |at| 150.0 + (at % 30) as f64;
        assert_eq!(hidden_cap(&looks(varying, 0.0, Some(256.0))), None);
    }

    #[test]
    fn gauges_of_each_engine_are_read() {
        let page = "# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a b\"} 7\n\
            vllm:num_requests_running_total{engine=\"0\"} 99\n\
            llamacpp:requests_deferred 3\n";
        assert_eq!(gauge(page, &RUNNING), Some(7.0));
        assert_eq!(gauge(page, &WAITING), Some(3.0));
        assert_eq!(gauge("", &WAITING), None);
    }

    #[test]
    fn kvwarden_tells_where_its_engine_is_and_the_engine_its_key() {
        let mut engine = std::process::Command::new("sleep")
            .arg("60")
            .env("LLAMA_API_KEY", "secret")
            .spawn()
            .unwrap();
        let status = serde_json::json!({"loaded_models": {"m": {
            "waiting": 3, "running": 8, "max_running": 8, "url": "http://127.0.0.1:9",
            "pid": engine.id()
        }}});
        let mut look = Look::default();
        read_status(&status, &mut look);
        assert_eq!((look.queued, look.slots), (Some(3.0), Some(8.0)));
        let found = engine_in(&status).unwrap();
        engine.kill().unwrap();
        engine.wait().unwrap();
        assert_eq!(found.base, "http://127.0.0.1:9");
        assert_eq!(found.key.as_deref(), Some("secret"));
    }
}
