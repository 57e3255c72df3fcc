//! What goes into the scheduler and what comes out of it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{TenantId, cost::Usage};

/// Who is asked first when there is room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discipline {
    /// By service received, work-conserving.
    #[default]
    Fair,
    /// By arrival and nothing else: the baseline every claim is measured against.
    Fifo,
    /// Python KVWarden's `drr`: who has fewer requests in the server goes first.
    Drr,
}

/// Names one request from its arrival to its end. Never names another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// A group of tenants that shares one entitlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// Its weight among the groups; 0 counts as 1.
    pub weight: u32,
}

/// What a tenant is entitled to in front of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Lower goes first.
    pub class: i32,
    /// Whom it shares its entitlement with, and how much that is.
    pub group: Group,
    /// Its part of that.
    pub weight: u32,
    /// How much of it may wait for a model.
    pub queued: TenantBounds,
}

/// What has to be known about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Who asks.
    pub tenant: TenantId,
    /// The tenant's weight inside its group; 0 counts as 1.
    pub weight: u32,
    /// The tenant's group. Ids that nobody configured belong into one group together: a made-up id
    /// then shares what the others have instead of adding to it.
    pub group: Group,
    /// Which of the tenant's sessions; those of one tenant share equally.
    pub flow: Option<Arc<str>>,
    /// Lower goes first.
    pub class: i32,
    /// Estimated prompt length, in tokens.
    pub prompt_tokens: u64,
    /// Most tokens of one choice, if the client named a number.
    pub max_tokens: Option<u64>,
    /// How many choices are generated; 0 counts as 1.
    pub choices: u32,
    /// Memory it takes while it waits.
    pub bytes: u64,
    /// How much of its tenant may wait, this request included.
    pub tenant_bounds: TenantBounds,
    /// When it no longer wants to wait.
    pub expires: Instant,
    /// It was dispatched before and its engine failed before the first token: it goes to the head.
    pub is_retry: bool,
}

/// A request waits.
#[derive(Debug, PartialEq, Eq)]
pub struct Pushed<T> {
    /// Its name from now on.
    pub key: Key,
    /// Requests of the tenant with the longest line, newest first, that had to leave for it.
    pub displaced: Vec<T>,
}

/// A request can't wait.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T> {
    /// The request.
    pub item: T,
    /// Which bound it met.
    pub bound: Bound,
}

/// What can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// As many requests of this tenant wait as may: the caller's own doing.
    TenantRequests,
    /// The requests of this tenant hold as many bytes as they may: the caller's own doing.
    TenantBytes,
    /// As many requests wait as may, and no tenant has a longer line than this one.
    Requests,
    /// The waiting requests hold as many bytes as they may, and no tenant more than this one.
    Bytes,
    /// What of its own waits before it takes longer than it would wait.
    Expiry,
}

/// A request's turn has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Dispatch<T> {
    /// Its name, for what it does next.
    pub key: Key,
    /// What waited.
    pub item: T,
    /// For how long.
    pub waited: Duration,
    /// Where it belongs in the engine's own queue, lower first, in tokens of virtual time.
    pub tag: i64,
}

/// How a dispatched request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With all of its answer.
    Completed(Usage),
    /// Cut short, its slots free again: the prompt and what was generated are paid.
    Cancelled {
        /// Tokens generated, over all choices.
        generated: u64,
    },
    /// The engine never produced anything: nothing is paid.
    FailedBeforeFirstToken,
}

/// How much may wait altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Requests.
    pub requests: usize,
    /// Bytes.
    pub bytes: u64,
}

/// How much of one tenant may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantBounds {
    /// Requests.
    pub requests: usize,
    /// Bytes.
    pub bytes: u64,
}

impl Default for TenantBounds {
    /// As much as there is room for: the tenant with the longest line makes room for others anyway.
    fn default() -> Self {
        Self {
            requests: usize::MAX,
            bytes: u64::MAX,
        }
    }
}

/// What waits and runs of one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests that wait.
    pub waiting: usize,
    /// Bytes they hold.
    pub bytes: u64,
    /// Requests that were dispatched and have not ended.
    pub running: usize,
}

/// The scheduler's observable state.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Which discipline.
    pub discipline: Discipline,
    /// Altogether.
    pub total: Counts,
    /// Calls about requests that had ended already.
    pub stale: u64,
    /// Requests that had to leave for tenants with shorter lines.
    pub displaced: u64,
    /// What may be dispatched and what is; only under [`Discipline::Fair`].
    pub window: Option<WindowState>,
    /// Tenants with anything waiting or running, by name.
    pub tenants: Vec<TenantState>,
}

/// One tenant's part of a [`Snapshot`].
#[derive(Clone, Debug, Serialize)]
pub struct TenantState {
    /// Who.
    pub tenant: TenantId,
    /// What waits and runs.
    #[serde(flatten)]
    pub counts: Counts,
}

/// The three resources of an engine: what is used and what may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WindowState {
    /// Sequences that run.
    pub sequences: u64,
    /// Sequences that may.
    pub sequences_limit: u64,
    /// Prompt tokens dispatched whose first token has not come.
    pub unacked_prefill: u64,
    /// From how many on nothing more is dispatched.
    pub unacked_prefill_limit: u64,
    /// KV cache tokens reserved.
    pub kv: u64,
    /// KV cache tokens that may be, if known.
    pub kv_limit: Option<u64>,
    /// Time of an engine step as seen from outside, in microseconds.
    pub step_us: Option<u64>,
}

// === impl Bound ===

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TenantRequests => "too many requests of this tenant wait",
            Self::TenantBytes => "the waiting requests of this tenant are too large",
            Self::Requests => "too many requests wait",
            Self::Bytes => "the waiting requests are too large",
            Self::Expiry => "its turn would come too late",
        })
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.waiting += other.waiting;
        self.bytes += other.bytes;
        self.running += other.running;
    }

    pub(super) fn sub(&mut self, other: Self) {
        self.waiting -= other.waiting;
        self.bytes -= other.bytes;
        self.running -= other.running;
    }
}

// === impl Arrival ===

impl Arrival {
    /// Sequences it occupies.
    pub(super) fn sequences(&self) -> u64 {
        u64::from(self.choices.max(1))
    }
}
