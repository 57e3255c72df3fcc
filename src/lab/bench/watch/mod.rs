//! What queues where while a run lasts, and whether a limit nobody set was what queued.

mod cap;
mod pages;

use std::{cell::RefCell, rc::Rc, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

pub use self::cap::hidden_cap;
use self::pages::{Engine, engine_in, look_into, read_status};
use super::{load::Live, server::get_json, stats::nearest_rank};

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
        let mut look = Look {
            at: begin.elapsed().as_secs_f64(),
            open: live.open() as f64,
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
        let at = |all: &[f64], percent| Some(all[nearest_rank(all.len(), percent)?]);
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
