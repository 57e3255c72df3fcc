//! What queues where while a run lasts, and whether a limit nobody set was what queued.

use std::{cell::RefCell, rc::Rc, time::Duration};

use kvwarden_actors::prometheus::{RUNNING, WAITING, gauge};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    load::Live,
    server::{get, get_json},
};

/// How often is looked.
const PERIOD: Duration = Duration::from_millis(100);

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

/// Looks ten times a second, until dropped.
pub async fn watch(base: &str, begin: Instant, live: &Rc<Live>, looks: &RefCell<Vec<Look>>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let (sent, ended) = (
            live.sent.get(),
            live.ok.get() + live.refused.get() + live.failed.get(),
        );
        let mut look = Look {
            at: begin.elapsed().as_secs_f64(),
            open: sent.saturating_sub(ended) as f64,
            ..Look::default()
        };
        // A server that is not ours has no status page, and may be an engine itself.
        let status = get_json(&format!("{base}/kvwarden/status"))
            .await
            .unwrap_or_default();
        let engine = read_status(&status, &mut look).unwrap_or_else(|| base.to_owned());
        if let Ok((200, page)) = get(&format!("{engine}/metrics")).await {
            look.running = gauge(&page, &RUNNING).or(look.running);
            look.waiting = gauge(&page, &WAITING);
        }
        looks.borrow_mut().push(look);
    }
}

/// Takes in kvwarden's own view of its first model; returns where the engine is.
fn read_status(status: &Value, look: &mut Look) -> Option<String> {
    let model = status["loaded_models"].as_object()?.values().next()?;
    look.queued = model["waiting"].as_f64();
    look.running = model["running"].as_f64();
    look.slots = model["max_running"].as_f64();
    model["url"].as_str().map(str::to_owned)
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
    fn kvwarden_tells_where_its_engine_is() {
        let status = serde_json::json!({"loaded_models": {"m": {
            "waiting": 3, "running": 8, "max_running": 8, "url": "http://127.0.0.1:9"
        }}});
        let mut look = Look::default();
        assert_eq!(
            read_status(&status, &mut look).as_deref(),
            Some("http://127.0.0.1:9")
        );
        assert_eq!((look.queued, look.slots), (Some(3.0), Some(8.0)));
    }
}
