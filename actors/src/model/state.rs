//! What a model remembers and shows of itself.

use std::{collections::VecDeque, time::Duration};

use kvwarden_policy::{
    DeviceId, Generation, ModelId,
    lifecycle::{SleepLevels, State},
    residency::Rate,
    scheduling,
};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::Occupancy;
use crate::{
    Vitals,
    engine::{EngineEnd, EngineKind, saved_kv::Kept},
    protocol::Target,
};

/// More starts than this between two looks at a model is a crash loop, not news.
const MAX_RECENT_STARTS: usize = 16;

/// What happened so far, for people.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// Engine starts that succeeded.
    pub starts: u64,
    /// Engines taken over from an earlier kvwarden.
    pub adoptions: u64,
    /// Engine ends that nobody asked for.
    pub failures: u64,
    /// Times the planner took its memory, in whole or in part.
    pub reclaimed: u64,
    /// Times it was loaded before it was asked.
    pub prefetches: u64,
    /// How many of those a request followed before its memory was taken again.
    pub prefetch_hits: u64,
    /// It failed, and no start has succeeded since.
    pub is_failing: bool,
    /// Messages about an engine that was no longer the current one.
    pub stale: u64,
    /// Requests handed to the engine.
    pub dispatched: u64,
    /// Requests put back to the head because their engine went away before the first token.
    pub retried: u64,
    /// How long the latest successful starts took, oldest first, in seconds where it is printed.
    #[serde(serialize_with = "all_seconds")]
    pub recent_starts: VecDeque<Duration>,
    /// What it is doing, or why it can't.
    pub note: Option<String>,
    /// Last words of the engine that failed last.
    pub log_tail: Vec<String>,
    /// KV that the newest engine began with.
    pub restored: Kept,
    /// KV that the engine which was stopped last left behind.
    pub saved: Kept,
    #[serde(skip)]
    pid: Option<i32>,
    #[serde(skip)]
    spawned_at: Option<Instant>,
}

impl Record {
    /// The engine's process, while there is one.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// A start began.
    pub(super) fn spawned(&mut self) {
        self.spawned_at = Some(Instant::now());
    }

    /// The start got further, and this may be its process.
    pub(super) fn progressed(&mut self, pid: Option<i32>) {
        self.pid = pid.or(self.pid);
    }

    /// The start succeeded; where none began, an engine was adopted.
    pub(super) fn started(&mut self) {
        self.is_failing = false;
        self.note = None;
        let Some(at) = self.spawned_at.take() else {
            self.adoptions += 1;
            return;
        };
        if self.recent_starts.len() >= MAX_RECENT_STARTS {
            self.recent_starts.pop_front();
        }
        self.recent_starts.push_back(at.elapsed());
        self.starts += 1;
    }

    /// The engine's process ended.
    pub(super) fn gone(&mut self) {
        self.pid = None;
    }

    /// It ended although nobody asked for it.
    pub(super) fn failed(&mut self, end: EngineEnd) {
        self.failures += 1;
        self.is_failing = true;
        self.note = Some(end.reason);
        self.log_tail = end.log_tail;
    }
}

/// One engine's observable state.
#[derive(Clone, Debug, Serialize)]
pub struct EngineState {
    /// Its name: the model's, or `model#2` for a second one.
    pub engine: ModelId,
    /// Which kind it is.
    #[serde(serialize_with = "EngineKind::serialize_family")]
    pub kind: EngineKind,
    /// Where it stands.
    #[serde(flatten)]
    pub state: State,
    /// Its newest start.
    pub generation: Generation,
    /// Where it listens.
    pub url: Option<String>,
    /// Its process.
    pub pid: Option<i32>,
    /// Where it runs, or ran last.
    pub devices: Vec<DeviceId>,
    /// What its configuration says is on this machine.
    pub is_prepared: bool,
    /// What runs on it.
    pub occupancy: Occupancy,
    /// Requests that wait inside it, while it says so.
    pub waiting: Option<u64>,
    /// How deep it can sleep.
    #[serde(rename = "rungs")]
    pub levels: SleepLevels,
    /// Where it broke its promise.
    pub barred: SleepLevels,
    /// What an operator wants of it and has not got yet.
    #[serde(rename = "wish")]
    pub target: Option<Target>,
    /// What happened so far.
    pub record: Record,
}

/// A model's observable state. What is said of one engine is of the one closest to serving.
#[derive(Clone, Debug, Serialize)]
pub struct ModelState {
    /// Canonical name.
    pub id: ModelId,
    /// Every name that routes to it, the canonical one first.
    pub names: Vec<String>,
    /// Which engine serves it.
    #[serde(serialize_with = "EngineKind::serialize_family")]
    pub engine: EngineKind,
    /// Where it stands.
    #[serde(flatten)]
    pub state: State,
    /// The newest start of its engine.
    pub generation: Generation,
    /// Starts with the server.
    pub autostart: bool,
    /// The configuration has it no more: it serves whom it let in, and goes.
    pub is_leaving: bool,
    /// Where the engine listens, while it serves.
    pub url: Option<String>,
    /// The engine's process.
    pub pid: Option<i32>,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// How many may run.
    pub max_running: usize,
    /// Requests that wait inside the engine, while it says so.
    pub engine_waiting: Option<u64>,
    /// Who waits and runs, and how full the engine is.
    pub scheduling: scheduling::Snapshot,
    /// Wait of the request that waits longest, in seconds where it is printed.
    #[serde(serialize_with = "maybe_seconds")]
    pub oldest_wait: Option<Duration>,
    /// What happened so far.
    pub record: Record,
    /// All its engines.
    pub engines: Vec<EngineState>,
    /// Its last requests.
    pub rate: Rate,
    /// How busy the actor is.
    pub vitals: Vitals,
}

fn all_seconds<S: Serializer>(all: &VecDeque<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(all.iter().map(Duration::as_secs_f64))
}

fn maybe_seconds<S: Serializer>(wait: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    wait.as_ref()
        .map(Duration::as_secs_f64)
        .serialize(serializer)
}
