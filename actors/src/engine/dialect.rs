//! What kvwarden has to know of an engine, which the engine's own module says in one place.
//!
//! The rest of the program asks the [`Dialect`] and never which engine it is, so that an engine is a
//! module with a `Dialect` and a row in [`EngineKind`](super::EngineKind).

use std::collections::BTreeMap;

use kvwarden_policy::lifecycle::{SleepLevel, SleepLevels};
use serde_json::Value;

use super::{EngineFlags, Launch, Start, fields::Fields};

/// One engine, as its module describes it.
#[derive(Debug)]
pub struct Dialect {
    /// Its name in configurations, and of its private environment if it has one.
    pub name: &'static str,
    /// What it is, in a few words for `--help`.
    pub about: &'static str,
    /// Its name in metrics and answers, which the builds for GPUs and for CPUs share.
    pub family: &'static str,
    /// `kvwarden engine install` makes a private environment of its name.
    pub has_recipe: bool,
    /// What tells it its model.
    pub source: SourceKind,
    /// It computes on GPUs. llama.cpp's wheel has no GPU in it.
    pub uses_gpu: bool,
    /// Those of a model's keys that not every engine takes, and it does.
    pub takes: &'static [&'static str],
    /// Arguments that are not the author's to set.
    pub owns: &'static [(&'static str, Owner)],
    /// Variables that are not the author's to set.
    pub owns_env: &'static [(&'static str, Owner)],
    /// Requests it runs at once, unless its model says another number.
    pub max_concurrent: u32,
    /// It is told how much of a long prompt one step may compute.
    pub cuts_prompts: bool,
    /// Where it keeps KV on disk.
    pub kv_on_disk: KvOnDisk,
    /// What it takes of a device for KV.
    pub kv_room: fn(&EngineFlags) -> KvRoom,
    /// Its arguments.
    pub args: fn(&Launch, Start<'_>) -> Vec<String>,
    /// What is added to its environment.
    pub env: fn(&Launch, Start<'_>) -> BTreeMap<String, String>,
    /// Where it differs from others as a server.
    pub quirks: Quirks,
    /// What of a request reaches it.
    pub fields: Fields,
    /// How it gives memory back without being stopped, if it can.
    pub sleep: Option<Sleep>,
    /// What its `/metrics` calls things. None: that is not known.
    pub gauges: Option<Gauges>,
}

/// What tells an engine its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// The key `source`: a path, a file in a package or a hub id.
    Weights,
    /// The key `source`: a .gguf file here or in a package.
    Gguf,
    /// The key `preset`: there are no weights, and it simulates.
    Preset,
    /// The key `command`, which may mention the key `source`.
    Command,
    /// The key `url`: somebody else runs it.
    Url,
}

/// Why an argument or a variable is not the author's.
#[derive(Clone, Copy, Debug)]
pub enum Owner {
    /// kvwarden decides it at every start.
    Kvwarden(&'static str),
    /// It has a key, by which kvwarden also plans.
    Key(&'static str),
}

/// Where an engine keeps KV on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvOnDisk {
    /// It can't.
    Nowhere,
    /// It saves and restores slots when it is told to.
    Slots,
    /// In files that it keeps to a budget.
    Files,
    /// In files that it never removes.
    FilesWithoutLimit,
}

/// What an engine takes of each device for KV.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvRoom {
    /// This many bytes.
    Bytes(u64),
    /// What this many tokens take, divided among its devices.
    Tokens(u64),
    /// The same for the model's longest context.
    Context,
    /// What its weights leave of this share of the device.
    Share(f64),
}

/// Where an engine differs from others as a server.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Quirks {
    /// It stops computing an unstreamed answer at once when its client hangs up. llama.cpp never does. SGLang
    /// 0.5.23 looks every 4 s: it went on for 3.96 to 3.99 s in five tries, and for 0.03 s where it streamed.
    pub aborts_unstreamed: bool,
    /// It admits what waits inside it by the request's `priority`, lower first.
    pub orders_by_priority: bool,
    /// It partitions its prefix cache by the request's `cache_salt`.
    pub salts_prefix_cache: bool,
    /// A stream tells the usage of each choice by itself; others tell the sum.
    pub usage_is_per_choice: bool,
    /// `/tokenize` calls the prompt `content`, and only lists the tokens.
    pub tokenizes_content: bool,
}

/// How an engine sleeps. Which calls a step takes is decided by pure functions.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    /// Where a running engine tells what it can.
    pub described_at: &'static str,
    /// The sleep levels that it has the calls for, by that description.
    pub levels: fn(&Value) -> SleepLevels,
    /// The way down. None where there is none.
    pub down: fn(SleepLevel, SleepLevel) -> Option<Vec<Call>>,
    /// The way up. Empty where no engine sleeps.
    pub up: fn(SleepLevel) -> Vec<Call>,
}

/// An order to an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Path and query.
    pub path: &'static str,
    /// What is posted there.
    pub body: Value,
}

/// Names on an engine's `/metrics` page.
#[derive(Clone, Copy, Debug)]
pub struct Gauges {
    /// Requests it computes, by its own account.
    pub running: &'static [&'static str],
    /// Requests it holds back.
    pub waiting: &'static [&'static str],
    /// What changes as it computes, during a long prompt too.
    pub work: &'static [&'static str],
}

// === what several engines say ===

pub(super) const HOST: Owner =
    Owner::Kvwarden("engines listen on loopback only, or tenants could go around kvwarden");
pub(super) const API_KEY: Owner =
    Owner::Kvwarden("every start gets a random key, passed where `ps` does not show it");
pub(super) const NAME: Owner =
    Owner::Kvwarden("the engine serves the model under its `id`; more names go to `aliases`");
pub(super) const MODEL: Owner = Owner::Kvwarden("the weights are `source`");
pub(super) const ORDER: Owner =
    Owner::Kvwarden("what queues inside the engine has to keep kvwarden's order");
pub(super) const CONFIG: Owner =
    Owner::Kvwarden("a second configuration would hide from `kvwarden check`");
pub(super) const ROOT: Owner = Owner::Kvwarden("kvwarden asks for the paths at the root");
pub(super) const TLS: Owner =
    Owner::Kvwarden("kvwarden speaks plain HTTP to its engines on loopback");

/// What no engine's author sets.
const OWNED_BY_ALL: &[(&str, Owner)] = &[
    (
        "--port",
        Owner::Kvwarden("kvwarden gives every start a free port"),
    ),
    ("--host", HOST),
    ("--api-key", API_KEY),
    ("--ssl-keyfile", TLS),
    ("--ssl-certfile", TLS),
];

// === impl Dialect ===

impl Dialect {
    /// kvwarden starts it, and may end it.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.source != SourceKind::Url
    }

    /// It makes its answers up.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        self.source == SourceKind::Preset
    }

    /// A model on it may have this key, of those that not every engine takes.
    #[must_use]
    pub fn takes(&self, key: &str) -> bool {
        self.takes.contains(&key)
    }

    /// Whose an argument is, if not the author's.
    #[must_use]
    pub fn owner_of(&self, flag: &str) -> Option<(&'static str, Owner)> {
        let mut owned = OWNED_BY_ALL.iter().chain(self.owns);
        owned.find(|(name, _)| *name == flag).copied()
    }
}
